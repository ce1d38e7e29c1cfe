"""Replies on eight devices against one: the same, however model and batch are split."""

import jax
import jax.numpy as jnp
import pytest

from empathax.config import Config, EvalOptions, MeshOptions
from empathax.data.chat import ChatTemplate
from empathax.data.records import Message
from empathax.evaluation.generation.replies import generate_ids
from empathax.models.transformer import abstract_params, logical_axes
from empathax.models.weights.source import resolve_model
from empathax.parallel.mesh import make_mesh
from empathax.parallel.rules import param_shardings

SAMPLED = {"temperature": 1.0, "top_k": 50, "top_p": 0.95, "min_p": 0.01, "repetition_penalty": 1.2, "num_samples": 3}
TURNS = ("Hi", "I lost my job", "I feel alone", "Hi there", "My cat died yesterday")


@pytest.fixture(scope="module")
def source():
    return resolve_model("random:tiny-llama")


def new_ids(source, batch, mesh_sizes=None, **options):
    template = ChatTemplate(source.tokenizer(), "auto", source.config.family)
    prompts = [template.encode_prompt([Message("user", turn)]).tolist() for turn in TURNS]
    config = Config(seed=5, eval=EvalOptions(generation_batch=batch, max_new_tokens=12, **options))
    mesh, shardings = None, None
    if mesh_sizes:
        mesh = make_mesh(MeshOptions(*mesh_sizes))
        shardings = param_shardings(mesh, abstract_params(source.config, jnp.float32), logical_axes(source.config))
    params = source.load_params(jnp.float32, shardings)
    assert len(jax.tree.leaves(params)[0].devices()) == (8 if mesh else 1)
    return dict(generate_ids(params, source.config, (), prompts, config, mesh=mesh))


@pytest.mark.parametrize("options", [{"repetition_penalty": 1.3}, SAMPLED], ids=["greedy", "sampled"])
def test_eight_devices_say_what_one_says(source, options):
    expected = new_ids(source, 1, **options)
    assert len({tuple(ids) for ids in expected.values()}) == len(TURNS) * options.get("num_samples", 1)
    for sizes in ((8, 1, 1), (2, 2, 2)):
        assert new_ids(source, 3, sizes, **options) == expected

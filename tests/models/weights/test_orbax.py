"""Models in Orbax directories: converted ones, and a run's own checkpoints."""

import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from empathax import export
from empathax.errors import CheckpointError, WeightsError
from empathax.models.transformer import abstract_params
from empathax.models.weights.export import export_model, export_orbax
from empathax.models.weights.source import resolve_model
from empathax.models.weights.steps import seal_files


@pytest.fixture(scope="module")
def original():
    return resolve_model("random:tiny-llama")


@pytest.fixture(scope="module")
def converted(tmp_path_factory, original):
    directory = tmp_path_factory.mktemp("orbax") / "model"
    assert export.main(["--model=random:tiny-llama", f"--out={directory}", "--to=orbax"]) == 0
    return directory


def test_a_converted_model_is_the_model(converted, original):
    source = resolve_model(converted)
    source.check()
    assert source.kind == "orbax"
    assert source.config.num_layers == original.config.num_layers
    assert source.tokenizer().fingerprint() == original.tokenizer().fingerprint()
    jax.tree.map(np.testing.assert_array_equal, source.load_params(), original.load_params())


def test_it_is_read_into_any_layout_and_dtype(converted, original):
    mesh = Mesh(np.array(jax.devices()[:4]), ("fsdp",))
    shardings = jax.tree.map(lambda leaf: NamedSharding(mesh, PartitionSpec()), abstract_params(original.config))
    shardings["embedding"]["kernel"] = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    params = resolve_model(converted).load_params(jnp.bfloat16, shardings)
    assert params["embedding"]["kernel"].sharding.spec == PartitionSpec(None, "fsdp")
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), original.load_params())
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_fingerprints_follow_the_weights(converted, tmp_path, original):
    assert resolve_model(converted).fingerprint() == resolve_model(converted).fingerprint()
    other = resolve_model("random:tiny-llama:1")
    export_orbax(other.load_params(), other.config, other.tokenizer(), tmp_path / "other")
    assert resolve_model(tmp_path / "other").fingerprint() != resolve_model(converted).fingerprint()


def test_parameters_of_another_model(tmp_path, original):
    other = resolve_model("random:tiny-gemma3")
    export_orbax(other.load_params(), original.config, original.tokenizer(), tmp_path / "mixed")
    with pytest.raises(WeightsError, match=r"does not hold the llama model.*\n(.*\n)*.*query_norm.*expected nothing"):
        resolve_model(tmp_path / "mixed").check()


def test_weights_that_are_not_finite_are_not_written(tmp_path, original):
    params = original.load_params()
    params["final_norm"]["scale"] = params["final_norm"]["scale"].at[3].set(jnp.nan)
    for write in (export_orbax, export_model):
        with pytest.raises(WeightsError, match="final_norm/scale: found 1 NaN"):
            write(params, original.config, original.tokenizer(), tmp_path / "nan")
    assert not (tmp_path / "nan").exists()


@pytest.mark.parametrize(
    "name", ["config.json", "params/_METADATA", "params/manifest.ocdbt", "arrays.json", "files.json"]
)
def test_a_converted_model_with_one_flipped_bit_is_refused(converted, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(converted, copy)
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 4
    (copy / name).write_bytes(content)
    with pytest.raises(CheckpointError):
        resolve_model(copy).load_params()


def test_a_converted_model_with_other_arrays_is_refused(converted, tmp_path):
    other = resolve_model("random:tiny-llama:1")
    export_orbax(other.load_params(), other.config, other.tokenizer(), tmp_path / "other")
    shutil.copytree(converted, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "params")
    shutil.copytree(tmp_path / "other" / "params", tmp_path / "copy" / "params")
    (tmp_path / "copy" / "files.json").unlink()
    seal_files(tmp_path / "copy")
    with pytest.raises(CheckpointError, match="params/embedding/kernel: found float32"):
        resolve_model(tmp_path / "copy").load_params()


@pytest.mark.parametrize("flags", [["--to=orbax"], ["--to=orbax", "--model=a", "--checkpoint=b"], ["--model=a"]])
def test_flags_that_name_no_model_or_two(flags, tmp_path):
    command = [sys.executable, "-m", "empathax.export", *flags, f"--out={tmp_path}/out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--checkpoint" in done.stderr

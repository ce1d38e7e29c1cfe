"""Model directories in a store, here in fsspec's own memory: only the bytes that are needed leave it."""

import fsspec
import jax
import numpy as np
import pytest

from empathax.errors import WeightsError
from empathax.models.weights.export import export_model
from empathax.models.weights.source import resolve_model

URL = "memory://bucket/tiny"


@pytest.fixture(scope="module")
def original():
    return resolve_model("random:tiny-llama")


@pytest.fixture
def store(original, tmp_path):
    """A model in three shards under URL."""
    local = export_model(
        original.load_params(), original.config, original.tokenizer(), tmp_path / "m", max_shard_bytes=200_000
    )
    found = fsspec.filesystem("memory")
    for path in local.iterdir():
        found.pipe_file(f"/bucket/tiny/{path.name}", path.read_bytes())
    yield found
    found.rm("/bucket", recursive=True)


def test_a_model_in_a_store(store, original):
    source = resolve_model(URL)
    source.check()
    assert source.config.num_layers == original.config.num_layers
    assert source.tokenizer().fingerprint() == original.tokenizer().fingerprint()
    headers = source._weights.bytes_read
    assert headers < 20_000
    jax.tree.map(np.testing.assert_array_equal, source.load_params(), original.load_params())
    size = sum(store.size(path) for path in store.ls("/bucket/tiny", detail=False) if path.endswith(".safetensors"))
    assert source._weights.bytes_read <= size + headers
    before = source.fingerprint()
    assert before == resolve_model(URL).fingerprint()
    name = next(path for path in store.ls("/bucket/tiny", detail=False) if "-00002-of-" in path)
    store.pipe_file(name, store.cat_file(name)[:-1] + b"!")  # another fine-tune in its place
    assert resolve_model(URL).fingerprint() != before


def test_a_shard_that_is_cut_short(store):
    name = next(path for path in store.ls("/bucket/tiny", detail=False) if "-00002-of-" in path)
    store.pipe_file(name, store.cat_file(name)[:-8])
    with pytest.raises(WeightsError, match=r"-00002-of-\d+.safetensors: cut short or damaged"):
        resolve_model(URL).check()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://nobody/here", "memory://nobody/here cannot be listed"),
        ("gs://bucket/model", r"gs:// cannot be read: .*gcsfs"),
        ("nothing://bucket/model", "nothing:// cannot be read"),
    ],
)
def test_what_cannot_be_read_says_why(url, message):
    with pytest.raises(WeightsError, match=message):
        resolve_model(url)


def test_a_directory_without_safetensors(store):
    store.pipe_file("/bucket/other/model.gguf", b"x")
    with pytest.raises(WeightsError, match=r"holds model\.gguf: expected config\.json and \*\.safetensors"):
        resolve_model("memory://bucket/other")

"""What a model path may be, and what each wrong one says."""

import hashlib
import json
import os
import shutil
import sys

import gguf
import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy

from empathax.errors import ConfigError, WeightsError
from empathax.models.architecture.presets import preset
from empathax.models.tokenizers.tokenizer import byte_tokenizer
from empathax.models.weights import source as model_sources
from empathax.models.weights.export import export_model
from empathax.models.weights.locations import weights_in_package
from empathax.models.weights.source import load_tokenizer, resolve_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A small model of the package's own, in three shards."""
    directory = tmp_path_factory.mktemp("model") / "tiny"
    model = resolve_model("random:tiny-llama")
    return export_model(model.load_params(), model.config, byte_tokenizer(), directory, max_shard_bytes=200_000)


@pytest.fixture
def model_dir(exported, tmp_path):
    """A copy to damage."""
    return shutil.copytree(exported, tmp_path / "model")


def shards(directory):
    return sorted(directory.glob("model-*.safetensors"))


def edit_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_a_directory(exported):
    source = resolve_model(exported)
    assert source.kind == "directory"
    assert source.config.family == "llama"
    assert source.tokenizer().fingerprint() == byte_tokenizer().fingerprint()
    original = resolve_model("random:tiny-llama").load_params()
    jax.tree.map(np.testing.assert_array_equal, source.load_params(), original)


def test_random_presets_depend_on_the_seed_alone():
    first, again, other = (
        resolve_model(path) for path in ("random:tiny-gemma3", "random:tiny-gemma3:0", "random:tiny-gemma3:1")
    )
    kernels = [np.asarray(source.load_params()["embedding"]["kernel"]) for source in (first, again, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert first.tokenizer().vocab_size <= first.config.vocab_size


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no/such/place/here", r"does not exist: no such file or directory"),
        ("nowhere", r"does not exist.*no hub name \(org/model\)"),
        ("random:tiny-gpt", r"random:tiny-gpt does not exist: choose one of tiny-llama"),
        ("random:tiny-llama:x", "whole number as seed"),
        ("package:no_such_package", r"not installed: pip install no-such-package"),
        ("package:not a name", "not installed"),
        ("org/a-model-nobody-has", r"could not be had from the Hugging Face hub"),
        ("model.gguf", "does not exist"),
    ],
)
def test_paths_that_lead_nowhere(path, message):
    with pytest.raises(WeightsError, match=message) as caught:
        resolve_model(path)
    assert caught.value.exit_code == 4
    assert "Traceback" not in str(caught.value)


def test_a_hub_name_is_fetched_without_code_or_pickles(exported, monkeypatch):
    asked = {}

    def download(repo, revision, allow_patterns):
        asked.update(repo=repo, revision=revision, patterns=allow_patterns)
        return str(exported)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("org/name@v1").config.family == "llama"
    assert (asked["repo"], asked["revision"]) == ("org/name", "v1")
    assert not [pattern for pattern in asked["patterns"] if pattern.endswith((".bin", ".pt", ".py"))]


def test_files_and_directories_that_are_no_model(tmp_path, model_dir):
    (tmp_path / "notes.txt").write_text("hi")
    with pytest.raises(WeightsError, match=r"is a file, expected a directory"):
        resolve_model(tmp_path / "notes.txt")
    with pytest.raises(WeightsError, match=r"has no config\.json"):
        resolve_model(tmp_path)
    (model_dir / "config.json").write_text("[1]")
    with pytest.raises(WeightsError, match=r"config\.json holds a JSON list, expected an object"):
        resolve_model(model_dir)
    (model_dir / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(WeightsError, match=r"config\.json: .*model_type = 'gpt2'"):
        resolve_model(model_dir)


def test_an_old_index_beside_one_file_is_not_followed(model_dir, tmp_path):
    """As transformers: save_pretrained removes old shards, but not their index."""
    one = tmp_path / "one"
    source = resolve_model(model_dir)
    params = jax.tree.map(lambda leaf: leaf + 1.0, source.load_params())
    export_model(params, source.config, source.tokenizer(), one)
    shutil.copy(one / "model.safetensors", model_dir)
    found = resolve_model(model_dir)
    found.check()
    jax.tree.map(np.testing.assert_array_equal, found.load_params(), params)
    for path in model_dir.glob("model-*.safetensors"):
        path.unlink()
    jax.tree.map(np.testing.assert_array_equal, resolve_model(model_dir).load_params(), params)


def test_one_file_or_an_index_are_needed(model_dir):
    index = model_dir / "model.safetensors.index.json"
    moved = index.rename(model_dir / "elsewhere")
    with pytest.raises(WeightsError, match=r"\.safetensors files .* but no model\.safetensors\.index\.json"):
        resolve_model(model_dir).check()
    moved.rename(index)
    for shard in shards(model_dir):
        shard.unlink()
    index.unlink()
    with pytest.raises(WeightsError, match=r"has no weights: expected model\.safetensors"):
        resolve_model(model_dir).check()
    safetensors.numpy.save_file({"x": np.zeros(1)}, model_dir / "adapter_model.safetensors")
    with pytest.raises(WeightsError, match="LoRA adapter"):
        resolve_model(model_dir).check()


def test_every_broken_shard_is_reported_at_once(model_dir):
    first, second, third = shards(model_dir)[:3]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-100])
    third.write_bytes(b"")
    with pytest.raises(WeightsError) as caught:
        resolve_model(model_dir).check()
    text = str(caught.value)
    assert f"{first.name}: found no such file" in text
    assert f"{second.name}: cut short or damaged" in text
    assert f"{third.name}: cut short or damaged" in text
    assert "found in no readable file, expected in" in text


def test_a_tensor_in_two_shards_and_one_the_index_does_not_know(model_dir):
    first, second = shards(model_dir)[:2]
    tensors = safetensors.numpy.load_file(second)
    name = next(iter(safetensors.numpy.load_file(first)))
    safetensors.numpy.save_file(tensors | {name: np.zeros(3, np.float32), "stray": np.zeros(3, np.float32)}, second)
    with pytest.raises(WeightsError) as caught:
        resolve_model(model_dir).check()
    assert f"{name}: found in {first.name} and in {second.name}, expected once" in str(caught.value)
    assert f"stray: found in {second.name}, but the index does not name it" in str(caught.value)


def test_a_name_twice_in_one_header(model_dir):
    shard = shards(model_dir)[0]
    data = shard.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].decode().rstrip()
    name, entry = next((k, v) for k, v in json.loads(header).items() if k != "__metadata__")
    doubled = f'{header[:-1]},"{name}":{json.dumps(entry)}}}'.encode()
    shard.write_bytes(len(doubled).to_bytes(8, "little") + doubled + data[8 + length :])
    with pytest.raises(WeightsError, match=r"cut short or damaged .* stands twice in one object"):
        resolve_model(model_dir).check()


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "a\\b.safetensors"]
)
def test_an_index_that_leaves_its_directory_is_not_followed(model_dir, name):
    (model_dir.parent / "secret.safetensors").write_bytes(shards(model_dir)[0].read_bytes())

    def redirect(index):
        first = next(iter(index["weight_map"]))
        index["weight_map"][first] = name

    edit_json(model_dir / "model.safetensors.index.json", redirect)
    with pytest.raises(WeightsError, match="points outside its directory, so nothing was read"):
        resolve_model(model_dir).check()


class Canary:
    """Unpickling this leaves a mark."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickled_weights_are_refused_unread(model_dir, name):
    import pickle

    mark = model_dir / "the-pickle-was-opened"
    for path in [*shards(model_dir), model_dir / "model.safetensors.index.json"]:
        path.unlink()
    (model_dir / name).write_bytes(pickle.dumps(Canary(mark)))
    with pytest.raises(WeightsError, match=rf"only pickled weights \({name}\)"):
        resolve_model(model_dir).load_params()
    index = {"weight_map": {"model.norm.weight": name}}
    (model_dir / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=r"names files that are not safetensors"):
        resolve_model(model_dir).load_params()
    assert not mark.exists()


def test_a_tokenizer_of_another_model(model_dir):
    edit_json(model_dir / "config.json", lambda config: config.update(vocab_size=100))
    with pytest.raises(ConfigError, match="embedding of 100 rows") as caught:
        resolve_model(model_dir).tokenizer()
    assert caught.value.exit_code == 2


def test_a_tokenizer_alone(model_dir):
    (model_dir / "config.json").unlink()
    assert load_tokenizer(model_dir).vocab_size == 259
    assert load_tokenizer("random:tiny-llama").vocab_size == 259


def test_fingerprints_follow_the_content(exported, model_dir, monkeypatch):
    source = resolve_model(exported)
    assert source.fingerprint() == resolve_model(model_dir).fingerprint()
    monkeypatch.setattr(model_sources, "_WHOLE_BYTES", 1000)
    monkeypatch.setattr(model_sources, "_SAMPLE_BYTES", 500)
    sampled = source.fingerprint()
    assert sampled == resolve_model(model_dir).fingerprint()
    shard = shards(model_dir)[0]
    data = bytearray(shard.read_bytes())
    data[-3] ^= 1
    shard.write_bytes(data)
    assert resolve_model(model_dir).fingerprint() != sampled
    monkeypatch.undo()
    assert resolve_model(model_dir).fingerprint() != source.fingerprint()


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """A place for made-up installed packages, and a cache of their own."""
    root = tmp_path / "site"
    root.mkdir()
    monkeypatch.syspath_prepend(str(root))
    monkeypatch.setenv("EMPATHAX_CACHE", str(tmp_path / "cache"))
    return root


def make_package(root, name, text="raise RuntimeError('imported')\n"):
    (root / name).mkdir()
    (root / name / "__init__.py").write_text(text)
    return root / name


def test_a_package_with_a_directory_is_found_and_not_imported(packages, exported):
    shutil.copytree(exported, make_package(packages, "some_weights") / "data" / "model")
    source = resolve_model("package:some-weights")
    assert source.config == resolve_model(exported).config
    assert "some_weights" not in sys.modules


def test_a_package_with_nothing_or_too_much(packages, exported):
    package = make_package(packages, "many_weights")
    with pytest.raises(WeightsError, match="holds no model"):
        resolve_model("package:many_weights")
    shutil.copytree(exported, package / "one")
    shutil.copytree(exported, package / "two")
    with pytest.raises(WeightsError, match=r"several models \(one, two\)"):
        resolve_model("package:many_weights")


def parts_of(packages, content, stated):
    make_package(packages, "cut_gguf", f'EXPECTED_SHA256 = "{stated}"\nraise RuntimeError\n')
    third = len(content) // 3
    for number in range(3):
        package = make_package(packages, f"cut_gguf_part{number + 1}")
        (package / "data").mkdir()
        end = None if number == 2 else (number + 1) * third
        (package / "data" / f"model.gguf.part{number:02d}").write_bytes(content[number * third : end])


def test_parts_are_joined_once_under_their_digest(packages, tmp_path):
    content = np.random.default_rng(0).bytes(10_000)
    digest = hashlib.sha256(content).hexdigest()
    parts_of(packages, content, digest)
    joined = weights_in_package("cut_gguf")
    assert joined.read_bytes() == content
    assert joined.name == "model.gguf"
    written = joined.stat().st_mtime_ns
    assert weights_in_package("cut-gguf") == joined
    assert joined.stat().st_mtime_ns == written
    joined.write_bytes(content[:-1])  # a damaged cache is not believed
    assert weights_in_package("cut_gguf").read_bytes() == content
    assert [path.name for path in joined.parent.iterdir()] == ["model.gguf"]


def test_parts_that_are_damaged_or_missing(packages):
    parts_of(packages, bytes(300), "0" * 64)
    with pytest.raises(WeightsError, match="do not make the file that the package states"):
        weights_in_package("cut_gguf")
    shutil.rmtree(packages / "cut_gguf_part2")
    with pytest.raises(WeightsError, match="part 1 is not installed"):
        weights_in_package("cut_gguf")


def test_a_gguf_beside_no_config(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "falcon")
    for write in (
        writer.write_header_to_file,
        writer.write_kv_data_to_file,
        writer.write_tensors_to_file,
        writer.close,
    ):
        write()
    with pytest.raises(WeightsError, match=r"a\.gguf: .*general\.architecture = 'falcon'"):
        resolve_model(tmp_path)


def test_presets_fit_the_byte_tokenizer():
    assert preset("tiny-llama").eos_token_ids == byte_tokenizer().stop_token_ids

"""A model that no machine holds is refused from its shapes, with the sizes behind them."""

import json
import os
import shutil

import pytest

from empathax.errors import WeightsError
from empathax.models.tokenizers.tokenizer import byte_tokenizer
from empathax.models.weights import memory
from empathax.models.weights.export import export_model
from empathax.models.weights.source import resolve_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model = resolve_model("random:tiny-llama")
    directory = tmp_path_factory.mktemp("model") / "tiny"
    return export_model(model.load_params(), model.config, byte_tokenizer(), directory)


def with_settings(exported, tmp_path, **settings):
    place = shutil.copytree(exported, tmp_path / "model")
    path = place / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return place


@pytest.mark.parametrize("name", ["hidden_size", "vocab_size", "intermediate_size"])
def test_sizes_that_no_machine_holds(exported, tmp_path, monkeypatch, name):
    monkeypatch.setattr(memory, "machine_memory", lambda: 24 << 30)
    source = resolve_model(with_settings(exported, tmp_path, **{name: 10**9}))
    with pytest.raises(WeightsError, match=rf"this machine has 24.0 GiB \(.*{name} = 1,000,000,000"):
        source.check()


def test_more_layers_than_the_files_can_hold(exported, tmp_path):
    source = resolve_model(with_settings(exported, tmp_path, num_hidden_layers=10**6))
    with pytest.raises(
        WeightsError, match=r"each of 1,000,000 layers \(num_hidden_layers\)|num_hidden_layers = 1,000,"
    ):
        source.check()


def test_more_layers_than_a_config_may_have(exported, tmp_path):
    with pytest.raises(WeightsError, match=r"config\.json: .*num_hidden_layers = 1000000000: expected a whole number"):
        resolve_model(with_settings(exported, tmp_path, num_hidden_layers=10**9))


def test_the_dtype_that_is_loaded_decides(exported, monkeypatch):
    source = resolve_model(exported)
    num_parameters = sum(leaf.size for leaf in _leaves(source))
    monkeypatch.setattr(memory, "machine_memory", lambda: 3 * num_parameters)
    source.check()
    source.load_params("bfloat16")
    with pytest.raises(WeightsError, match="this machine has"):
        source.load_params("float32")


def _leaves(source):
    import jax

    from empathax.models.transformer import abstract_params

    return jax.tree.leaves(abstract_params(source.config))


def test_the_host_has_at_most_its_memory():
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < memory.host_memory() <= physical


def test_limits_of_control_groups(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "memory.max").write_text("5000\n")
    (tmp_path / "a" / "b" / "memory.max").write_text("max\n")
    (tmp_path / "memory" / "c").mkdir(parents=True)
    (tmp_path / "memory" / "c" / "memory.limit_in_bytes").write_text("4000\n")
    (tmp_path / "cgroup").write_text("9:name=systemd:/\n4:memory:/c\n0::/a/b\n")
    monkeypatch.setattr(memory, "_MOUNT", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUPS", tmp_path / "cgroup")
    assert sorted(memory._group_limits()) == [4000, 5000]

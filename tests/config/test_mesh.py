"""What `config.mesh` may say: presets, rules, and every complaint at once."""

from pathlib import Path

import pytest

from empathax.config import default_config, from_config_dict
from empathax.config.flags import load_config
from empathax.config.hardware import parse_hardware
from empathax.config.mesh import DEFAULT_RULES, parse_rules, preset_sizes
from empathax.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("v5e:4x4", (1, 16, 1, 1)),
        ("h100:8", (1, 8, 1, 1)),
        ("h100:2x8", (2, 8, 1, 2)),  # parameters repeated on both nodes
        ("v5p:4x4x4", (1, 32, 2, 1)),  # 32 rows feed 64 chips
        ("4xv5e:16x16", (4, 32, 8, 4)),
        ("v5p:8x8x16", (1, 128, 8, 1)),
    ],
)
def test_presets(name, sizes):
    found = preset_sizes(name)
    assert (found["data"], found["fsdp"], found["tensor"], found["dcn_data"]) == sizes
    assert found["dcn_fsdp"] == 1
    assert found["data"] * found["fsdp"] * found["tensor"] == parse_hardware(name).num_devices


def test_rules_change_what_they_name():
    rules = parse_rules("embed=tensor, heads = fsdp + data,vocab=,layer=data")
    assert rules["embed"] == ("tensor",)
    assert rules["heads"] == ("fsdp", "data")
    assert rules["vocab"] == ()
    assert rules["layer"] == ("data",)
    assert rules["ff"] == DEFAULT_RULES["ff"]
    assert parse_rules("") == DEFAULT_RULES


def _complaint(**mesh):
    config = default_config()
    for name, value in mesh.items():
        config.mesh[name] = value
    with pytest.raises(ConfigError) as caught:
        from_config_dict(config)
    return str(caught.value)


def test_every_complaint_at_once():
    said = _complaint(data=4, dcn_data=3, preset="v5r:4x4", rules="embd=fsdp,vocab=tensr,heads,ff=data+data")
    assert "mesh.dcn_data = 3 does not divide mesh.data = 4" in said
    assert "mesh.preset = 'v5r:4x4' sets all sizes: leave it empty, or do not set mesh.data, mesh.dcn_data" in said
    assert "mesh.preset: hardware 'v5r:4x4' is not known; did you mean 'v5" in said
    assert "there is no dimension 'embd'; did you mean 'embed'?" in said
    assert "there is no axis 'tensr'; did you mean 'tensor'?" in said
    assert "'heads' is not a rule: expected DIMENSION=AXIS" in said
    assert "names a mesh axis twice" in said


def test_sizes_that_no_device_count_can_save():
    assert "at most one of data, fsdp, tensor may be -1" in _complaint(data=-1)
    assert "an axis of size 0" in _complaint(tensor=0)


def test_rules_come_from_a_command_line():
    argv = [f"--config={Path(__file__).parents[2]}/configs/demo.py", "--config.mesh.rules=embed=tensor,vocab="]
    assert load_config(argv)[0].mesh.rules == "embed=tensor,vocab="

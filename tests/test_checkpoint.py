"""The checkpoint command: a line for each step, exit code 5 for those that are not what was saved."""

import jax.numpy as jnp
import optax
import pytest

from empathax import checkpoint
from empathax.training.checkpoint import StageCheckpoints
from empathax.training.state import init_state


@pytest.fixture
def run(tmp_path):
    """A run's directory with two steps of one stage and one of another."""
    for stage, steps in (("sft", (3, 5)), ("dpo", (2,))):
        with StageCheckpoints(tmp_path / "checkpoints" / stage) as checkpoints:
            for step in steps:
                state = init_state({"kernel": jnp.ones((2, 3)) * step}, optax.sgd(0.1)).replace(step=jnp.int32(step))
                checkpoints.save(state, {"finished": step == 5})
            checkpoints.wait()
    return tmp_path


def test_a_line_for_each_checkpoint(run, capsys):
    assert checkpoint.main(["inspect", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["checkpoint", "kind", "arrays", "parameters", "state"]
    found = [line.split()[0] for line in lines[1:]]
    assert found == ["checkpoints/dpo/2", "checkpoints/sft/5", "checkpoints/sft/3"]
    assert ("finished" in lines[2], "finished" in lines[3]) == (True, False)
    assert all(line.endswith("as saved") for line in lines[1:])
    assert lines[1].split()[-3] == "6"  # 2 x 3 parameters


@pytest.mark.parametrize("action", ["inspect", "verify"])
def test_one_flipped_bit_is_exit_5(run, capsys, action):
    path = run / "checkpoints" / "sft" / "5" / "params" / "_METADATA"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert checkpoint.main([action, str(run)]) == 5
    said = capsys.readouterr()
    assert "sft/5: params/_METADATA is not what was written" in said.err
    assert said.out.count("as saved") == 2


def test_a_directory_without_checkpoints(tmp_path, capsys):
    assert checkpoint.main(["verify", str(tmp_path)]) == 5
    assert "holds no checkpoint: expected a run's --workdir" in capsys.readouterr().err

"""What the parts of the GPU benchmark share, and that its check of attention sees a wrong result."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.benchmarks.gpu import attention
from tests.benchmarks.gpu.part import Part, Recorder, compiled_together


@pytest.fixture
def part(tmp_path):
    return Part(tmp_path, tmp_path / "out.json", True, "a card")


def test_every_result_is_written_at_once_with_the_device(part):
    part.say("work", "first", 2, "s")
    part.say("work", "second", 3, "s")
    rows = json.loads(part.out.read_text())
    assert [(row["metric"], row["value"], row["device"]) for row in rows] == [
        ("first", 2.0, "a card"),
        ("second", 3.0, "a card"),
    ]


def test_what_does_not_compile_stops_nothing_else(capsys):
    def fails():
        raise RuntimeError("too large a tile")

    programs = compiled_together({"good": lambda: jax.jit(jnp.sin).lower(1.0), "bad": fails}, tuned=False)
    assert list(programs) == ["good"]
    assert programs["good"](0.0) == 0.0
    assert "bad does not compile: RuntimeError: too large a tile" in capsys.readouterr().out


def test_rates_leave_the_first_step_out(monkeypatch):
    clock = iter([0.0, 9.0, 10.0, 12.0, 20.0, 24.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    recorder = Recorder()
    for pairs in (1, 6, 8):
        recorder.begin()
        recorder.end(pairs=pairs)
    assert recorder.rates("pairs") == [3.0, 2.0]


@pytest.mark.parametrize("wrong", [False, True])
def test_the_check_of_attention_says_what_is_wrong(part, capsys, wrong):
    shape = attention.Shape(1, 2, 1, 64, 64, "chain", "float32")

    def attend(*arrays):
        return [jnp.cumsum(array, axis=2) for array in arrays[:4]]

    def slightly_off(*arrays):
        return [result.at[0, 0, 5].add(1.0) if wrong else result for result in attend(*arrays)]

    attention._compare(part, shape, slightly_off, attend, seed=0)
    assert ("WRONG" in capsys.readouterr().out) == wrong
    assert (part.rows[0]["value"] > attention.TOLERANCES["float32"]) == wrong


@pytest.mark.parametrize("layout", ["chain", "forest", "dialogues"])
def test_layouts_are_trees(part, layout):
    tokens = 512
    shape = attention.Shape(2, 2, 1, 64, tokens, layout)
    positions_BT, ends_BT = attention.layout_arrays(shape, 0, part.folder)
    assert positions_BT.shape == ends_BT.shape == (2, tokens)
    index_T = np.arange(tokens)
    sees_BTT = (index_T[None, :, None] >= index_T) & (index_T[None, :, None] < ends_BT[:, None, :])
    used_BT = ends_BT > index_T + 1
    np.testing.assert_array_equal((sees_BTT.sum(-1) - 1)[used_BT], positions_BT[used_BT])

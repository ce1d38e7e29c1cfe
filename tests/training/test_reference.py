"""Frozen references: complete tables, and a cache that never answers for other weights, data or settings."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from empathax import atomic
from empathax.errors import CheckpointError
from empathax.evaluation.scoring import logps_by_sequence
from empathax.training.forward import SequenceScores
from empathax.training.reference import cache_path, cached_logps, fingerprint, frozen_copy

PARTS = {"rows": "abc", "tokenizer": "def", "template": "chatml", "lengths": "1024"}
LOGPS = np.array([-1.5, np.nan, -3.25], np.float32)


def _params(value=1.0):
    return {"layers": {"kernel": jnp.full((2, 3), value)}, "scale": jnp.ones(3)}


def _never():
    raise AssertionError("the cache should have answered")


def test_precompute_files_every_reply_under_its_id():
    batches = [np.array([[3, 0, -1]]), np.array([[1, -1, -1]])]
    score = lambda params, ids: SequenceScores(ids, ids * params, np.ones_like(ids))  # noqa: E731
    table = logps_by_sequence(score, -10.0, batches, 5)[0]
    assert table.dtype == np.float32
    np.testing.assert_array_equal(table, [0, -10, np.nan, -30, np.nan])


def test_a_frozen_copy_has_buffers_of_its_own():
    params = _params()
    copy = frozen_copy(params)
    params["scale"].delete()
    np.testing.assert_array_equal(copy["scale"], np.ones(3))


def test_computed_once_then_read(tmp_path):
    wanted = fingerprint(_params(), PARTS)
    computed, from_disk = cached_logps(tmp_path / "cache", wanted, lambda: LOGPS)
    assert not from_disk
    cached, from_disk = cached_logps(tmp_path / "cache", wanted, _never)
    assert from_disk
    assert cached.tobytes() == computed.tobytes() == LOGPS.tobytes()
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [cache_path(tmp_path, wanted).name]


@pytest.mark.parametrize("changed", ["weights", *PARTS])
def test_anything_else_is_computed_anew(tmp_path, changed):
    wanted = fingerprint(_params(), PARTS)
    assert wanted.keys() == {"weights", *PARTS}
    cached_logps(tmp_path, wanted, lambda: LOGPS)
    other, from_disk = cached_logps(tmp_path, {**wanted, changed: "other"}, lambda: LOGPS * 2)
    assert not from_disk
    assert other[0] == -3.0


def test_the_fingerprint_sees_a_change_of_one_weight_in_its_last_bit():
    params = _params()
    nudged = {**params, "scale": params["scale"].at[1].set(np.nextafter(np.float32(1), np.float32(2)))}
    renamed = {"layers": params["layers"], "norm": params["scale"]}
    prints = [fingerprint(tree, PARTS)["weights"] for tree in (params, nudged, renamed, _params())]
    assert prints[0] == prints[3]
    assert len(set(prints)) == 3


def test_a_file_that_tells_of_another_fingerprint_is_not_used(tmp_path):
    wanted = fingerprint(_params(), PARTS)
    foreign = json.dumps({**wanted, "weights": "of another model"}, sort_keys=True)
    with cache_path(tmp_path, wanted).open("wb") as file:
        np.savez(file, logps=LOGPS, fingerprint=np.array(foreign))
    assert not cached_logps(tmp_path, wanted, lambda: LOGPS)[1]
    assert cached_logps(tmp_path, wanted, _never)[1]  # replaced


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "float64", "object"])
def test_a_damaged_file_is_not_used(tmp_path, damage):
    wanted = fingerprint(_params(), PARTS)
    cached_logps(tmp_path, wanted, lambda: LOGPS)
    path = cache_path(tmp_path, wanted)
    whole = path.read_bytes()
    at = whole.index(LOGPS.tobytes())
    if damage in ("float64", "object"):
        kind = np.float64 if damage == "float64" else object
        np.savez(path, logps=LOGPS.astype(kind), fingerprint=np.array(json.dumps(wanted, sort_keys=True)))
    else:
        flipped = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        path.write_bytes({"truncated": whole[: len(whole) // 2], "flipped": flipped, "emptied": b""}[damage])
    assert not cached_logps(tmp_path, wanted, lambda: LOGPS)[1]


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        cached_logps(tmp_path, fingerprint(_params(), PARTS), lambda: LOGPS)
    assert not list(tmp_path.iterdir())


def test_an_unwritable_directory_is_one_clear_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="another --workdir"):
        cached_logps(tmp_path / "file" / "cache", fingerprint(_params(), PARTS), lambda: LOGPS)

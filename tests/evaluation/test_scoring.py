"""Log-probs by sequence id: every reply under its id, the next batch dispatched before the last one is read."""

from typing import NamedTuple

import numpy as np

from empathax.evaluation.scoring import logps_by_sequence


class Scores(NamedTuple):
    sequence_id_BS: np.ndarray
    logps_BS: np.ndarray
    num_tokens_BS: np.ndarray


def test_every_reply_is_filed_under_its_id():
    batches = [np.array([[3, 0, -1]]), np.array([[1, -1, -1]])]
    step = lambda scale, ids: Scores(ids, ids * scale, ids + 2.9999)  # noqa: E731
    done = []
    logps, num_tokens = logps_by_sequence(step, np.float32(-10.0), batches, 5, done.append)
    assert (logps.dtype, num_tokens.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(logps, [0, -10, np.nan, -30, np.nan])
    assert num_tokens.tolist() == [3, 4, 0, 6, 0]
    assert done == [0, 1]


def test_a_batch_is_dispatched_before_the_last_one_is_read(monkeypatch):
    events = []

    class Read(np.ndarray):
        def __ge__(self, other):
            events.append("read")
            return np.asarray(self) >= other

    def step(params, ids):
        events.append("dispatch")
        return Scores(ids.view(Read), ids * 1.0, ids * 0.0)

    monkeypatch.setattr("empathax.evaluation.scoring.jax.device_get", lambda scores: scores)
    logps_by_sequence(step, None, [np.array([[0]]), np.array([[1]]), np.array([[2]])], 3)
    assert events == ["dispatch", "dispatch", "read", "dispatch", "read", "read"]

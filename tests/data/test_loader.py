"""A batch is a pure function of (seed, step), whatever was read before and by how many processes."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.data.loader import Loader, eval_batches
from empathax.data.packing import pack
from empathax.data.prefix_tree import ScoredSequence
from empathax.errors import ConfigError, DataError


def rows_of(count):
    groups = [[(ScoredSequence(np.full(100, i, np.int32), np.array([i], np.int32), i),)] for i in range(count)]
    return pack(groups, "tree", 128)


def same(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


ROWS = rows_of(10)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**40), step=st.integers(0, 50), rows=st.integers(1, 3), accumulate=st.integers(1, 3))
def test_batches_depend_on_seed_and_step_only(seed, step, rows, accumulate):
    first = Loader(ROWS, rows_per_batch=rows, accumulation_steps=accumulate, seed=seed)
    second = Loader(ROWS, rows_per_batch=rows, accumulation_steps=accumulate, seed=seed)
    for earlier in range(step % 4):
        first.batch_at(earlier)
    assert same(first.batch_at(step), second.batch_at(step))
    assert first.batch_at(step).token_ids_BT.shape == (accumulate, rows, 128)


def test_every_row_once_an_epoch_and_another_order_in_the_next():
    loader = Loader(ROWS, rows_per_batch=2, seed=3)
    epochs = [[int(i) for step in range(e * 5, e * 5 + 5) for i in loader.row_ids(step).ravel()] for e in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert epochs[0] != [
        int(i) for step in range(5) for i in Loader(ROWS, rows_per_batch=2, seed=4).row_ids(step).ravel()
    ]


def test_without_shuffling_rows_keep_their_order():
    loader = Loader(ROWS, rows_per_batch=5, shuffle=False)
    assert [loader.row_ids(step).ravel().tolist() for step in range(3)] == [
        [0, 1, 2, 3, 4],
        [5, 6, 7, 8, 9],
        [0, 1, 2, 3, 4],
    ]


def test_reading_goes_on_from_any_step_also_in_epoch_two():
    loader = Loader(ROWS, rows_per_batch=3, accumulation_steps=1, seed=1)
    whole = list(loader.iterate(0, 12))
    rest = list(Loader(ROWS, rows_per_batch=3, seed=1).iterate(7, 12))
    assert len(whole) == 12
    assert len(rest) == 5
    assert all(same(a, b) for a, b in zip(whole[7:], rest, strict=True))
    assert same(whole[7], loader.batch_at(7))


def test_leaving_early_leaves_no_reader_behind():
    iterator = Loader(ROWS, rows_per_batch=1).iterate()
    next(iterator)
    iterator.close()
    assert next(iterator, None) is None


def test_processes_read_slices_of_the_same_global_batch():
    whole = Loader(ROWS, rows_per_batch=4, accumulation_steps=2, seed=5).batch_at(3)
    parts = [
        Loader(ROWS, rows_per_batch=4, accumulation_steps=2, seed=5, parts=(i,), num_parts=2).batch_at(3)
        for i in range(2)
    ]
    assert same(whole, jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=1), *parts))


def test_parts_need_not_follow_each_other():
    whole = Loader(ROWS, rows_per_batch=4, seed=5).batch_at(1)
    own = Loader(ROWS, rows_per_batch=4, seed=5, parts=(1, 3), num_parts=4).batch_at(1)
    assert same(own, jax.tree.map(lambda array: array[:, [1, 3]], whole))


def test_a_batch_that_does_not_divide_by_the_processes():
    with pytest.raises(ConfigError, match="does not divide by 2"):
        Loader(ROWS, rows_per_batch=3, num_parts=2)


def test_fewer_rows_than_a_step_takes():
    with pytest.raises(DataError, match=r"fill 10 row\(s\).*4 \* 3.*lower"):
        Loader(ROWS, rows_per_batch=4, accumulation_steps=3)


@pytest.mark.parametrize(("epochs", "max_steps", "steps"), [(1.0, 0, 4), (3.0, 0, 10), (0.5, 0, 2), (2.0, 5, 5)])
def test_steps_of_a_stage(epochs, max_steps, steps):
    assert Loader(ROWS, rows_per_batch=3).num_steps(epochs, max_steps) == steps


def test_evaluation_is_one_pass_filled_up_with_empty_rows():
    batches = list(eval_batches(ROWS, 4))
    assert [batch.token_ids_BT.shape[0] for batch in batches] == [4, 4, 4]
    ids = np.concatenate([batch.sequence_id_BS[:, 0] for batch in batches])
    assert ids.tolist() == [*range(10), -1, -1]
    assert not batches[-1].weight_BM[2:].any()
    halves = [list(eval_batches(ROWS, 4, parts=(i,), num_parts=2)) for i in range(2)]
    assert same(batches[2], jax.tree.map(lambda *arrays: np.concatenate(arrays), halves[0][2], halves[1][2]))


def test_reference_log_probs_go_to_their_sequences():
    logps = -np.arange(10, dtype=np.float32)
    batch = Loader(ROWS, rows_per_batch=10, ref_logps=logps, seed=2).batch_at(0)
    ids = batch.sequence_id_BS
    np.testing.assert_array_equal(batch.ref_logps_BS, np.where(ids >= 0, -ids, 0))
    assert batch.ref_logps_BS.dtype == np.float32


def test_a_row_that_cannot_be_read_is_named_and_never_hangs(monkeypatch):
    rows = rows_of(6)
    loader = Loader(rows, rows_per_batch=2, shuffle=False)
    real = type(rows).__getitem__

    def broken(self, row):
        if row == 3:
            raise OSError("disk gone")
        return real(self, row)

    monkeypatch.setattr(type(rows), "__getitem__", broken)
    with pytest.raises(DataError, match=r"row 3 .*disk gone"):
        list(loader.iterate(0, 3))


def test_the_fingerprint_names_what_changed():
    base = Loader(ROWS, rows_per_batch=2, seed=1).fingerprint()
    assert base == Loader(ROWS, rows_per_batch=2, seed=1).fingerprint()
    changed = Loader(ROWS, rows_per_batch=2, seed=2).fingerprint()
    assert [key for key in base if base[key] != changed[key]] == ["seed"]
    assert Loader(rows_of(9), rows_per_batch=2, seed=1).fingerprint()["rows"] != base["rows"]


def test_an_evaluation_batch_is_no_larger_than_all_rows():
    (batch,) = eval_batches(ROWS, 10**9)
    assert same(batch, next(eval_batches(ROWS, 10)))
    halves = [list(eval_batches(ROWS, 10**9, parts=(i,), num_parts=4)) for i in range(4)]
    assert [len(part) for part in halves] == [1, 1, 1, 1]
    assert halves[0][0].token_ids_BT.shape == (3, 128)  # 10 rows in 4 equal parts


@pytest.mark.parametrize(("rows", "accumulate"), [(10**9, 1), (2**31 - 1, 2**31 - 1), (11, 1)])
def test_more_rows_a_step_than_there_are(rows, accumulate):
    with pytest.raises(DataError, match="the data fill 10 row"):
        Loader(ROWS, rows_per_batch=rows, accumulation_steps=accumulate)


@pytest.mark.parametrize("epochs", [0.0, 1e-12, 1e30])
def test_epochs_that_are_no_number_of_steps(epochs):
    with pytest.raises(ConfigError, match=r"num_epochs = .*expected from 1 to 2,147,483,647"):
        Loader(ROWS, rows_per_batch=2).num_steps(epochs)
    assert Loader(ROWS, rows_per_batch=2).num_steps(epochs, max_steps=7) == 7

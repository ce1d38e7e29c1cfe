"""At most n pairs of a dialogue in a step: how units are dealt, and the order in which rows come."""

import itertools
from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.data.loader import Loader
from empathax.data.packing import pack
from empathax.data.passes import PassOrder, deal
from empathax.data.prefix_tree import ScoredSequence
from empathax.errors import ConfigError

TURNS = st.lists(st.integers(0, 9), max_size=12)


def dialogues(turns, num_tokens=20):
    """Dialogues of unlike tokens, one unit a turn; each prompt is a prefix of the next."""
    number, groups = itertools.count(), []
    for first, num_turns in enumerate(turns):
        history = np.full(num_tokens * max(num_turns, 1), first, np.int32)
        groups.append(
            [
                (ScoredSequence(history[: num_tokens * (turn + 1)], np.array([99, turn], np.int32), next(number)),)
                for turn in range(num_turns)
            ]
        )
    return groups


def ids(group):
    return [unit[0].sequence_id for unit in group]


def test_dealt_by_hand():
    groups = dialogues([5, 1, 2])
    passes = [[ids(group) for group in dealt] for dealt in deal(groups, 2)]
    # three runs of the first; the others begin where it ended
    assert passes == [[[0], [5]], [[1, 2], [6, 7]], [[3, 4]]]
    assert [[ids(group) for group in dealt] for dealt in deal(groups, 0)] == [[[0, 1, 2, 3, 4], [5], [6, 7]]]
    assert deal([], 2) == deal([[]], 2) == [[]]


@given(TURNS, st.integers(1, 4))
def test_every_unit_in_one_pass_and_few_of_a_dialogue_in_each(turns, limit):
    groups = dialogues(turns)
    passes = deal(groups, limit)
    assert sorted(i for dealt in passes for group in dealt for i in ids(group)) == list(range(sum(turns)))
    owner = {i: number for number, group in enumerate(groups) for i in ids(group)}
    for dealt in passes:
        counts = Counter(owner[i] for group in dealt for i in ids(group))
        assert max(counts.values(), default=0) <= limit
        assert len(counts) == len(dealt)


@settings(max_examples=25, deadline=None)
@given(TURNS, st.integers(1, 4), st.sampled_from(["tree", "pair", "none"]))
def test_rows_hold_every_unit_once_and_know_their_dialogues(turns, limit, packing):
    groups = dialogues(turns)
    rows = pack(groups, packing, 256, max_units=limit)
    owner = {i: number for number, group in enumerate(groups) for i in ids(group)}
    found = [rows.sequence_ids(row).tolist() for row in range(len(rows))]
    assert sorted(i for row in found for i in row) == list(range(sum(turns)))
    assert [dict(row) for row in rows.dialogues] == [Counter(owner[i] for i in row) for row in found]
    assert sum(rows.pass_sizes) == len(rows)
    ends = np.cumsum([0, *rows.pass_sizes])
    for start, stop in itertools.pairwise(ends):
        counts = Counter(owner[i] for row in found[start:stop] for i in row)
        assert max(counts.values(), default=0) <= limit


def most_of_a_dialogue(rows, loader, steps):
    """The most units of one dialogue in each of the first `steps` steps."""

    def units(step):
        return sum((Counter(dict(rows.dialogues[int(row)])) for row in loader.row_ids(step).ravel()), Counter())

    return [max(units(step).values()) for step in range(steps)]


@pytest.mark.parametrize("rows_per_batch", [1, 2, 3, 7])
@pytest.mark.parametrize("limit", [1, 2])
def test_no_step_holds_more_than_the_limit_between_passes_and_epochs_too(limit, rows_per_batch):
    turns = np.random.default_rng(0).integers(1, 9, 150).tolist()
    rows = pack(dialogues(turns), "tree", 256, max_units=limit)
    loader = Loader(rows, rows_per_batch=rows_per_batch, seed=4)
    steps = 3 * len(rows) // rows_per_batch
    assert max(most_of_a_dialogue(rows, loader, steps)) == limit
    without = pack(dialogues(turns), "tree", 256)
    assert len(without.pass_sizes) == 1
    assert len(without) < len(rows)


def order_of(**changes):
    settings = {"rows_per_step": 3, "seed": 0, "shuffle": True, **changes}
    return PassOrder((4, 4), [[(row % 4, 1)] for row in range(8)], 1, **settings)


def test_every_row_once_an_epoch_whatever_is_read_first():
    order = order_of()
    epochs = [[order[8 * epoch + place] for place in range(8)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert all(max(epoch[:4]) < 4 for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert [order_of()[16 + place] for place in range(8)] == epochs[2]
    assert len(order) % 8 == 0


def test_a_row_that_does_not_fit_waits_for_the_next_step():
    # pass 0 leaves row 3 (dialogue 3) for step 1; of pass 1, rows 4 and 5 join it, dialogue 3 comes later
    order = order_of(shuffle=False)
    assert [order[place] for place in range(8)] == [0, 1, 2, 3, 4, 5, 6, 7]
    blocked = PassOrder((2, 2), [[(0, 1)], [(1, 1)], [(1, 1)], [(0, 1)]], 1, rows_per_step=3, seed=0, shuffle=False)
    # step 0 holds both dialogues and no row of pass 1 is free of them: the one exception there is
    assert [blocked[place] for place in range(4)] == [0, 1, 2, 3]
    waits = PassOrder((3, 3), [[(d, 1)] for d in (0, 1, 2, 2, 0, 1)], 1, rows_per_step=2, seed=0, shuffle=False)
    assert [waits[place] for place in range(6)] == [0, 1, 2, 4, 3, 5]


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_read_slices_of_one_batch(hosts):
    turns = np.random.default_rng(1).integers(1, 9, 60).tolist()
    rows = pack(dialogues(turns), "tree", 256, max_units=2)

    def loader(host=0, count=1):
        return Loader(rows, rows_per_batch=4, accumulation_steps=2, seed=5, parts=(host,), num_parts=count)

    for step in (0, 3, 11):
        parts = [loader(host, hosts).batch_at(step) for host in range(hosts)]
        joined = jax.tree.map(lambda *arrays: np.concatenate(arrays, axis=1), *parts)
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, joined, loader().batch_at(step))))
    later = next(iter(loader().iterate(7, 8)))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, later, loader().batch_at(7))))


def test_passes_shorter_than_a_step_are_refused():
    rows = pack(dialogues([6, 6, 6]), "tree", 256, max_units=1)
    with pytest.raises(ConfigError, match=r"max_pairs_per_dialogue = 1 deals .* 6 passes.*raise .* or lower"):
        Loader(rows, rows_per_batch=3)


def test_the_rows_depend_on_the_limit():
    groups = dialogues([6, 6, 6])
    assert pack(groups, "tree", 256, max_units=2).fingerprint() != pack(groups, "tree", 256).fingerprint()

"""Rows: every trained token once, pairs together, prefixes repeated where a tree is split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.data.packing import pack, packing_report
from empathax.data.prefix_tree import ScoredSequence
from empathax.data.row_plan import best_fit, split_group
from empathax.errors import ConfigError

SIZES = list(enumerate([(90, 10), (14, 6), (76, 4), (28, 12)]))  # prompt and reply tokens


def dialogues(turns, paired, seed=0):
    """A dialogue for each number of turns; each prompt is a prefix of the next."""
    rng = np.random.default_rng(seed)
    groups, number = [], 0
    for num_turns in turns:
        history, group = rng.integers(0, 50, 5), []
        for _ in range(num_turns):
            replies = [rng.integers(0, 50, rng.integers(1, 9)) for _ in range(2 if paired else 1)]
            group.append(tuple(_sequence(history, reply, number + n) for n, reply in enumerate(replies)))
            number += len(replies)
            history = np.concatenate([history, replies[0], rng.integers(0, 50, rng.integers(1, 9))])
        groups.append(group)
    return groups


def _sequence(prompt, reply, number):
    return ScoredSequence(prompt.astype(np.int32), reply.astype(np.int32), number)


def trained(rows):
    """{sequence id: (its visible context before each target, targets)}, read from the arrays of every row."""
    found = {}
    for row in range(len(rows)):
        batch = rows[row]
        for slot, sequence_id in enumerate(batch.sequence_id_BS):
            if sequence_id < 0:
                continue
            chosen = (batch.sequence_index_BM == slot) & (batch.weight_BM > 0)
            queries = batch.query_index_BM[chosen]
            contexts = []
            for query in queries:
                visible = np.flatnonzero((np.arange(len(batch.token_ids_BT)) <= query) & (query < batch.subtree_end_BT))
                contexts.append(batch.token_ids_BT[visible].tolist())
            assert sequence_id not in found
            found[int(sequence_id)] = (contexts, batch.target_id_BM[chosen].tolist())
    return found


@pytest.mark.parametrize("packing", ["tree", "pair", "none"])
@pytest.mark.parametrize("paired", [True, False])
@settings(max_examples=15)
@given(
    turns=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 5), length=st.sampled_from([0, 384])
)
def test_every_trained_token_once_with_its_whole_context(packing, paired, turns, seed, length):
    groups = dialogues(turns, paired, seed)
    rows = pack(groups, packing, length, max_length=128)
    found = trained(rows)
    sequences = {s.sequence_id: s for group in groups for unit in group for s in unit}
    assert found.keys() == sequences.keys()
    assert rows.num_sequences == len(sequences)
    for number, (contexts, targets) in found.items():
        ids = sequences[number].token_ids().tolist()
        first = len(sequences[number].prompt_ids)
        assert targets == ids[first:]
        assert contexts == [ids[:end] for end in range(first, len(ids))]


@pytest.mark.parametrize("packing", ["tree", "pair", "none"])
def test_pairs_lie_in_one_row(packing):
    rows = pack(dialogues([30, 3, 1, 12], paired=True), packing, {"tree": 384, "pair": 384, "none": 640}[packing])
    pairs = set()
    for row in range(len(rows)):
        batch = rows[row]
        used = batch.pair_weight_BP > 0
        chosen = batch.sequence_id_BS[batch.chosen_index_BP[used]]
        rejected = batch.sequence_id_BS[batch.rejected_index_BP[used]]
        pairs |= set(zip(chosen.tolist(), rejected.tolist(), strict=True))
    assert pairs == {(2 * n, 2 * n + 1) for n in range(46)}


def test_shapes_and_unused_slots():
    rows = pack(dialogues([3, 2], paired=True), "tree")
    assert (rows.sizes.tokens % 128, rows.sizes.trained % 32, rows.sizes.sequences % 8, rows.sizes.pairs % 8) == (
        0,
    ) * 4
    batch = rows.empty_row()
    np.testing.assert_array_equal(batch.subtree_end_BT, np.arange(rows.sizes.tokens) + 1)
    assert not batch.weight_BM.any()
    assert not batch.pair_weight_BP.any()
    assert set(batch.sequence_id_BS.tolist()) == {-1}
    assert batch.token_ids_BT.dtype == np.int32
    assert batch.weight_BM.dtype == np.float32
    used = sum(tree.num_tokens for tree in rows.trees)
    full = rows[0]
    np.testing.assert_array_equal(full.subtree_end_BT[used:], np.arange(used, rows.sizes.tokens) + 1)


@pytest.mark.parametrize("packing", ["tree", "pair", "none"])
def test_lengths_of_replies_by_id(packing):
    groups = dialogues([3, 7, 1], paired=True)
    lengths = pack(groups, packing, row_length=256).reply_lengths()
    wanted = {s.sequence_id: len(s.reply_ids) for group in groups for unit in group for s in unit}
    assert dict(enumerate(lengths.tolist())) == wanted


def test_no_pairs_in_rows_of_single_replies():
    rows = pack(dialogues([3], paired=False), "tree")
    assert rows.sizes.pairs == 0
    assert rows[0].chosen_index_BP.shape == (0,)


def test_a_common_beginning_is_laid_out_once_a_row():
    groups = dialogues([1, 1, 1], paired=False)
    system = np.arange(100, 140)
    groups = [
        [(_sequence(np.concatenate([system, s.prompt_ids]), s.reply_ids, s.sequence_id),) for (s,) in group]
        for group in groups
    ]
    rows = pack(groups, "tree", 128)
    apart = sum(unit[0].num_tokens for group in groups for unit in group)
    assert len(rows) == 1
    assert rows.trees[0].num_tokens <= apart - 2 * len(system)


def test_packing_nothing():
    rows = pack([], "tree")
    assert len(rows) == 0
    assert rows.num_sequences == 0
    assert packing_report(rows, [])["tokens"] == 0


def test_a_unit_longer_than_the_row_is_an_error_that_says_what_to_do():
    groups = [[(_sequence(np.arange(300), np.arange(3), 0),)]]
    with pytest.raises(ConfigError, match=r"row_length = 256.*takes 303 tokens.*384 or more"):
        pack(groups, "tree", 256)
    assert pack(groups, "tree", 0, max_length=200).sizes.tokens % 128 == 0


def test_splitting_repeats_the_prefix():
    (group,) = dialogues([40], paired=True)
    parts = split_group(group, 256)
    assert sorted(s.sequence_id for part in parts for unit in part for s in unit) == list(range(80))
    assert len(parts) > 1


@given(st.lists(st.integers(1, 100), max_size=60))
def test_best_fit_holds_every_item_once_and_no_row_overflows(sizes):
    rows = best_fit(sizes, 100)
    assert sorted(item for row in rows for item in row) == list(range(len(sizes)))
    assert all(sum(sizes[item] for item in row) <= 100 for row in rows)
    # no two rows could have been one
    loads = sorted(sum(sizes[item] for item in row) for row in rows)
    assert len(loads) < 2 or loads[0] + loads[1] > 100


def test_best_fit_by_hand():
    assert best_fit([6, 5, 4, 3, 2], 10) == [[0, 2], [1, 3, 4]]


def test_the_report_counts_what_sharing_saves():
    groups = dialogues([4, 4], paired=True)
    tree, none = (packing_report(pack(groups, packing), groups) for packing in ("tree", "none"))
    assert tree["units"] == 8
    assert none["tokens"] == none["tokens_per_unit_unshared"] * 8
    assert tree["times_fewer_tokens"] == pytest.approx(none["tokens"] / tree["tokens"])


def test_the_report_says_how_full_and_how_even_rows_are():
    groups = [[(_sequence(np.full(size, number), np.full(trained, 99), number),)] for number, (size, trained) in SIZES]
    report = packing_report(pack(groups, "none", 128), groups)
    # rows of 100 + 20 and 80 + 40 tokens, of 16 and 16 trained
    assert (report["rows"], report["passes"], report["trained_slots"]) == (2, 1, 32)
    assert report["fill_ratio"] == pytest.approx(240 / 256)
    assert report["trained_fill_ratio"] == pytest.approx(32 / 64)
    assert report["tokens_spread"] == report["trained_spread"] == 0
    assert report["tokens_per_unit"] == 60


def test_the_fingerprint_sees_one_token():
    groups = dialogues([4], paired=False)
    other = dialogues([4], paired=False)
    other[0][0] = (_sequence(other[0][0][0].prompt_ids + 1, other[0][0][0].reply_ids, 0),)
    assert pack(groups, "tree").fingerprint() == pack(dialogues([4], paired=False), "tree").fingerprint()
    assert pack(groups, "tree").fingerprint() != pack(other, "tree").fingerprint()


def test_a_row_longer_than_all_data_is_cut_to_them():
    groups = [[(ScoredSequence(np.full(100, i, np.int32), np.array([i], np.int32), i),)] for i in range(3)]
    rows = pack(groups, "tree", row_length=2**31 - 1)
    assert rows.sizes.tokens == 2**16
    assert pack(groups, "tree", row_length=512).sizes.tokens == 512

"""The layout of docs/prefix_tree.md, checked against definitions on random tries."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from empathax.data.prefix_tree import PrefixTrie, ScoredSequence, build_tree


def sequence(prompt, reply, number):
    return ScoredSequence(np.array(prompt, np.int32), np.array(reply, np.int32), number)


def ancestors(tree):
    """Each token's ancestors and itself, found from positions alone: the last token above of each smaller depth."""
    path, result = [], []
    for index, depth in enumerate(tree.positions):
        path = [*path[:depth], index]
        result.append(list(path))
    return result


ids = st.lists(st.integers(0, 3), min_size=1, max_size=8)
forests = st.lists(st.tuples(ids, ids), min_size=1, max_size=12).map(
    lambda pairs: [sequence(prompt, reply, number) for number, (prompt, reply) in enumerate(pairs)]
)


def test_a_dialogue_by_hand():
    # prompt 1 2, reply 3 4; next prompt 1 2 3 4 5, replies 6 7 and 8
    tree = build_tree([sequence([1, 2], [3, 4], 0), sequence([1, 2, 3, 4, 5], [6, 7], 1), sequence([1, 2], [9], 2)])
    assert tree.token_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 9]
    assert tree.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 2]
    assert tree.subtree_end.tolist() == [8, 8, 7, 7, 7, 7, 7, 8]
    assert tree.query_index.tolist() == [1, 2, 4, 5, 1]
    assert tree.target_id.tolist() == [3, 4, 6, 7, 9]
    assert tree.sequence_index.tolist() == [0, 0, 1, 1, 2]
    assert tree.sequence_ids.tolist() == [0, 1, 2]


def test_the_heaviest_child_comes_first_and_ties_keep_their_order():
    light, heavy, equal = sequence([1], [2], 0), sequence([1], [3, 4, 5], 1), sequence([1], [6], 2)
    assert build_tree([light, heavy, equal]).token_ids.tolist() == [1, 3, 4, 5, 2, 6]


def test_chains_without_sharing():
    tree = build_tree([sequence([1, 2], [3], 0), sequence([1, 2], [3], 1)], share=False)
    assert tree.token_ids.tolist() == [1, 2, 3, 1, 2, 3]
    assert tree.positions.tolist() == [0, 1, 2, 0, 1, 2]
    assert tree.subtree_end.tolist() == [3, 3, 3, 6, 6, 6]
    assert tree.query_index.tolist() == [1, 4]


@given(forests, st.booleans())
def test_every_sequence_is_read_back_from_the_layout(sequences, share):
    tree = build_tree(sequences, share)
    above = ancestors(tree)
    for number, expected in enumerate(sequences):
        chosen = tree.sequence_index == number
        assert tree.target_id[chosen].tolist() == expected.reply_ids.tolist()
        queries = tree.query_index[chosen]
        # the last query sees all but the last token of the sequence, in order
        assert tree.token_ids[above[queries[-1]]].tolist() == expected.token_ids()[:-1].tolist()
        assert tree.positions[queries].tolist() == list(range(len(expected.prompt_ids) - 1, expected.num_tokens - 1))


@given(forests, st.booleans())
def test_a_token_sees_its_ancestors_and_nothing_else(sequences, share):
    tree = build_tree(sequences, share)
    for index, expected in enumerate(ancestors(tree)):
        visible = [j for j in range(tree.num_tokens) if j <= index < tree.subtree_end[j]]
        assert visible == expected


@given(forests)
def test_a_shared_tree_has_one_token_for_each_distinct_prefix(sequences):
    prefixes = {tuple(s.token_ids()[: n + 1].tolist()) for s in sequences for n in range(s.num_tokens)}
    trie = PrefixTrie()
    for each in sequences:
        trie.insert(each.token_ids())
    assert build_tree(sequences).num_tokens == trie.num_tokens == len(prefixes)


@given(forests)
def test_siblings_are_ordered_by_weight(sequences):
    tree = build_tree(sequences)
    starts = {}
    for index, path in enumerate(ancestors(tree)):
        starts.setdefault(tuple(path[:-1]), []).append(int(tree.subtree_end[index]) - index)
    assert all(weights == sorted(weights, reverse=True) for weights in starts.values())

"""Replies with a label: whose label and whose mismatched reply; rows that hold what they were planned for."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.config import DataOptions
from empathax.config.losses import LABELED_ROWS, MISMATCHED_ROWS, REPLY_ROWS
from empathax.data.dataset import build_dataset
from empathax.data.labeled import partners
from empathax.data.packing import pack
from empathax.data.prefix_tree import ScoredSequence
from empathax.errors import DataError
from tests.data.test_packing import dialogues, trained

PACKINGS = ["tree", "pair", "none"]


def _rows(turns, packing, **changes):
    groups = dialogues(turns, paired=False)
    labels = np.random.default_rng(1).random(sum(turns)) < 0.5
    settings = {"row_length": 256, "labels": labels.tolist(), "mismatched": True} | changes
    return groups, labels, pack(groups, packing, **settings)


def _replies(rows):
    """(sequence id, label, sequence id of the mismatched reply or None) of every reply, row by row."""
    for number in range(len(rows)):
        batch = rows[number]
        columns = vars(batch.replies)
        for slot in np.flatnonzero(batch.replies.weight_BR):
            index, desirable, _, other, is_there = (int(columns[name][slot]) for name in columns)
            ids = batch.sequence_id_BS
            yield number, int(ids[index]), bool(desirable), int(ids[other]) if is_there else None


@pytest.mark.parametrize("packing", PACKINGS)
@settings(max_examples=10)
@given(turns=st.lists(st.integers(1, 4), min_size=1, max_size=6), length=st.sampled_from([0, 128, 256]))
def test_every_reply_has_its_label_and_a_row_its_own_mismatched_replies(packing, turns, length):
    groups, labels, rows = _rows(turns, packing, row_length=length, max_length=128)
    by_id = {unit[0].sequence_id: unit[0] for group in groups for unit in group}
    laid_out, dealt = trained(rows), {}
    for row, sequence_id, label, other in _replies(rows):
        assert label == labels[sequence_id]
        dealt.setdefault(row, []).append((sequence_id, other))
    assert sorted(i for pairs in dealt.values() for i, _ in pairs) == sorted(by_id)
    for pairs in dealt.values():
        prompts = {by_id[i].prompt_ids.tobytes() for i, _ in pairs}
        given_to = []
        for sequence_id, other in pairs:
            if other is None:
                continue
            assert other == sequence_id + len(by_id)
            contexts, targets = laid_out[other]
            assert contexts[0] == by_id[sequence_id].prompt_ids.tolist()  # the own prompt, with the reply to another
            sources = [i for i, _ in pairs if by_id[i].reply_ids.tolist()[: len(targets)] == targets]
            assert any(by_id[i].prompt_ids.tobytes() != by_id[sequence_id].prompt_ids.tobytes() for i in sources)
            given_to.append(targets)
        if len(prompts) == len(pairs) > 1:  # no prompt twice: every reply comes once more, a permutation
            assert sorted(given_to) == sorted(by_id[i].reply_ids.tolist() for i, _ in pairs)


def _reply(prompt, sequence_id, length=2):
    return ScoredSequence(np.array([prompt], np.int32), np.arange(length, dtype=np.int32), sequence_id)


def test_partners_have_other_prompts_where_there_are_any():
    twice = [_reply(n // 2, n) for n in range(8)]  # a desirable and an undesirable reply of each prompt
    found = partners(twice)
    assert sorted(found) == list(range(8))
    assert all(twice[other].prompt_ids != reply.prompt_ids for reply, other in zip(twice, found, strict=True))
    assert partners([_reply(7, n) for n in range(3)]) == [None] * 3
    assert partners([_reply(7, 0)]) == [None]
    mostly_one = [*[_reply(1, n) for n in range(4)], _reply(2, 4)]
    assert sum(other is not None for other in partners(mostly_one)) == 2


@pytest.mark.parametrize("packing", PACKINGS)
def test_all_packings_score_the_same_replies_in_the_same_contexts(packing):
    found = [trained(_rows([4, 2, 3], kind, row_length=1024)[2]) for kind in (packing, "tree")]
    assert found[0] == found[1]


def test_a_mismatched_reply_is_cut_to_the_longest_sequence():
    units = [(_reply(0, 0, 2),), (ScoredSequence(np.arange(5, dtype=np.int32), np.arange(40, 42, dtype=np.int32), 1),)]
    long = [(dataclasses.replace(units[0][0], reply_ids=np.arange(50, 59, dtype=np.int32)),), units[1]]
    rows = pack([long], "tree", 128, max_length=10, labels=[True, False], mismatched=True)
    assert trained(rows)[1 + 2][1] == [50, 51, 52, 53, 54]


def test_replies_without_mismatched_ones():
    _, labels, rows = _rows([3, 2], "tree", mismatched=False)
    assert rows.num_sequences == len(labels)
    assert all(other is None for *_, other in _replies(rows))
    assert rows.sizes.pairs == 0
    empty = rows.empty_row()
    assert not empty.replies.weight_BR.any()


def test_labels_are_in_the_fingerprint():
    groups, labels, rows = _rows([3, 2], "tree")
    again, other = (pack(groups, "tree", 256, labels=x, mismatched=True) for x in (labels.tolist(), (~labels).tolist()))
    assert rows.fingerprint() == again.fingerprint() != other.fingerprint()


def _labeled(count):
    return [
        {"prompt": f"I feel {n // 2}", "completion": f"{'I hear' if n % 2 else 'Stop'} {n}", "label": bool(n % 2)}
        for n in range(count)
    ]


@pytest.mark.parametrize("kind", [LABELED_ROWS, MISMATCHED_ROWS])
def test_rows_of_a_file(kind, write_lines, chatml):
    model = SimpleNamespace(family="qwen2", vocab_size=1000)
    path = str(write_lines("rows.jsonl", _labeled(20)))
    dataset = build_dataset(DataOptions(path=path, eval_fraction=0.3), kind, chatml, model)
    for rows, examples in ((dataset.train, dataset.train_examples), (dataset.eval, dataset.eval_examples)):
        assert rows.labels == tuple("I hear" in example.reply for example in examples)
        assert [example.is_wanted for example in examples] == list(rows.labels)
        matched = [other is not None for *_, other in _replies(rows)]
        assert all(matched) if kind == MISMATCHED_ROWS else not any(matched)
    assert dataset.report["counts"]["desirable replies to train on"] == sum(dataset.train.labels)
    of_sft = build_dataset(DataOptions(path=path, eval_fraction=0.3), REPLY_ROWS, chatml, model)
    assert all("I hear" in example.reply for example in of_sft.train_examples)
    assert of_sft.report["counts"]["undesirable replies, which sft leaves out"] == 10


def test_one_prompt_is_no_estimate(write_lines, chatml):
    rows = [{"prompt": "Hi", "completion": f"I am here {n}", "label": n > 0} for n in range(3)]
    options = DataOptions(path=str(write_lines("rows.jsonl", rows)), eval_fraction=0.0)
    with pytest.raises(DataError, match="no packed row holds two prompts"):
        build_dataset(options, MISMATCHED_ROWS, chatml, SimpleNamespace(family="qwen2", vocab_size=1000))

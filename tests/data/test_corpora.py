"""The real corpora beside the project: counts of their READMEs, and what prefix trees save on them."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from empathax.config import DataOptions
from empathax.config.losses import PAIRED_ROWS, REPLY_ROWS
from empathax.data.dataset import build_dataset
from empathax.data.sources import load_all, load_splits

CORPORA = Path(__file__).parents[3] / "shared" / "data"
pytestmark = pytest.mark.skipif(not CORPORA.is_dir(), reason="the corpora are not beside the project (../shared/data)")


def test_esconv_has_the_counts_of_its_readme():
    everything = DataOptions(path=str(CORPORA / "esconv"), seeker_first_only=False)
    splits = load_splits(everything, REPLY_ROWS)
    assert (len(splits.train), len(splits.eval)) == (910, 195)
    seeker_first = load_splits(DataOptions(path=str(CORPORA / "esconv")), REPLY_ROWS)
    assert (len(seeker_first.train), len(seeker_first.eval)) == (422, 94)
    strategies = Counter(s for row in splits.train for turn in row.meta["strategies"] for s in turn)
    assert strategies.total() == 12_759
    roles = [[message.role for message in row.messages] for row in splits.train]
    assert not any(a == b for turns in roles for a, b in pairwise(turns))


def test_failed_esconv_and_empathetic_dialogues():
    failed, _ = load_all(str(CORPORA / "esconv" / "failed_esconv.json"), DataOptions())
    assert len(failed) == 196
    dialogues, tally = load_all(str(CORPORA / "empathetic_dialogues"), DataOptions())
    assert len(dialogues) + tally.dropped.total() == 2_770
    assert not any("_comma_" in message.content for row in dialogues for message in row.messages)


def test_caregiving_pairs_are_held_out_by_prompt():
    splits = load_splits(DataOptions(path=str(CORPORA / "empathy_by_design")), PAIRED_ROWS)
    held, kept = ({row.prompt for row in rows} for rows in (splits.eval, splits.train))
    assert not held & kept
    assert len(held | kept) == 931
    assert len(splits.train) + len(splits.eval) == 999


def test_a_tree_saves_most_of_the_tokens(chatml):
    options = DataOptions(
        path=str(CORPORA / "esconv"), max_train_dialogues=12, max_eval_dialogues=2, max_length=100_000
    )
    model = SimpleNamespace(family="qwen2", vocab_size=chatml.vocab_size)
    figures = build_dataset(options, PAIRED_ROWS, chatml, model).report["train"]
    assert figures["times_fewer_tokens"] > 6
    assert figures["fill_ratio"] > 0.7

"""Which splits are taken, from their names alone."""

import pytest

from empathax.config.losses import LABELED_ROWS, MISMATCHED_ROWS, PAIRED_ROWS, REPLY_ROWS
from empathax.data.splits import choose_splits, split_name
from empathax.errors import DataError

ULTRAFEEDBACK = ("train_prefs", "train_sft", "train_gen", "test_prefs", "test_sft", "test_gen")


def choose(names, kind=PAIRED_ROWS, **named):
    return choose_splits("SOURCE", names, kind, **named)


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("train-00000-of-00002", "train"),
        ("train_prefs-00000-of-00001", "train_prefs"),
        ("train_prefs", "train_prefs"),
        ("train-1", "train"),
        ("train_part2", "train"),
        ("valid.shard-3", "valid"),
        ("preferences", "preferences"),
    ],
)
def test_the_name_of_a_files_split(stem, name):
    assert split_name(stem) == name


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [(PAIRED_ROWS, "prefs"), (LABELED_ROWS, "prefs"), (MISMATCHED_ROWS, "prefs"), (REPLY_ROWS, "sft")],
)
def test_the_objective_decides_where_names_say_what_splits_are_for(kind, wanted):
    assert choose(ULTRAFEEDBACK, kind) == {"train": f"train_{wanted}", "eval": f"test_{wanted}"}


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("train", "test"), {"train": "train", "eval": "test"}),
        (("train", "test", "validation"), {"train": "train", "eval": "validation"}),
        (("train", "train_gen", "test"), {"train": "train", "eval": "test"}),
        (("train", "train_dpo", "test", "test_dpo"), {"train": "train_dpo", "eval": "test_dpo"}),
        (("train_prefs", "test_sft"), {"train": "train_prefs"}),  # replies of another kind are not held out
        (("train_en", "test_en", "test_de"), {"train": "train_en", "eval": "test_en"}),
        (("train_sft",), {"train": "train_sft"}),  # the only one there is
        (("other",), {}),
    ],
)
def test_one_split_that_fits(names, chosen):
    assert choose(names) == chosen


def test_names_decide_against_the_objective():
    assert choose(ULTRAFEEDBACK, train_split="train_gen") == {"train": "train_gen", "eval": "test_gen"}
    assert choose(ULTRAFEEDBACK, eval_split="test_sft")["eval"] == "test_sft"
    assert choose(("a", "b"), train_split="b") == {"train": "b"}
    assert choose(("train", "valid", "test"), eval_split="test")["eval"] == "test"
    assert "eval" not in choose(("train", "test"), eval_split="valid alone")


@pytest.mark.parametrize(
    ("names", "named", "reason"),
    [
        (("train_en", "train_de"), {}, "found the splits train_de, train_en.*name one in data.train_split"),
        (("train_gen", "train_sft"), {}, "name one in data.train_split"),
        (("train", "test_en", "test_de"), {}, "name one in data.eval_split"),
        (ULTRAFEEDBACK, {"train_split": "train_pref"}, "train_pref'.*found the splits.*did you mean 'train_prefs'"),
        (ULTRAFEEDBACK, {"eval_split": "dev_prefs"}, "data.eval_split = 'dev_prefs'"),
    ],
)
def test_what_is_not_clear_is_refused_with_what_there_is(names, named, reason):
    with pytest.raises(DataError, match=reason):
        choose(names, **named)

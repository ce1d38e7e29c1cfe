"""Which of a source's splits are trained on and held out, from the splits' names.

Published sets name them by what they are for (`train_prefs`, `train_sft`, `test_prefs`): then the objective decides.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from empathax.config.losses import LABELED_ROWS, MISMATCHED_ROWS, PAIRED_ROWS, REPLY_ROWS
from empathax.errors import DataError, did_you_mean

VALIDATION_NAMES = ("valid", "validation", "dev", "eval", "heldout")
_HELD_OUT = {  # data.eval_split -> names of the split, the first that is there
    "valid": (*VALIDATION_NAMES, "test"),
    "test": ("test", "heldout"),
    "valid alone": VALIDATION_NAMES,
}
_PAIRS = ("prefs", "pref", "preference", "preferences", "dpo", "pairs", "rm")
_LABELED = ("kto", "unpaired", "labeled")
_FOR = {  # rows_kind -> words in the name of a split that is made for it
    REPLY_ROWS: ("sft",),
    PAIRED_ROWS: _PAIRS,
    LABELED_ROWS: (*_LABELED, *_PAIRS),
    MISMATCHED_ROWS: (*_LABELED, *_PAIRS),
}
_PURPOSES = frozenset((*_PAIRS, *_LABELED, "sft", "gen"))
# A file's number within its split: train-00000-of-00002, train_part1, train.3
_PART = re.compile(r"[-_.]((part|shard|chunk)[-_]?)?\d+([-_]of[-_]\d+)?$", re.IGNORECASE)


def split_name(stem: str) -> str:
    """The split that a file belongs to, from its name without suffixes."""
    return _PART.sub("", stem)


def choose_splits(
    source: str, names: Collection[str], rows_kind: str, train_split: str = "", eval_split: str = "valid"
) -> dict[str, str]:
    """{"train": name, "eval": name} of the splits `names`, each where there is one.

    `train_split` names a split; "" takes one whose name says train, and for several, what `rows_kind` needs.
    `eval_split` is valid, test, "valid alone" (which never takes the test split), or a split's name.

    Raises:
        DataError: a split that is named is not there, or several fit.
    """
    chosen: dict[str, str] = {}
    train = _named(source, names, "data.train_split", train_split) if train_split else None
    train = train or _fitting(source, names, "train", rows_kind, "")
    if train:
        chosen["train"] = train
    if eval_split not in _HELD_OUT:
        chosen["eval"] = _named(source, names, "data.eval_split", eval_split)
        return chosen
    for prefix in _HELD_OUT[eval_split]:
        if held_out := _fitting(source, names, prefix, rows_kind, train or ""):
            return {**chosen, "eval": held_out}
    return chosen


def _named(source: str, names: Collection[str], setting: str, wanted: str) -> str:
    found = next((name for name in names if name.lower() == wanted.lower()), None)
    if found is None:
        listing = ", ".join(sorted(names)) or "none"
        raise DataError(f"{source}: {setting} = {wanted!r}: found the splits {listing}{did_you_mean(wanted, names)}")
    return found


def _fitting(source: str, names: Collection[str], prefix: str, rows_kind: str, train: str) -> str | None:
    """The split that begins with `prefix` and fits: for what `train` is for, for the objective, or the plain one."""
    candidates = sorted(name for name in names if _words(name)[:1] == [prefix])
    if not candidates:
        return None
    purpose = _words(train)[1:]
    same = [name for name in candidates if train and _words(name)[1:] == purpose]
    meant = [name for name in candidates if set(_words(name)) & set(_FOR[rows_kind])]
    plain = [name for name in candidates if _words(name) == [prefix]]
    for fits in (same, meant, plain):
        if len(fits) == 1:
            return fits[0]
    if train:  # what is held out is never made for something else
        others = _PURPOSES - set(_FOR[rows_kind])
        candidates = [name for name in candidates if not set(_words(name)) & others]
    if len(candidates) > 1:
        setting = "data.eval_split" if train else "data.train_split"
        raise DataError(
            f"{source}: found the splits {', '.join(sorted(names))}, and several of them may be meant by {prefix!r}: "
            f"name one in {setting}"
        )
    return next(iter(candidates), None)


def _words(name: str) -> Sequence[str]:
    return re.split(r"[-_.]", name.lower()) if name else []

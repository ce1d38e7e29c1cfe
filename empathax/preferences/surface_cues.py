"""How far surface cues go: length, and the words of the two replies, without the prompt.

A pair of replies is a logistic regression's example in the manner of Bradley and Terry (1952): with x the difference
of their 0/1 word vectors, P(first is chosen) = sigmoid(w . x), so a pair read the other way round is no new example and
no intercept is needed. Fitted with an L2 penalty; accuracies are of pairs in folds that were not fitted, once without
every pair that has a reply of theirs (a reply that stands in many pairs would be known by heart), once with these.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import scipy.sparse
from jaxtyping import Float, Int

from empathax.evaluation.metrics.bootstrap import Interval, resample
from empathax.evaluation.metrics.statistics import MeanOfValues
from empathax.preferences.overlap import num_words, plain, spaced

NUM_FOLDS = 10
MIN_COUNT = 3  # pairs in which a word differs, for it to be a feature
PENALTY = 1.0
SEPARATES = 0.9  # bag-of-words accuracy from which on a set is warned of
LONG = 0.75  # the same of a rule that goes by length alone
_WORD = re.compile(r"\w+(?:'\w+)?|[?!.,]")


@dataclass(frozen=True)
class SurfaceCues:
    """How well length and words alone separate chosen from rejected replies.

    Attributes:
        num_pairs, num_dialogues: what was looked at.
        bag_accuracy: share of pairs that the bag of words orders rightly, fitted on other dialogues and on no pair
            that has one of their replies; 0.5 is chance, and where nothing is left to fit.
        bag_interval: its 95 % interval over dialogues; None for fewer than two.
        bag_accuracy_with_repeats: the same, fitted on all pairs of other dialogues.
        length_accuracy: the same of always taking the longer (or always the shorter) reply; equal lengths count half.
        longer_is_chosen: which of the two.
        chosen_words, rejected_words: mean words of the replies.
        cues: words with their weights, for chosen replies first (positive), then for rejected ones (negative).
    """

    num_pairs: int
    num_dialogues: int
    bag_accuracy: float
    bag_interval: Interval | None
    bag_accuracy_with_repeats: float
    length_accuracy: float
    longer_is_chosen: bool
    chosen_words: float
    rejected_words: float
    cues: tuple[tuple[str, float], ...]

    @property
    def words_alone(self) -> str:
        """How far words go, for the terminal."""
        repeats = f" ({self.bag_accuracy_with_repeats:.1%} with replies that return)"
        differ = self.bag_accuracy_with_repeats != self.bag_accuracy
        return f"words alone order {self.bag_accuracy:.1%} rightly{repeats if differ else ''}"

    def warnings(self) -> list[str]:
        """What a user should know before training on the set."""
        found = []
        if self.bag_accuracy >= SEPARATES:
            words = ", ".join(f'"{word}"' for word, weight in self.cues[:4] if weight > 0)
            found.append(
                f"Words alone order {self.bag_accuracy:.1%} of the pairs rightly: a model can reach a high reward "
                f"accuracy on this set without reading the conversation (cues: {words})"
            )
        elif self.bag_accuracy_with_repeats >= SEPARATES:
            found.append(
                f"Words order {self.bag_accuracy_with_repeats:.1%} of the pairs rightly where replies that return in "
                f"other pairs are known, {self.bag_accuracy:.1%} where not: such replies give themselves away"
            )
        if self.length_accuracy >= LONG:
            which = "longer" if self.longer_is_chosen else "shorter"
            found.append(f"The {which} reply is the chosen one in {self.length_accuracy:.1%} of the pairs")
        return found


def surface_cues(replies: Sequence[tuple[str, str]], dialogues: Sequence[str], num_cues: int = 12) -> SurfaceCues:
    """Cues of (chosen, rejected) texts; `dialogues` names the dialogue of each pair.

    Folds hold whole dialogues. A pair that also stands the other way round is in the fold of its mirror image.
    """
    plain_pairs = [(plain(chosen), plain(rejected)) for chosen, rejected in replies]
    words = [tuple(frozenset(_WORD.findall(spaced(text))) for text in pair) for pair in plain_pairs]
    vocabulary, x_PW = _differences(words)
    folds_P = np.array([_fold(key) for key in _fold_keys(plain_pairs, dialogues)], np.int64)
    replies_P2 = _reply_numbers(plain_pairs)
    right_P = _held_out_scores(x_PW, folds_P, replies_P2)
    with_repeats_P = right_P if _are_apart(folds_P, replies_P2) else _held_out_scores(x_PW, folds_P)
    lengths_P2 = np.array([[num_words(text) for text in pair] for pair in replies]).reshape(-1, 2)
    chosen_longer = float(_credit(lengths_P2[:, 0] - lengths_P2[:, 1]).mean()) if len(replies) else 0.5
    accuracy = float(right_P.mean()) if len(replies) else 0.5
    return SurfaceCues(
        num_pairs=len(replies),
        num_dialogues=len(set(dialogues)),
        bag_accuracy=accuracy,
        bag_interval=_interval(right_P, dialogues, accuracy),
        bag_accuracy_with_repeats=float(with_repeats_P.mean()) if len(replies) else 0.5,
        length_accuracy=max(chosen_longer, 1 - chosen_longer),
        longer_is_chosen=chosen_longer >= 0.5,
        chosen_words=float(lengths_P2[:, 0].mean()) if len(replies) else 0.0,
        rejected_words=float(lengths_P2[:, 1].mean()) if len(replies) else 0.0,
        cues=_strongest(vocabulary, fit(x_PW), num_cues),
    )


def fit(x_PW: scipy.sparse.csr_matrix) -> Float[np.ndarray, " W"]:
    """Weights that minimise PENALTY/2 |w|^2 + sum over pairs of log(1 + exp(-w . x))."""
    if not min(x_PW.shape):
        return np.zeros(x_PW.shape[1])

    def loss(w_W: np.ndarray) -> tuple[float, np.ndarray]:
        margins_P = x_PW @ w_W
        slope_P = scipy.special.expit(-margins_P)
        return float(np.logaddexp(0.0, -margins_P).sum() + PENALTY / 2 * w_W @ w_W), PENALTY * w_W - x_PW.T @ slope_P

    return scipy.optimize.minimize(loss, np.zeros(x_PW.shape[1]), jac=True, method="L-BFGS-B").x


def _differences(words: Sequence[tuple[frozenset[str], ...]]) -> tuple[list[str], scipy.sparse.csr_matrix]:
    """Words that are features, and the pairs' [P, W] matrix of +1 (in the chosen reply only) and -1 (rejected only)."""
    counts = Counter(word for chosen, rejected in words for word in chosen ^ rejected)
    vocabulary = sorted(word for word, count in counts.items() if count >= MIN_COUNT)
    number = {word: index for index, word in enumerate(vocabulary)}
    entries = [
        (row, number[word], 1.0 if word in chosen else -1.0)
        for row, (chosen, rejected) in enumerate(words)
        for word in sorted(chosen ^ rejected)
        if word in number
    ]
    rows, columns, values = zip(*entries, strict=True) if entries else ((), (), ())
    return vocabulary, scipy.sparse.csr_matrix((values, (rows, columns)), (len(words), len(vocabulary)))


def _held_out_scores(
    x_PW: scipy.sparse.csr_matrix, folds_P: Int[np.ndarray, " P"], replies_P2: Int[np.ndarray, "P 2"] | None = None
) -> Float[np.ndarray, " P"]:
    """1 for a pair that the fit of the other folds orders rightly, 0.5 where it cannot tell, 0 else. With `replies_P2`
    the fit leaves out pairs that have a reply of the fold."""
    right_P = np.full(x_PW.shape[0], 0.5)
    for fold in range(NUM_FOLDS):
        held_P = folds_P == fold
        fitted_P = ~held_P
        if replies_P2 is not None:
            fitted_P = ~np.isin(replies_P2, replies_P2[held_P]).any(axis=1) & ~held_P
        if held_P.any() and fitted_P.any():
            right_P[held_P] = _credit(x_PW[held_P] @ fit(x_PW[fitted_P]))
    return right_P


def _reply_numbers(plain_pairs: Sequence[tuple[str, str]]) -> Int[np.ndarray, "P 2"]:
    """Equal numbers for equal replies."""
    known: dict[str, int] = {}
    return np.array([[known.setdefault(text, len(known)) for text in pair] for pair in plain_pairs]).reshape(-1, 2)


def _are_apart(folds_P: Int[np.ndarray, " P"], replies_P2: Int[np.ndarray, "P 2"]) -> bool:
    """Whether every reply is in one fold only."""
    places = {(reply, fold) for pair, fold in zip(replies_P2.tolist(), folds_P.tolist(), strict=True) for reply in pair}
    return len(places) == len({reply for reply, _ in places})


def _credit(margins_P: Float[np.ndarray, " P"]) -> Float[np.ndarray, " P"]:
    return (1.0 + np.sign(margins_P)) / 2


def _fold_keys(plain_pairs: Sequence[tuple[str, str]], dialogues: Sequence[str]) -> list[Hashable]:
    known = set(plain_pairs)
    return [
        tuple(sorted(pair)) if pair[::-1] in known else dialogue
        for pair, dialogue in zip(plain_pairs, dialogues, strict=True)
    ]


def _fold(key: Hashable) -> int:
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:8], "big") % NUM_FOLDS


def _interval(right_P: Float[np.ndarray, " P"], dialogues: Sequence[str], accuracy: float) -> Interval | None:
    if not len(right_P):
        return None
    statistic = MeanOfValues(tuple(dialogues), tuple(right_P.tolist()))
    return resample({"bag_accuracy": statistic}, {"bag_accuracy": accuracy}, seed=0)["bag_accuracy"].interval()


def _strongest(vocabulary: Sequence[str], w_W: Float[np.ndarray, " W"], count: int) -> tuple[tuple[str, float], ...]:
    order = np.argsort(-w_W, kind="stable")
    picked = [*order[:count], *[index for index in order[::-1][:count][::-1] if index not in set(order[:count])]]
    return tuple((vocabulary[index], round(float(w_W[index]), 3)) for index in picked if w_W[index])

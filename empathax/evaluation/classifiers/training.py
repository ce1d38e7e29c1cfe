"""Training a classifier: encoder layers and heads together, with the epoch that is best on held-out data kept.

The loss is logit-adjusted cross-entropy (Menon et al. 2021, eq. 10): tau times the log of a class's share is added to
its logit while training, so that rare classes are not given up. Embeddings are not trained. A classifier is scored by
accuracy, F1 of every class and their mean, from the confusion counts.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from empathax.evaluation.classifiers.classifier import (
    NO_LABEL,
    Classifier,
    ClassifierConfig,
    Head,
    LabeledText,
    class_logits,
    classify,
    encode_rows,
)
from empathax.models.encoder.encoder import Params
from empathax.models.encoder.text import EncoderRow, EncoderText


@dataclass(frozen=True)
class TrainingOptions:
    """How a classifier is trained."""

    epochs: int = 2
    batch_size: int = 32
    encoder_lr: float = 2e-4  # of the last layer
    layer_lr_decay: float = 0.85  # each layer below learns that much slower
    frozen_layers: int = 0  # the first layers, which stay as they are
    head_lr: float = 1e-3
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    tau: float = 0.5  # of the logit adjustment: 0 none, 1 classes as if equally frequent
    label_smoothing: float = 0.05
    word_dropout: float = 0.1  # share of tokens replaced by [MASK]
    compute_dtype: str = "float32"
    seed: int = 0


@dataclass(frozen=True)
class HeadScores:
    """Scores of one head. `confusion_CC` counts [true class, predicted class]."""

    labels: tuple[str, ...]
    confusion_CC: np.ndarray

    @property
    def num_examples(self) -> int:
        """How many texts were classified."""
        return int(self.confusion_CC.sum())

    @property
    def accuracy(self) -> float:
        """Share of texts whose class was found."""
        return float(np.trace(self.confusion_CC) / max(1, self.num_examples))

    @property
    def f1(self) -> np.ndarray:
        """F1 of every class: 2 hits / (predicted + true); 0 for a class that is neither."""
        either_C = self.confusion_CC.sum(0) + self.confusion_CC.sum(1)
        return 2.0 * np.diag(self.confusion_CC) / np.maximum(either_C, 1)

    @property
    def macro_f1(self) -> float:
        """The mean of the classes' F1."""
        return float(self.f1.mean())

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {
            "examples": self.num_examples,
            "accuracy": self.accuracy,
            "macro_f1": self.macro_f1,
            "f1": dict(zip(self.labels, self.f1.tolist(), strict=True)),
            "confusion": self.confusion_CC.tolist(),
        }


class Trained(NamedTuple):
    """The best epoch's classifier, its scores on the held-out examples, and those of every epoch."""

    classifier: Classifier
    scores: dict[str, HeadScores]
    epochs: list[float]  # mean macro-F1 over the heads


def train_classifier(
    classifier: Classifier,
    train: Sequence[LabeledText],
    valid: Sequence[LabeledText],
    options: TrainingOptions,
    report: Callable[[str], None] = print,
) -> Trained:
    """Trains `classifier.params`; the epoch with the best mean macro-F1 on `valid` is returned."""
    rows = encode_rows(classifier, [e.text for e in train], [e.context for e in train])
    text = EncoderText(classifier.encoder.tokenizer, classifier.config.encoder)
    labels = np.array([example.labels for example in train], np.int32)
    steps_per_epoch = sum(1 for _ in epoch_batches(rows, options.batch_size, (0,)))
    trained, frozen = _split(classifier.params, options.frozen_layers)
    optimizer = _optimizer(options, classifier.config, steps_per_epoch * options.epochs)
    step = _make_step(classifier.config, optimizer, class_shares(labels, classifier.config.heads), options)
    opt_state, best, history, start = optimizer.init(trained), None, [], time.monotonic()
    mask_id = classifier.encoder.tokenizer.token_to_id("[MASK]")
    for epoch in range(options.epochs):
        rng, losses = np.random.default_rng((options.seed, epoch)), []
        for numbers in epoch_batches(rows, options.batch_size, (options.seed, epoch)):
            batch = text.batch([rows[number] for number in numbers], _width(rows, numbers))
            if mask_id is not None:
                masked_BT = (rng.random(batch.token_ids_BT.shape) < options.word_dropout) & batch.mask_BT
                batch = batch._replace(token_ids_BT=np.where(masked_BT, mask_id, batch.token_ids_BT))
            key = jax.random.key(rng.integers(2**31))
            trained, opt_state, loss = step(trained, frozen, opt_state, batch, labels[numbers], key)
            losses.append(loss)
        tuned = Classifier(classifier.config, _whole(trained, frozen), classifier.encoder)
        scores = evaluate_classifier(tuned, valid)
        history.append(float(np.mean([score.macro_f1 for score in scores.values()])))
        report(
            f"epoch {epoch + 1} of {options.epochs}: loss {float(np.mean(jax.device_get(losses))):.3f}, held-out "
            f"macro-F1 {history[-1]:.3f}, {time.monotonic() - start:.0f} s"
        )
        if best is None or history[-1] > max(history[:-1]):
            best = (tuned, scores)
    assert best is not None
    return Trained(*best, history)


def evaluate_classifier(classifier: Classifier, examples: Sequence[LabeledText]) -> dict[str, HeadScores]:
    """Scores of every head over the examples that have a label for it."""
    logits = classify(classifier, [e.text for e in examples], [e.context for e in examples])
    labels = np.array([example.labels for example in examples])
    return {
        head.name: head_scores(labels[known, number], logits[head.name][known].argmax(1), head.labels)
        for number, head in enumerate(classifier.config.heads)
        if (known := labels[:, number] != NO_LABEL).any()
    }


def head_scores(true_B: np.ndarray, predicted_B: np.ndarray, labels: Sequence[str]) -> HeadScores:
    """Scores of predicted against true class numbers."""
    confusion_CC = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion_CC, (true_B, predicted_B), 1)
    return HeadScores(tuple(labels), confusion_CC)


def class_shares(labels_BH: np.ndarray, heads: Sequence[Head]) -> dict[str, np.ndarray]:
    """Each head's share of every class among the labelled examples; a class without examples counts as one."""
    shares = {}
    for number, head in enumerate(heads):
        known = labels_BH[:, number][labels_BH[:, number] != NO_LABEL]
        counts = np.maximum(np.bincount(known, minlength=len(head.labels)), 1)
        shares[head.name] = counts / counts.sum()
    return shares


def epoch_batches(rows: Sequence[EncoderRow], batch_size: int, seed: tuple[int, ...]) -> list[np.ndarray]:
    """Row numbers of an epoch's batches: shuffled, similar lengths together, batches in random order.

    The last rows that fill no batch are left to another epoch's shuffle.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows))[: len(rows) // batch_size * batch_size]
    lengths = np.array([len(row.token_ids) for row in rows])
    pool = 32 * batch_size
    pools = [order[start : start + pool] for start in range(0, len(order), pool)]
    ordered = [part[np.argsort(lengths[part], kind="stable")] for part in pools]
    batches = [batch for part in ordered for batch in part.reshape(-1, batch_size)]
    return [batches[number] for number in rng.permutation(len(batches))]


def _width(rows: Sequence[EncoderRow], numbers: np.ndarray) -> int:
    """The batch's length in steps of 16: few shapes to compile."""
    return math.ceil(max(len(rows[number].token_ids) for number in numbers) / 16) * 16


def _split(params: Params, num_frozen: int) -> tuple[Params, Params]:
    """(what is trained, what stays: embeddings and the first layers)."""
    layers = params["encoder"]["layers"]
    upper = jax.tree.map(lambda x: jnp.array(x[num_frozen:]), layers)
    lower = jax.tree.map(lambda x: x[:num_frozen], layers)
    frozen = {"embedding": params["encoder"]["embedding"]} | ({"lower_layers": lower} if num_frozen else {})
    return {"layers": upper, "heads": jax.tree.map(jnp.array, params["heads"])}, frozen


def _joined(trained: Params, frozen: Params) -> Params:
    return {"encoder": {**frozen, "layers": trained["layers"]}, "heads": trained["heads"]}


def _whole(trained: Params, frozen: Params) -> Params:
    """The classifier's parameters in their usual tree, in memory of their own: the step reuses that of `trained`."""
    trained = jax.tree.map(jnp.array, trained)
    layers = trained["layers"]
    if "lower_layers" in frozen:
        layers = jax.tree.map(lambda low, high: jnp.concatenate([low, high]), frozen["lower_layers"], layers)
    return {"encoder": {"embedding": frozen["embedding"], "layers": layers}, "heads": trained["heads"]}


def _optimizer(options: TrainingOptions, config: ClassifierConfig, num_steps: int) -> optax.GradientTransformation:
    """AdamW with linear warm-up and decay; heads and layers at rates of their own."""
    warmup = max(1, round(options.warmup_ratio * num_steps))
    rate = optax.join_schedules(
        [optax.linear_schedule(0.0, 1.0, warmup), optax.linear_schedule(1.0, 0.0, max(1, num_steps - warmup))], [warmup]
    )
    depth = np.arange(config.encoder.num_layers - options.frozen_layers)[::-1]
    by_layer = options.encoder_lr * options.layer_lr_decay ** depth.astype(np.float32)

    def scaled(updates: Params) -> Params:
        layers = jax.tree.map(lambda u: u * by_layer.reshape(-1, *[1] * (u.ndim - 1)), updates["layers"])
        return {"layers": layers, "heads": jax.tree.map(lambda u: u * options.head_lr, updates["heads"])}

    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_adam(b2=0.98),
        optax.add_decayed_weights(options.weight_decay, mask=lambda p: jax.tree.map(lambda x: x.ndim >= 2, p)),
        optax.stateless(lambda updates, _: scaled(updates)),
        optax.scale_by_learning_rate(rate),
    )


def _make_step(
    config: ClassifierConfig,
    optimizer: optax.GradientTransformation,
    shares: dict[str, np.ndarray],
    options: TrainingOptions,
) -> Callable[..., Any]:
    def loss_of(trained: Params, frozen: Params, batch: Any, labels_BH: jax.Array, key: jax.Array) -> jax.Array:
        logits = class_logits(
            _joined(trained, frozen), config, *batch, compute_dtype=jnp.dtype(options.compute_dtype), dropout_key=key
        )
        losses = [
            adjusted_loss(logits[head.name], labels_BH[:, number], shares[head.name], options)
            for number, head in enumerate(config.heads)
        ]
        return sum(losses[1:], losses[0])

    def step(trained: Params, frozen: Params, opt_state: Any, batch: Any, labels_BH: jax.Array, key: jax.Array) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(trained, frozen, batch, labels_BH, key)
        updates, opt_state = optimizer.update(grads, opt_state, trained)
        return optax.apply_updates(trained, updates), opt_state, loss

    return jax.jit(step, donate_argnums=(0, 2))


def adjusted_loss(
    logits_BC: jax.Array, labels_B: jax.Array, shares_C: np.ndarray, options: TrainingOptions
) -> jax.Array:
    """Mean logit-adjusted cross-entropy with smoothed labels over the labelled rows, nats."""
    known_B = labels_B != NO_LABEL
    adjusted_BC = logits_BC + options.tau * jnp.log(jnp.asarray(shares_C, jnp.float32))
    targets_BC = optax.smooth_labels(jax.nn.one_hot(labels_B, len(shares_C)), options.label_smoothing)
    losses_B = optax.softmax_cross_entropy(adjusted_BC, targets_BC)
    return jnp.sum(jnp.where(known_B, losses_B, 0.0)) / jnp.maximum(known_B.sum(), 1)

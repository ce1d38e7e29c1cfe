"""Our losses on log-probs that are known: `make_loss` with a scorer that hands them over, all replies in one row."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathax.config import Config, DpoOptions
from empathax.data.batch import Batch
from empathax.models.architecture.presets import preset
from empathax.objectives.logprobs import TokenLogps, sequence_logps
from empathax.training import forward, metrics
from empathax.training.stages import dpo


def one_row(values: object, dtype: type = np.int32) -> np.ndarray:
    """An array of a batch of one row."""
    return np.asarray(values, dtype)[None]


def one_row_batch(mask: np.ndarray, **fields: object) -> Batch:
    """Replies of the tokens `mask` [replies, longest] in one row, without pairs unless `fields` say so; only what the
    losses read is real."""
    rows, columns = np.nonzero(mask)
    nothing = {name: one_row([]) for name in ("chosen_index_BP", "rejected_index_BP", "pair_weight_BP")}
    return Batch(
        token_ids_BT=one_row([0]),
        positions_BT=one_row([0]),
        subtree_end_BT=one_row([1]),
        query_index_BM=one_row(rows),
        target_id_BM=one_row(columns),
        sequence_index_BM=one_row(rows),
        weight_BM=one_row(np.ones(len(rows)), np.float32),
        sequence_id_BS=one_row(np.arange(len(mask))),
        **(nothing | fields),
    )


def our_loss(
    logps: np.ndarray,
    ref_logps: np.ndarray,
    mask: np.ndarray,
    batch: Batch,
    options: DpoOptions,
    monkeypatch: pytest.MonkeyPatch,
    log_sum_squares: np.ndarray | None = None,
) -> tuple[dict[str, float], np.ndarray]:
    """(metrics, gradient by token) of log-probs [replies, longest]."""
    used = mask > 0
    squares = None if log_sum_squares is None else jnp.asarray(log_sum_squares[used])[None]

    def make_scorer(*args, sum_squares=False):
        def score(params, batch):
            zeros = jnp.zeros_like(params)
            tokens = TokenLogps(params, zeros, zeros, squares if sum_squares else None)
            sums = sequence_logps(params, batch.sequence_index_BM, batch.weight_BM, len(mask))
            return forward.Scored(tokens, *sums)

        return score

    monkeypatch.setattr(dpo, "make_scorer", make_scorer)
    loss_fn = dpo.STAGE.make_loss(preset("tiny-llama"), Config(dpo=options))

    def mean_loss(params, ref_params, batch):
        loss_sum, count, sums = loss_fn(params, ref_params, batch)
        return loss_sum / count, sums

    both = jax.value_and_grad(mean_loss, has_aux=True)
    (loss, sums), grad = both(*(jnp.asarray(values[used])[None] for values in (logps, ref_logps)), batch)
    values = metrics.finalize(jax.device_get(sums))
    assert values["loss"] == pytest.approx(float(loss), rel=1e-6)
    table = np.zeros_like(mask)
    table[used] = np.asarray(grad)[0]
    return values, table

"""Rows of a few short dialogues for tests of the compiled step: pairs that share histories, counts that differ."""

import dataclasses

import jax
import numpy as np

from empathax.data.loader import eval_batches
from empathax.data.packing import RowSizes, pack
from empathax.data.prefix_tree import ScoredSequence
from empathax.models.architecture.presets import preset
from empathax.training.stages.stage import find_stage

MODEL = preset("tiny-llama")
SIZES = RowSizes(tokens=128, trained=128, sequences=16, pairs=8)


def dialogues(num_dialogues, num_pairs=3, seed=0):
    """Pairs of a dialogue: each prompt goes on where the last chosen reply ended; some replies begin alike."""
    rng = np.random.default_rng(seed)
    tokens = lambda low, high: rng.integers(3, MODEL.vocab_size, rng.integers(low, high)).astype(np.int32)  # noqa: E731
    groups, sequence_id = [], 0
    for _ in range(num_dialogues):
        history, group = tokens(2, 8), []
        for _ in range(num_pairs):
            chosen, rejected = tokens(1, 9), tokens(1, 9)
            rejected[0] = chosen[0] if rng.random() < 0.5 else rejected[0]
            unit = tuple(ScoredSequence(history, reply, sequence_id + i) for i, reply in enumerate((chosen, rejected)))
            sequence_id += 2
            group.append(unit)
            history = np.concatenate([history, chosen, tokens(1, 6)])
        groups.append(group)
    return groups


def dialogue_batch(num_rows, seed=0):
    """Rows [B, ...] of one dialogue each; their counts of tokens and pairs differ."""
    groups = [dialogues(1, num_pairs, seed + num_pairs)[0] for num_pairs in range(1, num_rows + 1)]
    ids = iter(range(10**6))
    groups = [
        [tuple(dataclasses.replace(s, sequence_id=next(ids)) for s in unit) for unit in group] for group in groups
    ]
    return jax.tree.map(
        lambda *leaves: np.concatenate(leaves), *[one_row_batches([group], "tree")[0] for group in groups]
    )


def one_row_batches(groups, packing):
    """Batches of one row, all of one shape."""
    rows = pack(groups, packing, row_length=SIZES.tokens)
    return list(eval_batches(dataclasses.replace(rows, sizes=SIZES), 1))


def loss_sums(stage, config, mesh=None, model=MODEL):
    """(params, batch, reference parameters or None) -> the metric sums of a stage's loss on one batch, compiled."""
    loss_fn = find_stage(stage).make_loss(model, config, mesh)
    return jax.jit(lambda params, batch, ref_params=None: loss_fn(params, ref_params, batch)[2])


def with_steps(batch, accumulation_steps):
    size = len(batch.token_ids_BT) // accumulation_steps
    return jax.tree.map(lambda leaf: leaf.reshape(accumulation_steps, size, *leaf.shape[1:]), batch)

"""20 DPO steps on the same pairs, as one tree a dialogue and reply by reply: the same loss at every step."""

import jax
import numpy as np

from empathax.config import Config, DpoOptions
from empathax.data.loader import eval_batches
from empathax.data.packing import pack
from empathax.data.prefix_tree import ScoredSequence
from empathax.models.architecture.presets import preset
from empathax.models.transformer import init_params
from empathax.training.optimizer import make_optimizer
from empathax.training.state import init_state
from empathax.training.step import make_train_step

MODEL = preset("tiny-llama")
NUM_STEPS = 20


def _dialogues(count, turns=4):
    """Groups of pairs whose prompts are prefixes of each other; unlike lengths, the same in every group."""
    random = np.random.default_rng(5)
    lengths = random.integers(3, 12, (turns, 3))
    groups = []
    for _ in range(count):
        history, group = np.zeros(0, np.int32), []
        for turn in lengths:
            user, chosen, rejected = (random.integers(3, MODEL.vocab_size, length).astype(np.int32) for length in turn)
            prompt = np.concatenate([history, user])
            group.append(tuple(ScoredSequence(prompt, reply, 0) for reply in (chosen, rejected)))
            history = np.concatenate([prompt, chosen])
        groups.append(group)
    return groups


def _losses(groups, packing):
    config = Config(dpo=DpoOptions(learning_rate=1e-3, schedule="constant", warmup_ratio=0.0, beta=0.5))
    tx, schedule = make_optimizer(config.dpo, NUM_STEPS)
    step = make_train_step("dpo", MODEL, config, tx, schedule)
    state, reference = init_state(init_params(MODEL, 0), tx), init_params(MODEL, 0)
    losses = []
    for group in groups:
        rows = pack([group], packing, row_length=256)
        batch = jax.tree.map(lambda array: array[None], next(eval_batches(rows, len(rows))))
        state, metrics = step(state, batch, reference)
        losses.append(float(metrics["loss"]))
    return losses


def test_tree_and_none_give_the_same_losses_for_20_steps():
    dialogues = _dialogues(5)
    groups = [dialogues[step % len(dialogues)] for step in range(NUM_STEPS)]
    tree, none = _losses(groups, "tree"), _losses(groups, "none")
    assert tree[0] > 0.69 > 0.6 > tree[-1]  # it learns
    np.testing.assert_allclose(tree, none, atol=1e-4, rtol=0)

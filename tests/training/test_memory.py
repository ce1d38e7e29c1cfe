"""Settings that save memory save it: what the compiler plans for a step, and what the state holds."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from empathax.config import Config, DpoOptions, ModelOptions
from empathax.models.transformer import abstract_params
from empathax.objectives.logprobs import token_logps
from empathax.training.optimizer import make_optimizer
from empathax.training.state import abstract_state
from tests.training.abstract_step import MODEL, ROWS, SIZES, compiled_step

WIDE = dataclasses.replace(MODEL, model_dim=256, ff_dim=512, head_dim=32)  # wide enough for Adafactor to factor


def _bytes(tree):
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _planned(resident=False, **dpo):
    config = Config(model=ModelOptions(vocab_chunk=256, remat="full"), dpo=DpoOptions(**dpo))
    return compiled_step(config, resident=resident).memory_analysis()


def test_micro_batches_and_references():
    whole, in_four, resident = _planned(), _planned(accumulation_steps=4), _planned(resident=True)
    assert in_four.temp_size_in_bytes < 0.5 * whole.temp_size_in_bytes
    reference = _bytes(abstract_params(MODEL)) - 4 * ROWS * SIZES["S"]  # the log-probs need not come with the batch
    assert resident.argument_size_in_bytes - whole.argument_size_in_bytes == pytest.approx(reference, abs=128)


def test_a_chunk_of_the_vocabulary_is_all_that_the_loss_holds():
    tokens, vocab_size = 512, 16384
    shapes = [
        jax.ShapeDtypeStruct((tokens, 32), jnp.float32),
        jax.ShapeDtypeStruct((vocab_size, 32), jnp.float32),
        jax.ShapeDtypeStruct((tokens,), jnp.int32),
    ]

    def temporaries(vocab_chunk):
        loss = lambda *arrays: token_logps(*arrays, vocab_chunk=vocab_chunk).logps_BM.sum()  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1))).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    # at least the chunk's logits, forward or backward; the gradient of the kernel comes on top of either
    assert temporaries(8192) - temporaries(1024) >= 4 * tokens * (8192 - 1024)


def _optimizer_bytes(**options):
    tx, _ = make_optimizer(DpoOptions(**options), 10)
    return _bytes(abstract_state(abstract_params(WIDE), tx).opt_state)


def test_optimizers_hold_what_the_docs_say():
    num_params = _bytes(abstract_params(WIDE)) // 4
    counter = 4
    assert _optimizer_bytes() == 8 * num_params + counter
    assert _optimizer_bytes(first_moment_dtype="bfloat16") == 6 * num_params + counter
    assert _optimizer_bytes(optimizer="lion") == 4 * num_params + counter
    assert _optimizer_bytes(optimizer="lion", first_moment_dtype="bfloat16") == 2 * num_params + counter
    assert _optimizer_bytes(optimizer="adafactor") < 0.05 * num_params

"""Token sums against numbers worked out by hand."""

import jax.numpy as jnp
import numpy as np

from empathax.objectives.logprobs import TokenLogps
from empathax.objectives.sft import sft_loss, token_sums

TOKENS = TokenLogps(
    logps_BM=jnp.array([[-1.0, -2.0, -8.0], [-0.5, -3.0, -9.0]]),
    entropy_BM=jnp.array([[0.5, 1.0, 7.0], [2.0, 0.25, 7.0]]),
    correct_BM=jnp.array([[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]),
)
WEIGHT = jnp.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])


def test_loss_sums_trained_tokens_only():
    loss_sum, count, sums = sft_loss(TOKENS, WEIGHT)
    assert (float(loss_sum), float(count)) == (6.5, 4.0)
    assert {name: float(value) for name, value in sums.items()} == {
        "nll": 6.5,
        "entropy": 3.75,
        "correct": 2.0,
        "tokens": 4.0,
    }


def test_sums_add_up_over_rows():
    whole = token_sums(TOKENS, WEIGHT)
    rows = [
        token_sums(TokenLogps(*(x[i] for x in (TOKENS.logps_BM, TOKENS.entropy_BM, TOKENS.correct_BM))), WEIGHT[i])
        for i in (0, 1)
    ]
    for name, value in whole.items():
        np.testing.assert_allclose(rows[0][name] + rows[1][name], value)

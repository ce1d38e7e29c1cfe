"""The best evaluation of a stage: which one it is, after a stop too, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from empathax.errors import ConfigError
from empathax.training.checkpoint import BestEvaluation, check_best_metric
from empathax.training.state import TrainState


def state(step):
    scalar = jnp.int32(step)
    return TrainState(scalar, {"w": jnp.full(3, float(step))}, {}, jnp.int32(0), jnp.int32(0))


def offered(directory, metric, values, is_new=True, first=1):
    with BestEvaluation(directory, metric, is_new) as best:
        for step, value in enumerate(values, start=first):
            best.offer(state(step), {metric: value})
        return best.step, np.asarray(best.params(state(0).params)["w"]).tolist()


@pytest.mark.parametrize(
    ("metric", "values", "step"),
    [
        ("perplexity", [5.0, 4.0, 4.5], 2),
        ("perplexity", [5.0, 4.0, 4.0], 2),  # of equal ones the earlier
        ("loss", [float("nan"), 3.0, float("inf")], 2),
        ("reward_accuracy", [0.5, 0.7, 0.6], 2),
        ("validation_gap", [0.2, 0.1, 0.05], 3),
    ],
)
def test_the_best_one_is_kept(tmp_path, metric, values, step):
    assert offered(tmp_path / "best", metric, values) == (step, [float(step)] * 3)


def test_it_is_still_known_after_a_stop(tmp_path):
    offered(tmp_path / "best", "perplexity", [5.0, 3.0])
    assert offered(tmp_path / "best", "perplexity", [3.0, 4.0], is_new=False, first=2)[0] == 2
    assert offered(tmp_path / "best", "perplexity", [9.0])[0] == 1  # a new stage forgets


def test_what_cannot_be_chosen_by_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="which one way is better"):
        check_best_metric("sft.best_metric", "entropy", 5)
    with pytest.raises(ConfigError, match="did you mean 'perplexity'"):
        check_best_metric("sft.best_metric", "perplexty", 5)
    with pytest.raises(ConfigError, match=r"set eval.every_steps"):
        check_best_metric("sft.best_metric", "perplexity", 0)
    with (
        BestEvaluation(tmp_path / "best", "rouge_l", True) as best,
        pytest.raises(ConfigError, match=r"rouge_l' is not measured .* perplexity .*in_loop_turns"),
    ):
        best.offer(state(1), {"perplexity": 2.0})

"""What a checkpoint is continued with: the settings that its steps depend on."""

import pytest

from empathax.errors import CheckpointError
from empathax.training.checkpoint import check_same_run, stage_options
from tests.training.tiny import tiny_config


def options(stage="dpo", **changes):
    return {"same_run": stage_options(tiny_config(**changes), stage)}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dpo__beta": 0.5}, r"dpo.beta was 0.1, is 0.5"),
        ({"dpo__loss": ("ipo",)}, r'dpo.loss was \["sigmoid"\], is \["ipo"\]'),
        ({"dpo__reference": "precomputed"}, "dpo.reference was"),
        ({"dpo__optimizer": "lion"}, "dpo.optimizer was"),
        ({"dpo__schedule": "linear"}, "dpo.schedule was"),
        ({"dpo__best_metric": "reward_accuracy"}, "dpo.best_metric was"),
        ({"sft__learning_rate": 0.5}, "sft.learning_rate was 0.001, is 0.5"),  # what dpo started from
        ({"stages": ("dpo",)}, "stages before was sft, is none"),
    ],
)
def test_what_a_stage_depends_on(changes, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        check_same_run(options(), options(**changes), "run")


def test_what_it_does_not_depend_on():
    check_same_run(options(), options(dpo__max_nonfinite_steps=9, tracking__every_steps=7, checkpoint__keep=5), "run")
    check_same_run(options("sft"), options("sft", dpo__beta=0.5), "run")  # a later stage's

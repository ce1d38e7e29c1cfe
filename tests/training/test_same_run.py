"""What a checkpoint is continued with: the settings that its steps depend on."""

import functools

import pytest

from empathax.errors import CheckpointError
from empathax.training.checkpoint import check_same_run, stage_meta, stage_options
from empathax.training.experiment import assemble
from empathax.training.stages.stage import find_stage, rows_kinds
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


@functools.cache
def meta(**changes):
    """What a checkpoint of SFT says, without a run."""
    whole = {"mesh__data": 1, "mesh__tensor": 8, "mesh__rules": "embed=,vocab=,heads=,kv_heads=,ff="}  # rows undivided
    config = tiny_config(stages=("sft",), **whole, **changes)
    stage, experiment = find_stage("sft"), assemble(config, rows_kinds(config), trains=config.stages)
    return stage_meta(experiment, stage, stage.num_steps(experiment))


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({"seed": 1}, ["seed was 0, is 1"]),
        ({"data__max_train_dialogues": 5}, ["train rows: not the same"]),
        ({"data__system_prompt": "none"}, ["system prompt: not the same"]),
        ({"data__max_length": 3000}, ["max_length was 4096, is 3000"]),
        ({"model__path": "random:tiny-llama:1"}, ["weights: not the same"]),
        ({"seed": 2, "data__packing": "none"}, ["seed was 0, is 2", "packing was tree, is none"]),
    ],
)
def test_what_the_rows_and_weights_are_is_compared_line_by_line(changes, lines):
    check_same_run(meta(), meta(), "run")
    with pytest.raises(CheckpointError, match="was trained on other data or with other settings") as caught:
        check_same_run(meta(), meta(**changes), "run")
    assert all(line in str(caught.value) for line in lines), str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer", "chat_template"])
def test_another_tokenizer_or_template_is_another_run(name):
    other = {**meta(), "same_run": {**meta()["same_run"], name: "0" * 64}}
    with pytest.raises(CheckpointError, match=f"{name.replace('_', ' ')}: not the same"):
        check_same_run(meta(), other, "run")

"""The plan's bytes against those of the step that a real run calls: same function, shapes and shardings."""

import jax
import pytest

from empathax.config.hardware import parse_hardware
from empathax.planning.compile import Subject, compile_plan
from empathax.planning.costs import compiled_bytes
from empathax.planning.model import find_model
from empathax.planning.rows import find_rows
from empathax.training import run as runs
from empathax.training.sweep import prepare, run
from tests.planning.short_rows import short_pairs
from tests.training.tiny import tiny_config


class Stopped(Exception):
    """The run got to its first step."""


def _called_step(monkeypatch, config, workdir):
    """`memory_analysis()` of the step that `train` calls first, compiled with the very arrays it was given."""
    found = []
    make_train_step = runs.make_train_step

    def make(*args, **kwargs):
        step = make_train_step(*args, **kwargs)

        def call(*arrays, **more_arrays):
            found.append(step.lower(*arrays, **more_arrays).compile().memory_analysis())
            raise Stopped

        return call

    monkeypatch.setattr(runs, "make_train_step", make)
    with pytest.raises(Stopped):
        run(prepare({"": config}, workdir), workdir)
    return found[0]


@pytest.mark.parametrize("reference", ["precomputed", "resident"])
def test_bytes_are_those_of_the_step_that_train_runs(monkeypatch, tmp_path, reference):
    config = tiny_config(
        stages=("dpo",),
        model__remat="full",
        dpo__rows_per_batch=2,
        dpo__reference=reference,
        mesh__data=1,
        mesh__fsdp=2,
        mesh__tensor=4,
        eval__num_replies=0,
        eval__rows_per_batch=2,
        data__path=short_pairs(tmp_path / "pairs.jsonl"),
        data__system_prompt="none",
        data__eval_fraction=0.3,
        data__max_train_dialogues=0,
        data__max_eval_dialogues=0,
        data__row_length=128,
        tracking__tensorboard=False,
    )
    model = find_model(config.model.path)
    subject = Subject(config, "dpo", model, *find_rows(config, "dpo", model))
    plan = compile_plan(subject, parse_hardware("cpu:8"), ("train",), lambda text: None)
    called = _called_step(monkeypatch, config, tmp_path / "run")
    planned = plan["bytes_per_device"]
    assert planned["total"] == compiled_bytes(called)
    assert called.temp_size_in_bytes > 0
    arguments = sum(planned[kind] for kind in ("parameters", "optimizer", "reference", "batch"))
    assert arguments == pytest.approx(called.argument_size_in_bytes, rel=1e-3)  # but for counters and unused ids
    assert sum(size for kind, size in planned.items() if kind != "total") == planned["total"]
    assert (planned["reference"] > 0) == (reference == "resident")
    assert jax.device_count() == plan["num_devices"] == 8

"""metrics.jsonl and TensorBoard files, read back with TensorBoard's own reader."""

import errno
import io
import json
import os

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from empathax.evaluation.report.level_plot import level_plot
from empathax.training import tracking
from empathax.training.tracking import RecordFile, Tracker


def _lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_both_records_hold_the_same_numbers(tmp_path):
    with Tracker(tmp_path, "sft", 0, tensorboard=True) as tracker:
        for step in (1, 2):
            tracker.scalars(step, "train", {"loss": 1.0 / step})
        tracker.text(2, "replies", "> hello\n\n- **base**: hi")
    assert _lines(tmp_path) == [
        {"step": 1, "stage": "sft", "split": "train", "loss": 1.0},
        {"step": 2, "stage": "sft", "split": "train", "loss": 0.5},
    ]
    events = EventAccumulator(str(tmp_path / "tensorboard" / "sft")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]
    assert events.Tensors("replies")[0].tensor_proto.string_val[0].decode() == "> hello\n\n- **base**: hi"


def test_pictures_are_as_large_as_they_are(tmp_path):
    counts = np.zeros((4, 4), int)
    png = level_plot([("model", counts), ("reference", counts)])
    with Tracker(tmp_path, "sft", 0, tensorboard=True) as tracker:
        tracker.image(3, "levels", png)
    shown = EventAccumulator(str(tmp_path / "tensorboard" / "sft")).Reload().Images("levels")
    picture = Image.open(io.BytesIO(shown[0].encoded_image_string))
    assert (shown[0].step, shown[0].width, shown[0].height) == (3, *picture.size)


def test_resume_forgets_what_came_after_the_checkpoint(tmp_path):
    with Tracker(tmp_path, "sft", 0, tensorboard=True) as tracker:
        for step in (1, 2, 3):
            tracker.scalars(step, "train", {"loss": float(step)})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "stage": "sf')  # killed while it wrote
    with Tracker(tmp_path, "sft", 1, tensorboard=True) as tracker:
        tracker.scalars(2, "train", {"loss": 20.0})
    assert [(line["step"], line["loss"]) for line in _lines(tmp_path)] == [(1, 1.0), (2, 20.0)]
    events = EventAccumulator(str(tmp_path / "tensorboard" / "sft")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1.0), (2, 20.0)]


def test_resume_of_one_stage_keeps_the_other(tmp_path):
    for stage in ("sft", "dpo"):
        with Tracker(tmp_path, stage, 0, tensorboard=False) as tracker:
            tracker.scalars(5, "train", {"loss": 1.0})
    with Tracker(tmp_path, "dpo", 0, tensorboard=False):
        pass
    assert [line["stage"] for line in _lines(tmp_path)] == ["sft"]


def test_only_the_leader_writes(tmp_path):
    with Tracker(tmp_path, "sft", 0, tensorboard=True, enabled=False) as tracker:
        tracker.scalars(1, "train", {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_an_evaluation_that_is_made_again_is_written_once(tmp_path):
    with Tracker(tmp_path, "sft", 0, tensorboard=False) as tracker:
        tracker.scalars(3, "train", {"loss": 1.0})
        tracker.scalars(3, "eval", {"perplexity": 2.0})
    with Tracker(tmp_path, "sft", 3, True, tensorboard=False) as tracker:
        tracker.scalars(3, "eval", {"perplexity": 2.0})
    assert [line["split"] for line in _lines(tmp_path)] == ["train", "eval"]


def test_a_full_disk_loses_no_line(tmp_path, monkeypatch, capsys):
    """Lines wait in memory, none is half on disk, and a checkpoint is not saved without the lines before it."""
    write, full = os.write, False

    def write_or_refuse(descriptor, data):
        if not full:
            return write(descriptor, data)
        write(descriptor, data[: len(data) // 2])  # a disk takes what fits
        return len(data) // 2

    monkeypatch.setattr(tracking.os, "write", write_or_refuse)
    with Tracker(tmp_path, "sft", 0, tensorboard=False) as tracker:
        for step in (1, 2, 3, 4):
            full = step in (2, 3)
            tracker.scalars(step, "train", {"loss": float(step)})
            assert bool(tracker.problem()) == full
            assert [line["step"] for line in _lines(tmp_path)] == ([1] if full else list(range(1, step + 1)))
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith(
        "cannot be written: No space left on device; training goes on, its lines are kept in memory"
    )
    assert said[1].endswith("is written again, with all that waited")
    assert len(said) == 2


def test_a_number_that_json_does_not_know_is_null(tmp_path):
    with Tracker(tmp_path, "sft", 0, tensorboard=False) as tracker:
        tracker.scalars(1, "train", {"loss": float("nan"), "grad_norm": float("-inf"), "accuracy": 0.5})
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()
    line = {"step": 1, "stage": "sft", "split": "train", "loss": None, "grad_norm": None, "accuracy": 0.5}
    assert _lines(tmp_path) == [line]


def _full(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_for_tensorboard_is_a_warning_and_no_more(tmp_path, monkeypatch):
    with Tracker(tmp_path, "sft", 0, tensorboard=True) as tracker:
        monkeypatch.setattr(tracking.EventFileWriter, "add_event", _full)
        with pytest.warns(UserWarning, match="TensorBoard files cannot be written any more: .*No space left"):
            tracker.scalars(1, "train", {"loss": 1.0})
        tracker.scalars(2, "train", {"loss": 2.0})  # a second warning would be an error
    assert [line["step"] for line in _lines(tmp_path)] == [1, 2]


def test_lines_wait_in_memory_while_the_disk_is_full(tmp_path, monkeypatch, capsys):
    path, write = tmp_path / "metrics.jsonl", os.write
    record = RecordFile(path)
    record.write({"step": 1})
    with monkeypatch.context() as patch:
        patch.setattr(tracking.os, "write", lambda descriptor, data: write(descriptor, data[: len(data) // 2]))
        record.write({"step": 2})
        assert path.read_text() == '{"step": 1}\n'  # no half lines
        patch.setattr(tracking.os, "write", _full)
        record.write({"step": 3})
    assert record.problem == f"{path} cannot be written: No space left on device"
    assert capsys.readouterr().err.count("training goes on, its lines are kept in memory") == 1
    record.write({"step": 4})
    assert (record.problem, [line["step"] for line in _lines(tmp_path)]) == ("", [1, 2, 3, 4])
    assert "is written again, with all that waited" in capsys.readouterr().err
    record.close()


def test_numbers_that_are_not_finite_are_null(tmp_path):
    with Tracker(tmp_path, "sft", 0, tensorboard=False) as tracker:
        tracker.scalars(1, "train", {"loss": float("nan"), "grad_norm": float("inf"), "tokens": 1.0})
    text = (tmp_path / "metrics.jsonl").read_text()
    assert text == '{"step": 1, "stage": "sft", "split": "train", "loss": null, "grad_norm": null, "tokens": 1.0}\n'

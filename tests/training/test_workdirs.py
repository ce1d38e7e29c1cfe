"""One run in a directory, and nothing but a run's is emptied."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from empathax.errors import CheckpointError, ConfigError
from empathax.training import workdirs
from empathax.training.workdirs import LOCK, MARK, open_sweep, open_workdir, record_saved, saved_step

OTHER = """
import pathlib, sys, time
from empathax.errors import exit_on_error
from empathax.training import workdirs
code = exit_on_error(lambda: workdirs.open_workdir(pathlib.Path(sys.argv[1]), True))()
print("ready", flush=True)
time.sleep(float(sys.argv[2]))
sys.exit(code)
"""


def other(run, seconds=0):
    command = [sys.executable, "-c", OTHER, str(run), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(workdirs, "BEAT", 0.2)
    monkeypatch.setattr(workdirs, "PATIENCE", 2.0)


def test_a_second_process_is_refused_and_empties_nothing(tmp_path):
    run = tmp_path / "run"
    open_workdir(run, False)
    (run / "config.json").write_text("{}")
    open_workdir(run, False)  # the same process may go on
    second = other(run)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 5
    assert "another process trains there" in said
    assert (run / "config.json").exists()
    workdirs.release()
    third = other(run)
    third.communicate(timeout=60)
    assert third.returncode == 0


def test_a_lock_ends_with_its_process(tmp_path):
    first = other(tmp_path / "run", 60)
    assert first.stdout.readline() == "ready\n"
    first.kill()
    first.communicate()
    open_workdir(tmp_path / "run", False)


def test_a_lock_that_nobody_touches_is_taken_over(tmp_path):
    """As of a machine that is gone, which a file server may not notice."""
    first = other(tmp_path / "run", 60)
    try:
        assert first.stdout.readline() == "ready\n"
        first.send_signal(signal.SIGSTOP)
        open_workdir(tmp_path / "run", False)
    finally:
        first.kill()
        first.communicate()


def test_overwriting_removes_what_a_run_wrote_and_says_so(tmp_path, capsys):
    run = tmp_path / "run"
    open_workdir(run, True)
    (run / "checkpoints" / "sft").mkdir(parents=True)
    (run / "rejected_rows_sft.txt").write_text("")
    (run / "notes.txt").write_text("mine")
    (run / "exported").mkdir()
    open_workdir(run, False)
    assert (run / "checkpoints").exists()
    open_workdir(run, True)
    assert sorted(entry.name for entry in run.iterdir()) == [MARK, LOCK, "exported", "notes.txt"]
    said = capsys.readouterr().err
    assert (
        f"removing the run in {run}: {MARK}, checkpoints, rejected_rows_sft.txt; left as it is: exported, notes.txt"
        in said
    )


def test_a_directory_that_cannot_be_written_is_a_setting_to_change(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written: Not a directory; choose another"):
        open_workdir(tmp_path / "file" / "run")

    def refuse(self, *args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(workdirs.Path, "touch", refuse)
    with pytest.raises(ConfigError, match="cannot be written: Read-only file system") as caught:
        open_workdir(tmp_path / "run")
    assert caught.value.exit_code == 2
    workdirs.release()


# what people mistype a --workdir as: a model, a dataset, a checkout, an older version's run, somebody's home
NO_RUNS = {
    "model": ["config.json", "model.safetensors", "tokenizer.json"],
    "data": ["train.jsonl", "metrics.jsonl"],
    "config alone": ["config.json"],
    "older run": ["config.json", "metrics.jsonl", "checkpoints", "report.md"],
    "hidden": [".bashrc"],
}


@pytest.mark.parametrize("names", NO_RUNS.values(), ids=NO_RUNS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_directory_of_something_else_is_never_touched(tmp_path, names, overwrite):
    for name in names:
        (tmp_path / name).write_text("precious")
    with pytest.raises(ConfigError, match=f"holds .*and no {MARK} says that training made them"):
        open_workdir(tmp_path, overwrite)
    with pytest.raises(ConfigError, match=r"and no \.empathax-sweep says"):
        open_sweep(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(names, "precious")


def test_what_a_run_reads_is_not_removed_first(tmp_path):
    run = tmp_path / "run"
    open_workdir(run)
    (run / "checkpoints" / "sft").mkdir(parents=True)
    (run / "kept").mkdir()
    open_workdir(run, True, [("model.path", run / "kept"), ("data.path", tmp_path)])
    (run / "checkpoints" / "sft").mkdir(parents=True)
    for path in (run / "checkpoints" / "sft", run / "checkpoints", run):
        with pytest.raises(ConfigError, match=r"model.path = .* --overwrite would remove first"):
            open_workdir(run, True, [("model.path", path)])
    assert (run / "checkpoints" / "sft").is_dir()


def test_the_mark_remembers_what_was_saved(tmp_path):
    open_workdir(tmp_path / "run")
    assert saved_step(tmp_path / "run", "sft") is None
    record_saved(tmp_path / "run", "sft", 4)
    record_saved(tmp_path / "run", "dpo", 2)
    open_workdir(tmp_path / "run")
    assert (saved_step(tmp_path / "run", "sft"), saved_step(tmp_path / "run", "dpo")) == (4, 2)
    for text in ("{", "[]", '{"saved": {"sft": "x"}}', "\0"):
        (tmp_path / "run" / MARK).write_text(text)
        with pytest.raises(CheckpointError, match="says which steps this run has saved"):
            saved_step(tmp_path / "run", "sft")

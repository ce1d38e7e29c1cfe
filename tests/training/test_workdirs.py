"""One run in a directory, and nothing but a run's is emptied."""

import signal
import subprocess
import sys

import pytest

from empathax.errors import ConfigError
from empathax.training import workdirs
from empathax.training.workdirs import LOCK, open_workdir

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


def test_overwriting_empties_a_runs_directory_and_no_other(tmp_path):
    run = tmp_path / "run"
    open_workdir(run, True)
    (run / "checkpoints" / "sft").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds files of something else"):
        open_workdir(run, True)
    (run / "config.json").write_text("{}")
    open_workdir(run, False)
    assert (run / "checkpoints").exists()
    open_workdir(run, True)
    assert [entry.name for entry in run.iterdir()] == [LOCK]
    open_workdir(run, False)  # as a start that was killed at once leaves it

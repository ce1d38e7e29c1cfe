"""launch/local.sh: two processes that really train together over loopback, and how their ends become one exit code."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.launch.dry_runs import ROOT
from tests.launch.slurm_cluster import free_ports

LOCAL = str(ROOT / "launch/local.sh")

# In place of Python: process 1 ends as it is told; process 0 waits for SIGTERM and ends with 75.
STAND_IN = """#!/usr/bin/env bash
cd {folder}
if [[ $JAX_PROCESS_ID = 1 && -n "{code}" ]]; then exit {code}; fi
trap 'echo $JAX_PROCESS_ID >> terms; exit 75' TERM
touch "ready$JAX_PROCESS_ID"
while true; do sleep 0.05; done
"""


def _stand_in(folder, code=""):
    path = folder / "python"
    path.write_text(STAND_IN.format(folder=folder, code=code))
    path.chmod(0o755)
    return [LOCAL, "--processes=2", f"--python={path}", "--", f"--workdir={folder}/run"]


@pytest.mark.slow
def test_two_processes_train_as_one_job(tmp_path):
    """The same mesh, and so the same record, as one process with both devices."""
    options = [f"--python={sys.executable}", f"--port={free_ports(1)[0]}"]
    records = []
    for name, count in (("two", ["--processes=2", "--devices=1"]), ("one", ["--devices=2"])):
        workdir = tmp_path / name
        train = ["--config=tests/launch/tiny_config.py", f"--workdir={workdir}"]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [LOCAL, *options, *count, "--", *train]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, env=environment)
        assert done.returncode == 0, done.stderr
        assert "data=2 x fsdp=1 x tensor=1 on cpu" in done.stdout
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        records.append([(line["stage"], line["split"], line["step"], line["loss"]) for line in lines])
    assert [record[:3] for record in records[0]] == [record[:3] for record in records[1]]
    assert [record[3] for record in records[0]] == pytest.approx([record[3] for record in records[1]], rel=1e-5)


def test_the_first_failure_stops_the_others_and_is_the_exit_code(tmp_path):
    done = subprocess.run(_stand_in(tmp_path, code="3"), capture_output=True, text=True, timeout=60)
    assert done.returncode == 3
    assert not (tmp_path / "terms").exists() or (tmp_path / "terms").read_text() == "0\n"


def test_sigterm_goes_to_all_once(tmp_path):
    with subprocess.Popen(_stand_in(tmp_path), stderr=subprocess.DEVNULL) as local:
        deadline = time.monotonic() + 30
        while not all((tmp_path / f"ready{index}").exists() for index in (0, 1)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        local.send_signal(signal.SIGTERM)
        assert local.wait(timeout=30) == 75
    assert sorted((tmp_path / "terms").read_text().split()) == ["0", "1"]

"""launch/slurm.sbatch on a real SLURM of one node, which the test starts and ends."""

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest

from tests.launch.dry_runs import ROOT
from tests.launch.slurm_cluster import cluster, why_not

# Of its own accord it runs nowhere: on a busy machine SLURM's own waits run out before the job's do.
WANTED = "EMPATHAX_TEST_SLURM"
REASON = why_not() if os.environ.get(WANTED) else f"starts a SLURM of its own: set {WANTED}=1 (make slurm)"
pytestmark = pytest.mark.skipif(bool(REASON), reason=REASON or "-")

# In place of Python: the first start waits for SIGTERM and saves (75), for longer than SLURM waits between the SIGTERM
# and the SIGKILL of a job that it ends (KillWait); the second start has it done.
TRAINER = """#!/usr/bin/env bash
trap 'sleep 3; echo "$SLURM_PROCID" >> {folder}/terms; exit 75' TERM
restarts=${{SLURM_RESTART_COUNT:-0}}
echo "$SLURM_PROCID of $SLURM_NTASKS, restart $restarts, $JAX_COORDINATOR_ADDRESS: $*" >> {folder}/starts
if [[ $restarts = 1 ]]; then exit 0; fi
while true; do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def slurm():
    # not in pytest's folder: munge wants a path that everybody may enter
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:
        Path(name).chmod(0o755)
        with cluster(Path(name)) as running:
            yield running


def _submit(slurm, folder, *arguments, **settings):
    options = ["--parsable", "--ntasks-per-node=2", "--gpus-per-node=0", "--time=10", f"--output={folder}/log"]
    script = str(ROOT / "launch/slurm.sbatch")
    return slurm.run("sbatch", *options, f"--chdir={ROOT}", script, *arguments, **settings)


def test_sigterm_puts_the_job_back_into_the_queue(slurm, tmp_path):
    """SIGTERM comes to the batch shell, as SLURM sends it before the time limit (--signal=B:TERM)."""
    trainer = tmp_path / "trainer"
    trainer.write_text(TRAINER.format(folder=tmp_path))
    trainer.chmod(0o755)
    number = _submit(slurm, tmp_path, "--config=c", "--workdir=/w", PYTHON=str(trainer))
    slurm.wait(number, "RUNNING", seconds=30)
    starts = tmp_path / "starts"
    slurm.until(lambda: starts.exists() and len(starts.read_text().splitlines()) == 2, seconds=30)
    slurm.run("scancel", "--batch", "--signal=TERM", number)
    slurm.wait(number, "PENDING", "FAILED", seconds=60)
    # Else it waits for two minutes. Not sooner: the node's daemon refuses ("Job credential revoked") what starts in the
    # second in which it ended the job.
    slurm.run("scontrol", "update", f"JobId={number}", "StartTime=now+3")
    fields = slurm.wait(number, "COMPLETED", "FAILED", seconds=60)
    log = (tmp_path / "log").read_text()
    assert fields["JobState"] == "COMPLETED", log
    assert fields["Restarts"] == "1"
    assert sorted((tmp_path / "terms").read_text().split()) == ["0", "1"]  # each task once
    assert "back into the queue" in log
    address = f":{61440 + int(number) % 4096}: -m empathax.train --multihost --config=c --workdir=/w"
    lines = sorted(starts.read_text().splitlines())
    assert [line.partition(", ")[0] for line in lines] == ["0 of 2", "0 of 2", "1 of 2", "1 of 2"]
    assert [line.split(", ")[1] for line in lines] == ["restart 0", "restart 1"] * 2
    assert all(line.endswith(address) for line in lines)


def test_any_other_code_ends_the_job(slurm, tmp_path):
    trainer = tmp_path / "trainer"
    trainer.write_text("#!/usr/bin/env bash\nexit 3\n")
    trainer.chmod(0o755)
    number = _submit(slurm, tmp_path, "--workdir=/w", PYTHON=str(trainer))
    fields = slurm.wait(number, "COMPLETED", "FAILED", seconds=60)
    assert (fields["JobState"], fields["ExitCode"], fields["Restarts"]) == ("FAILED", "3:0", "0")


@pytest.mark.slow
def test_two_tasks_train_as_one_job(slurm, tmp_path):
    arguments = ["--config=tests/launch/tiny_config.py", f"--workdir={tmp_path}/run"]
    settings = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    number = _submit(slurm, tmp_path, *arguments, **settings)
    fields = slurm.wait(number, "COMPLETED", "FAILED", "NODE_FAIL", "TIMEOUT", seconds=400)
    log = (tmp_path / "log").read_text()
    assert fields["JobState"] == "COMPLETED", log
    assert "data=2 x fsdp=1 x tensor=1 on cpu" in log
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "train"] == [1, 2]  # written once, by process 0

"""A real SLURM of one node on this machine: munge, controller and node daemon in a folder, ended with the test."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"  # where Debian keeps daemons

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=1
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why no cluster can be started here; empty if one can."""
    if os.geteuid() != 0:
        return "SLURM's daemons start jobs as other users: this needs root"
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return f"not installed: {', '.join(missing)} (Debian: slurm-wlm, munge)" if missing else ""


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Cluster:
    """SLURM's commands against the test's daemons."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}

    def run(self, *command: str, **settings: str) -> str:
        """The output of a command that has to succeed."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=self.environment | settings)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """scontrol's fields of a job."""
        text = self.run("scontrol", "--oneliner", "show", "job", number)
        return dict(word.split("=", 1) for word in text.split() if "=" in word)

    def until(self, condition: Callable[[], bool], seconds: float) -> None:
        """Waits for a condition; fails with the daemons' last words if it does not come true in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s\n{self._last_words()}"
            time.sleep(0.1)

    def wait(self, number: str, *states: str, seconds: float) -> dict[str, str]:
        """The job's fields when it is in one of `states`."""
        self.until(lambda: self.job(number)["JobState"] in states, seconds)
        return self.job(number)

    def _last_words(self) -> str:
        return "".join(f"{log.name}:\n{log.read_text()[-2000:]}\n" for log in self.folder.glob("*.log"))


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Starts the daemons with everything they write in `folder`, and ends these very processes."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONF.format(host=host, folder=folder, ports=free_ports(2)))
    slurm = Cluster(folder)
    files = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munged.pid", "seed-file": "munged.seed"}
    munged = ["munged", "--foreground", "--force", *[f"--{flag}={folder / name}" for flag, name in files.items()]]
    with ExitStack() as stack:
        for command in (munged, ["slurmctld", "-D", "-c"], ["slurmd", "-D", "-c", "-N", host]):
            output = stack.enter_context((folder / f"{command[0]}.out.log").open("w"))
            daemon = subprocess.Popen(command, stdout=output, stderr=output, env=slurm.environment)
            stack.callback(_end, daemon)
        slurm.until(lambda: _is_idle(slurm, host), seconds=60)
        try:
            yield slurm
        finally:  # a job's processes outlive the daemons
            slurm.run("scancel", "--partition=main")
            slurm.until(lambda: _is_idle(slurm, host), seconds=60)


def _is_idle(slurm: Cluster, host: str) -> bool:
    command = ["scontrol", "--oneliner", "show", "node", host]
    return " State=IDLE " in subprocess.run(command, capture_output=True, text=True, env=slurm.environment).stdout


def _end(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(timeout=20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()

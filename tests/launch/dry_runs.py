"""What the scripts in launch/ would run; `python -m tests.launch.dry_runs` writes the golden files."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "launch"
POD = [
    "launch/tpu_pod.sh",
    "--dry-run",
    "--name=pod",
    "--project=my-project",
    "--zone=us-west4-a",
    "--type=v5litepod-16",
]
TRAIN = [
    "--",
    "--config=configs/llama8b_sft_dpo.py",
    "--workdir=/mnt/runs/a run",
    "--config.data.path=/mnt/data/esconv",
]
COMMAND = ["--", "python", "-m", "empathax.train", "--config=configs/demo.py", "--workdir=runs/demo"]
CASES: dict[str, tuple[list[str], dict[str, str]]] = {
    "tpu_pod_create": ([*POD, "create"], {}),
    "tpu_pod_create_spot": ([*POD, "create", "--type=v6e-16", "--spot"], {}),
    "tpu_pod_install": ([*POD, "install", "--nfs=10.0.0.2:/runs"], {}),
    "tpu_pod_run": ([*POD, "run", *TRAIN], {}),
    "tpu_pod_logs": ([*POD, "logs", "--worker=3"], {}),
    "tpu_pod_resume": ([*POD, "resume", "--spot", "--detach", *TRAIN], {}),
    "tpu_pod_delete": ([*POD, "delete"], {}),
    "slurm": (["bash", "launch/slurm.sbatch", "--dry-run", *TRAIN[1:]], {"SLURM_JOB_ID": "4097"}),
    "slurm_task_a_node": (
        ["bash", "launch/slurm.sbatch", "--dry-run", *TRAIN[1:]],
        {"SLURM_NTASKS_PER_NODE": "1", "SLURM_GPUS_PER_NODE": "h100:4", "EMPATHAX_FLAGS": "h100", "PYTHON": "python3"},
    ),
    "local_devices": (["launch/local.sh", "--dry-run", *COMMAND[:1], *COMMAND[4:]], {}),
    "local_processes": (["launch/local.sh", "--dry-run", "--processes=2", "--devices=4", "--", *COMMAND[4:]], {}),
    "supervise": (["launch/supervise.sh", "--dry-run", "--max-restarts=3", *COMMAND], {}),
    "flags_tpu_v4": (["launch/flags_tpu.sh", "v4", "--dry-run", *COMMAND], {}),
    "flags_tpu_v5e": (["launch/flags_tpu.sh", "v5e", "--dry-run", *COMMAND], {}),
    "flags_tpu_v5p_slices": (["launch/flags_tpu.sh", "v5p", "--slices=2", "--dry-run", *COMMAND], {}),
    "flags_tpu_v6e": (["launch/flags_tpu.sh", "v6e"], {"LIBTPU_INIT_ARGS": "--mine=1"}),
    "flags_gpu_h100": (["launch/flags_gpu.sh", "h100", "--dry-run", *COMMAND], {}),
    "flags_gpu_l40s": (["launch/flags_gpu.sh", "l40s"], {"XLA_FLAGS": "--mine=1"}),
}


def dry_run(name: str) -> str:
    """The output of the case `name`, in an environment with nothing but what the case sets."""
    command, settings = CASES[name]
    environment = {"PATH": os.environ["PATH"], "TMPDIR": "/tmp", **settings}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for case in CASES:
        (GOLDEN / f"{case}.txt").write_text(dry_run(case))

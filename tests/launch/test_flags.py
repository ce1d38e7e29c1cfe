"""The compiler flags of launch/: that this jaxlib knows the GPUs' names, and that they reach the command."""

import os
import subprocess
import sys

from tests.launch.dry_runs import ROOT


def _start_jax(flags):
    """jax's start with these XLA flags, which are read all at once; an unknown one ends the process."""
    code = "import jax; print(jax.devices()[0].platform)"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment)


def _printed(kind):
    command = f'unset XLA_FLAGS; eval "$(launch/flags_gpu.sh {kind})"; printf %s "$XLA_FLAGS"'
    return subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_jaxlib_knows_the_gpu_flags():
    done = _start_jax(" ".join(_printed(kind) for kind in ("h100", "l40s")))
    assert done.returncode == 0, done.stderr
    assert done.stdout == "cpu\n"
    unknown = _start_jax("--xla_gpu_enable_wishful_thinking=true")
    assert unknown.returncode != 0
    assert "wishful" in unknown.stderr


def test_flags_reach_the_command_before_the_users_own():
    """The command replaces the script, so that it gets the signals; the last value of a flag counts, so the user's."""
    code = "import os; print(os.environ['LIBTPU_INIT_ARGS'].split()[-1], os.getpid())"
    command = [str(ROOT / "launch/flags_tpu.sh"), "v6e", "--", sys.executable, "-S", "-c", code]
    environment = os.environ | {"LIBTPU_INIT_ARGS": "--xla_tpu_scoped_vmem_limit_kib=1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        output, _ = process.communicate(timeout=60)
    assert output.split() == ["--xla_tpu_scoped_vmem_limit_kib=1", str(process.pid)]

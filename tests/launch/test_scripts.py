"""Every script in launch/: what it would run, how it explains itself, and what shellcheck says."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.dry_runs import CASES, GOLDEN, ROOT, dry_run

SCRIPTS = sorted(path for path in (ROOT / "launch").glob("*.s[hb]*") if path.name != "dry_run.sh")
SHELLCHECK = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")


def _run(script, *arguments):
    return subprocess.run(["bash", str(script), *arguments], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("name", CASES)
def test_dry_run_prints_what_was_agreed(name):
    """After a wanted change: `python -m tests.launch.dry_runs`, and look at the diff."""
    assert dry_run(name) == (GOLDEN / f"{name}.txt").read_text()


def test_every_script_has_a_golden_dry_run():
    used = {Path(word).name for command, _ in CASES.values() for word in command[:2]}
    assert {script.name for script in SCRIPTS} <= used
    assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)


def test_a_dry_run_can_be_pasted():
    """The shell reads the printed line back as the same arguments, whatever is in them."""
    words = ["a b", "it's", '"x"', "$HOME", "back\\slash", "*", "", "plain"]
    printed = _run(ROOT / "launch/supervise.sh", "--dry-run", "--", "printf", "%s\\n", *words).stdout
    assert subprocess.run(["bash", "-c", printed], capture_output=True, text=True).stdout.split("\n")[:-1] == words


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_help_and_mistakes(script):
    told = _run(script, "--help")
    assert told.returncode == 0
    assert "--dry-run" in told.stdout
    assert "shellcheck" not in told.stdout
    nothing = _run(script)
    assert nothing.returncode == 2
    assert nothing.stderr.startswith(f"{script.name}: no")
    if script.name != "slurm.sbatch":  # its arguments are train's
        wrong = _run(script, "--dryrun")
        assert wrong.returncode == 2
        assert "--dryrun" in wrong.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_strict_mode_and_mode_bits(script):
    assert "\nset -euo pipefail\n" in script.read_text()
    assert script.name == "slurm.sbatch" or script.stat().st_mode & 0o111


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed; `make lint` installs and runs it")
def test_shellcheck_finds_nothing():
    files = [str(path) for path in (*SCRIPTS, ROOT / "launch/dry_run.sh", ROOT / ".ci/run")]
    done = subprocess.run([SHELLCHECK, "-x", "-P", str(ROOT), *files], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout

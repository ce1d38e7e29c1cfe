"""launch/tpu_pod.sh against a gcloud of the test's own, which plays a slice and runs `ssh --command` in a folder."""

import os
import shutil
import subprocess
import time

import pytest

from tests.launch.dry_runs import ROOT

OPTIONS = ["--name=pod", "--project=p", "--zone=z", "--type=v5litepod-16"]

# Writes down each call; `describe` answers with the next line of the file "states".
GCLOUD = """#!/usr/bin/env bash
set -eu
echo "$3 $4" >> "$FAKE/calls"
case "$3 $4" in
  "queued-resources describe")
    line=$(head -n 1 "$FAKE/states")
    sed -i 1d "$FAKE/states"
    [[ $line != NOT_FOUND && $line != DENIED ]] || { echo "ERROR: $line: the resource" >&2; exit 1; }
    echo "$line" ;;
  "tpu-vm ssh")
    for word in "$@"; do
      case $word in --command=*install*) ;; --command=*) cd "$FAKE/home" && bash -c "${word#*=}" ;; esac
    done ;;
esac
"""
TRAINER = """#!/usr/bin/env bash
printf '%s\\n' "$@" > arguments
printf '%s' "$LIBTPU_INIT_ARGS" > flags
echo trained
"""


@pytest.fixture
def pod(tmp_path):
    """A function that runs the script; it has the folder that stands for the workers as `home`."""
    home = tmp_path / "home"
    (home / "empathax" / ".venv" / "bin").mkdir(parents=True)
    shutil.copytree(ROOT / "launch", home / "empathax" / "launch")
    for path, text in (
        (tmp_path / "bin" / "gcloud", GCLOUD),
        (home / "empathax" / ".venv" / "bin" / "python", TRAINER),
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def run(*arguments, states=()):
        (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
        (tmp_path / "calls").write_text("")
        environment = {
            "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "FAKE": str(tmp_path),
            "TMPDIR": str(tmp_path),
            "TPU_POLL_SECONDS": "0",
        }
        command = [str(ROOT / "launch/tpu_pod.sh"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        return done, (tmp_path / "calls").read_text().splitlines()

    run.home = home / "empathax"
    return run


def _wait_for(path):
    deadline = time.monotonic() + 30
    while not path.exists() or not path.read_text():
        assert time.monotonic() < deadline, f"no {path.name}"
        time.sleep(0.02)


def test_create_waits_until_the_slice_is_there(pod):
    done, calls = pod("create", *OPTIONS, states=["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE", "ACTIVE"])
    assert done.returncode == 0, done.stderr
    assert calls == ["queued-resources create", *["queued-resources describe"] * 3]


def test_create_that_fails_says_so(pod):
    done, _ = pod("create", *OPTIONS, states=["WAITING_FOR_RESOURCES", "FAILED"])
    assert done.returncode == 1
    assert "FAILED" in done.stderr


def test_run_starts_training_on_the_workers_with_its_arguments_intact(pod):
    words = ["--workdir=/mnt/runs/it's mine", '--config.sft.stop="<|x|>"', "--config.name=$HOME `ls` \\"]
    done, calls = pod("run", "--detach", *OPTIONS, "--", *words)
    assert done.returncode == 0, done.stderr
    assert calls == ["tpu-vm ssh"]
    _wait_for(pod.home / "flags")
    assert (pod.home / "arguments").read_text().splitlines() == ["-m", "empathax.train", "--multihost", *words]
    assert "fuse_all_reduce=true" in (pod.home / "flags").read_text()  # by the type, v5e's
    _wait_for(pod.home / "run.log")


def test_run_does_not_start_twice(pod):
    trainer = pod.home / ".venv" / "bin" / "python"
    trainer.write_text("#!/usr/bin/env bash\necho started >> starts\nwhile [ ! -e stop ]; do sleep 0.02; done\n")
    pod("run", "--detach", *OPTIONS, "--", "--workdir=/w")
    _wait_for(pod.home / "starts")
    done, _ = pod("run", "--detach", *OPTIONS, "--", "--workdir=/w")
    (pod.home / "stop").touch()
    assert "it runs already" in done.stdout
    assert (pod.home / "starts").read_text() == "started\n"


AGAIN = [
    "queued-resources create",
    "queued-resources describe",
    "tpu-vm scp",
    "tpu-vm ssh",  # install
    "tpu-vm ssh",  # run
]


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["ACTIVE"], ["tpu-vm ssh"]),
        (["SUSPENDED", "ACTIVE"], ["queued-resources delete", *AGAIN]),
        (["FAILED", "ACTIVE"], ["queued-resources delete", *AGAIN]),
        (["NOT_FOUND", "ACTIVE"], AGAIN),
    ],
)
def test_resume(pod, states, expected):
    done, calls = pod("resume", "--detach", *OPTIONS, "--", "--workdir=/w", states=states)
    assert done.returncode == 0, done.stderr
    assert calls == ["queued-resources describe", *expected]
    _wait_for(pod.home / "arguments")


@pytest.mark.parametrize("state", ["SUSPENDING", "DENIED"])
def test_resume_leaves_alone_what_it_does_not_know(pod, state):
    done, calls = pod("resume", "--detach", *OPTIONS, "--", "--workdir=/w", states=[state])
    assert done.returncode == 1
    assert state in done.stderr
    assert calls == ["queued-resources describe"]


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["create", *OPTIONS[1:]], "--name"),
        (["create", *OPTIONS[:-1]], "--type"),
        (["create", *OPTIONS[:-1], "--type=v99-1"], "--runtime"),
        (["run", *OPTIONS], "after --"),
        (["run", *OPTIONS, "--", "--config=c"], "--workdir"),
    ],
)
def test_what_is_missing_is_named(pod, arguments, missing):
    done, calls = pod(*arguments)
    assert done.returncode == 2
    assert missing in done.stderr
    assert calls == []

"""Two processes of four devices each, over loopback, against one process of eight: the same run, however it is cut."""

import json
import os
import signal
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from empathax import evaluate, train
from empathax.models.weights.steps import find_steps
from empathax.parallel.processes import rows_of_process
from empathax.training import loop
from empathax.training.workdirs import LOCK, MARK
from tests.benchmarks import weights
from tests.launch.dry_runs import ROOT
from tests.launch.slurm_cluster import free_ports
from tests.parallel.job_config import write_data
from tests.parallel.processes import run

pytestmark = pytest.mark.slow
CONFIG = "--config=tests/parallel/job_config.py"
STEPS = ["--config.sft.max_steps=10", "--config.dpo.max_steps=10"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("job")


@pytest.fixture(scope="module")
def data(folder):
    return write_data(folder)


@pytest.fixture(scope="module")
def cache(folder):
    """Compiled programs, which the processes of one job after another share."""
    return {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


@pytest.fixture(scope="module")
def whole(folder, data):
    """An uninterrupted run in this process, on its eight devices."""
    assert train.main([CONFIG, *data, *STEPS, f"--workdir={folder}/whole"]) == 0
    return folder / "whole"


def _record(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def _stop_here(monkeypatch, step):
    push = loop.Recorder.push

    def push_and_stop(self, now, metrics):
        push(self, now, metrics)
        if now == step:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Recorder, "push", push_and_stop)


def test_a_run_cut_over_and_over_is_the_same_run(folder, data, cache, whole, monkeypatch):
    """Stopped on two processes, stopped on one, ended on two."""
    workdir, log = folder / "cut", folder / "log"
    arguments = [CONFIG, *data, *STEPS, f"--workdir={workdir}"]

    def on_two(stop):
        return run(["-m", "tests.parallel.stopped_job", stop, *arguments, "--multihost"], log, **cache)

    codes, outputs = on_two("1:5:SIGTERM")  # process 1 alone is told to stop
    assert codes == [75, 75], outputs
    assert all("stopped by SIGTERM after step 6 of sft" in output for output in outputs)
    assert find_steps(workdir)[0].name == "6"

    with monkeypatch.context() as patch:
        _stop_here(patch, 8)
        assert train.main(arguments) == 75
    assert find_steps(workdir)[0].name == "8"

    codes, outputs = on_two("0:0:SIGTERM")
    assert codes == [0, 0], outputs
    assert "+SFT+DPO" in outputs[0]
    assert "before and after" not in outputs[1]  # one writer

    _check_same_run(workdir, whole)


def test_supervisors_bring_a_killed_job_back(folder, data, cache, whole):
    """As on a pod, each process has a supervisor of its own; one process is killed, later the one all others ask."""
    workdir = folder / "supervised"
    command = ["-m", "tests.parallel.stopped_job", "1:3:SIGKILL,0:7:SIGKILL", CONFIG, *data, *STEPS]
    supervisor = [str(ROOT / "launch/supervise.sh"), f"--workdir={workdir}", "--backoff=0.1", "--"]
    codes, outputs = run([*command, f"--workdir={workdir}", "--multihost"], folder / "log", under=supervisor, **cache)
    assert codes == [0, 0], outputs
    for process, output in enumerate(outputs):
        assert output.count("supervise.sh: the command ended with 137") == 1, (process, output)  # SIGKILL
        assert output.count("restart 1 of 5 without progress") == 2, (process, output)
    _check_same_run(workdir, whole)


def _check_same_run(workdir, whole):
    ours, expected = _record(workdir), _record(whole)
    names = [(line["stage"], line["split"], line["step"]) for line in expected]
    assert [(line["stage"], line["split"], line["step"]) for line in ours] == names
    assert sum(split == "train" for _, split, _ in names) == 20
    for line, other in zip(ours, expected, strict=True):
        names = [name for name in ("loss", "grad_norm", "perplexity") if name in other]
        assert [line[name] for name in names] == pytest.approx([other[name] for name in names], rel=1e-5)
    replies = [json.loads((path / "evaluations.json").read_text())["measured"] for path in (workdir, whole)]
    assert [row["answers"] for row in replies[0].values()] == [row["answers"] for row in replies[1].values()]


@pytest.mark.parametrize(
    "mesh",
    [
        {"preset": "cpu:2x4", "data": 1, "fsdp": -1},  # two slices, parameters repeated on both
        {"fsdp": 4, "tensor": 2, "dcn_fsdp": 2},  # split over both, heads within each
    ],
    ids=["repeated", "split"],
)
def test_two_processes_are_two_slices(folder, data, cache, whole, mesh):
    workdir = folder / "_".join(map(str, mesh.values()))
    settings = [f"--config.mesh.{name}={value}" for name, value in mesh.items()]
    command = ["-m", "empathax.train", CONFIG, *data, *STEPS, *settings, f"--workdir={workdir}", "--multihost"]
    codes, outputs = run(command, folder / "log", **cache)
    assert codes == [0, 0], outputs
    _check_same_run(workdir, whole)


def test_evaluation_on_two_processes(folder, data, cache):
    options = [CONFIG, *data, "--config.eval.temperature=1.0", "--config.eval.num_samples=2"]
    one, two = folder / "one", folder / "two"
    assert evaluate.main([*options, f"--out={one}.json", f"--record={one}"]) == 0
    command = ["-m", "empathax.evaluate", *options, f"--out={two}.json", f"--record={two}", "--multihost"]
    codes, outputs = run(command, folder / "log", **cache)
    assert codes == [0, 0], outputs
    assert "perplexity" in outputs[0]
    assert "perplexity" not in outputs[1]
    expected, found = (json.loads((folder / f"{name}.json").read_text()) for name in ("one", "two"))
    assert found == pytest.approx(expected, rel=1e-5)
    texts = [
        [reply["reply"] for reply in json.loads((path / "evaluation.json").read_text())["replies"]]
        for path in (one, two)
    ]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > len(texts[0]) // 2


@pytest.mark.parametrize(
    ("last", "message"),
    [
        ((["--config.sft.learning_rate=0.5"], {}), "process 1: sft.learning_rate is 0.5, process 0 has 0.001"),
        (([], {"JAX_NUM_CPU_DEVICES": "2"}), "process 1: number of devices is 2, process 0 has 4"),
        ((["--config.data.path=samples"], {}), "process 1: data.path is 'samples'"),
        ((["--config.no.such=1"], {}), "process 1 of 2: the --config flags cannot be used"),
    ],
)
def test_processes_that_differ_all_stop(folder, data, last, message):
    command = ["-m", "empathax.train", CONFIG, *data, f"--workdir={folder}/never", "--multihost"]
    codes, outputs = run(command, folder / "log", last=last)
    assert codes == [2, 2], outputs
    assert all(message in output for output in outputs), outputs
    assert not (folder / "never").exists()


@pytest.mark.parametrize("process", ["0", "1"])
def test_a_process_whose_peers_never_come_does_not_train_alone(folder, data, cache, process):
    """It could: the devices that it has are enough."""
    few = ["--config.stages=sft", "--config.sft.max_steps=1", "--config.eval.turns=0", "--config.eval.in_loop_turns=0"]
    command = ["-m", "empathax.train", CONFIG, *data, *few, f"--workdir={folder}/alone_{process}", "--multihost"]
    missing = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_ports(1)[0]}", "JAX_NUM_PROCESSES": "2"}
    last = ([], missing | {"JAX_PROCESS_ID": process, "EMPATHAX_JOIN_SECONDS": "3"})
    codes, outputs = run(command, folder / "log", count=1, devices=8, last=last, **cache)
    assert codes[0] not in (0, 75), outputs
    assert not (folder / f"alone_{process}").exists()


def test_a_directory_that_is_not_shared(folder, data):
    command = ["-m", "tests.parallel.impatient_job", CONFIG, *data, "--multihost"]
    (folder / "own").mkdir()
    codes, outputs = run(
        [*command, f"--workdir={folder}/shared"], folder / "log", last=([f"--workdir={folder}/own"], {})
    )
    assert codes == [2, 2], outputs
    message = f"process 1 of 2: {folder}/own is not the directory that process 0 has under this name"
    assert all(message in output for output in outputs), outputs
    assert {entry.name for entry in (folder / "shared").iterdir()} <= {LOCK, MARK}


def test_each_process_reads_its_part_of_the_weights(folder):
    directory = folder / "weights"
    directory.mkdir()
    small = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 3, "vocab_size": 4096, "head_dim": 64}
    settings = weights.llama_settings(0) | small | {"num_attention_heads": 8, "num_key_value_heads": 8}
    total = weights.write_checkpoint(directory, settings)
    found = weights.measure(directory, processes=2)
    assert len(found) == 2
    assert [process["parameters"] for process in found] == pytest.approx([total / 2] * 2, rel=0.01)
    assert all(process["read"] <= 0.6 * total for process in found), (found, total)
    assert sum(process["read"] for process in found) >= total


def test_rows_of_processes_that_lie_apart_in_the_mesh():
    """On a real mesh neighbours in the network stand side by side, not neighbours in a host."""

    @dataclass
    class Device:
        process_index: int

    devices = np.array([Device(process) for process in (0, 0, 1, 1, 0, 0, 1, 1)], object).reshape(2, 2, 2)
    mesh = SimpleNamespace(shape={"data": 2, "fsdp": 2, "tensor": 2}, devices=devices)
    assert rows_of_process(mesh) == ((0, 2), 4)
    split_heads = SimpleNamespace(shape={"data": 1, "fsdp": 2, "tensor": 4}, devices=devices.reshape(1, 2, 4))
    assert rows_of_process(split_heads) == ((0, 1), 2)

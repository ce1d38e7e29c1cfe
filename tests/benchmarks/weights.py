"""Time and memory of loading a synthetic Llama checkpoint in shards: `python -m tests.benchmarks.weights [--gb=2]`.

Each measurement is a process of its own (two, with --processes=2, that read their parts and exchange them). Peak memory
is the process's whole resident peak (VmHWM), Python, jax and the parameters on its virtual devices included.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHARDS = 5


def llama_settings(num_bytes: float) -> dict:
    """config.json of a Llama of about so many bytes in bfloat16."""
    layer, head = 2 * (2 * 2048 * 2048 + 2 * 1024 * 2048 + 3 * 8192 * 2048), 2 * 2 * 32000 * 2048
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": max(1, round((num_bytes - head) / layer)), "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32000, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 1e4, "hidden_act": "silu", "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip


def write_checkpoint(directory: Path, settings: dict) -> int:
    """Writes `settings` as config.json, SHARDS safetensors files and their index; returns the bytes of the weights."""
    import ml_dtypes
    import numpy as np
    import safetensors.numpy

    from empathax.models.architecture.hf_config import from_hf_config
    from empathax.models.transformer import abstract_params
    from empathax.models.weights.checks import file_shape, parameter_at
    from empathax.models.weights.names import Naming, stored_parameters

    (directory / "config.json").write_text(json.dumps(settings))
    config = from_hf_config(settings)
    shapes = abstract_params(config)
    tensors = {
        name: file_shape(stored, parameter_at(shapes, stored.path).shape)
        for stored in stored_parameters(config, Naming("hf"))
        for name in stored.names
    }
    names, rng, places, total = sorted(tensors), np.random.default_rng(0), {}, 0
    block = (rng.standard_normal(1 << 20) * 0.02).astype(ml_dtypes.bfloat16)
    for number in range(SHARDS):
        file = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        shard = {name: np.resize(block, tensors[name]) for name in names[number::SHARDS]}
        safetensors.numpy.save_file(shard, directory / file)
        places |= dict.fromkeys(shard, file)
        total += sum(value.nbytes for value in shard.values())
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return total


def load(directory: str, convert_to: str) -> None:
    """The child: loads onto all devices, sharded over fsdp, and prints what it took as JSON. With `convert_to` the
    parameters are also written there by Orbax."""
    import jax
    import jax.numpy as jnp

    if "JAX_NUM_PROCESSES" in os.environ:
        count, number = int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"])
        jax.distributed.initialize(os.environ["JAX_COORDINATOR_ADDRESS"], count, number)

    from empathax.config import MeshOptions
    from empathax.models.transformer import abstract_params, logical_axes
    from empathax.models.weights.source import resolve_model
    from empathax.models.weights.steps import seal_files, write_converted
    from empathax.parallel.mesh import make_mesh
    from empathax.parallel.rules import param_shardings

    source, mesh = resolve_model(directory), make_mesh(MeshOptions())
    abstract = abstract_params(source.config, jnp.bfloat16)
    shardings = param_shardings(mesh, abstract, logical_axes(source.config))
    before, started = _memory(), time.perf_counter()
    params = jax.block_until_ready(source.load_params(jnp.bfloat16, shardings))
    if convert_to:
        write_converted(Path(convert_to), params)
        if jax.process_index() == 0:
            shutil.copy(Path(directory) / "config.json", convert_to)
            seal_files(Path(convert_to))
    local = sum(shard.data.nbytes for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards)
    found = {"seconds": time.perf_counter() - started, "before": before, "peak": _memory(), "parameters": local}
    reader = getattr(source, "_weights", None)
    print(json.dumps(found | {"read": reader.bytes_read if reader is not None else None}), flush=True)


def _memory() -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


def measure(directory: Path, processes: int, devices: int = 8, convert_to: str = "") -> list[dict]:
    """What each process of a load took."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices // processes)}
    if processes > 1:
        environment |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(processes)}
    command = [sys.executable, "-m", "tests.benchmarks.weights", f"--load={directory}", f"--convert-to={convert_to}"]
    started = [
        subprocess.Popen(command, env=environment | {"JAX_PROCESS_ID": str(number)}, stdout=subprocess.PIPE, text=True)
        for number in range(processes)
    ]
    lines = [process.communicate(timeout=600)[0].splitlines() for process in started]
    return [json.loads(line) for output in lines for line in output if line.startswith("{")]


def in_words(found: dict, total: int) -> str:
    """One line of a result."""
    return (
        f"{found['seconds']:.1f} s, peak {found['peak'] / 1e9:.2f} GB = {found['peak'] / total:.2f} x the weights "
        f"({found['before'] / 1e9:.2f} GB before, {found['parameters'] / 1e9:.2f} GB of parameters here)"
        + (f", read {found['read'] / total:.1%} of them" if found["read"] else "")
    )


def main() -> None:
    """Writes the checkpoint, loads it in the ways that are to be compared, and prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gb", type=float, default=2.0)
    for name in ("--load", "--convert-to"):
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.load:
        return load(flags.load, flags.convert_to)
    folder, converted = (Path(tempfile.mkdtemp(prefix="weights-")) for _ in range(2))
    try:
        total = write_checkpoint(folder, llama_settings(flags.gb * 1e9))
        print(f"{total / 1e9:.2f} GB in {SHARDS} safetensors files, bfloat16; 8 virtual devices, fsdp=8")
        for processes in (1, 2):
            for number, found in enumerate(measure(folder, processes)):
                print(f"{processes} process(es), number {number}: {in_words(found, total)}")
        print(
            f"converted to Orbax, loading included: {in_words(measure(folder, 1, convert_to=str(converted))[0], total)}"
        )
        for processes in (1, 2):
            for number, found in enumerate(measure(converted, processes)):
                print(f"from Orbax, {processes} process(es), number {number}: {in_words(found, total)}")
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(converted)
    return None


if __name__ == "__main__":
    main()

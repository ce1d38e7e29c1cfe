"""Compiles the Llama-3-8B DPO step for a TPU or GPU topology, on any machine, and prints what a device must hold.

    python -m tests.benchmarks.compile_only --topology=v5e:4x4 --packing=tree --pairs=296 --json=rows.jsonl

The three packings lay the same number of preference pairs out in rows of 2,048 tokens. Prompts that pairs share are
stored once in a tree, once per pair, or once per reply: fewer rows for the same step, and less memory for activations.
Parameters and Adam's moments are float32 and fully sharded, activations bfloat16 with full rematerialization, the
reference's log-probs come with the batch. Needs the extra `plan`; for GPUs see GPU_INSTALL.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

# before jax is imported: this machine's own accelerators, if any, stay out of it
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TPU_SKIP_MDS_QUERY"] = "1"

ROW_TOKENS = 2048
TOKENS_PER_PAIR = {"none": 978, "pair": 518, "tree": 110}  # ESConv packed, docs/prefix_tree.md
TRAINED_TOKENS_PER_PAIR = 70  # both replies
DEVICE_GIB = {"v5e": 15.75, "v5p": 95.7, "v6e": 31.25, "h100": 80.0}  # what XLA may use of them
GIB = 2**30
TPU_INSTALL = "pip install -e '.[plan]'"
GPU_INSTALL = (
    "pip install --no-deps jax-cuda12-plugin=={version} jax-cuda12-pjrt=={version} nvidia-cuda-nvcc-cu12"
    "  (the plugin without CUDA's libraries, and its assembler)"
)
# XLA's description of the GPU to compile for (stream_executor.GpuTargetConfigProto)
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_core: 233472  shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000  l2_cache_size: 52428800  device_memory_size: 85899345920
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


def topology_devices(topology: str) -> Any:
    """The devices of hardware that is not there: "v5e:4x4" or "h100:8"."""
    kind, _, shape = topology.partition(":")
    if kind not in DEVICE_GIB or not shape:
        raise SystemExit(f"--topology={topology}: expected KIND:SHAPE, KIND one of {', '.join(DEVICE_GIB)}")
    if kind == "h100":
        _prepare_cuda()
    else:
        _require("libtpu", TPU_INSTALL)
    from jax.experimental import topologies

    if kind != "h100":
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    return topologies.get_topology_desc(
        platform="cuda", topology_name="h100", target_config=H100, topology=f"1x1x{shape}"
    ).devices


def _prepare_cuda() -> None:
    """Settles what the CUDA plugin reads when jax loads it: where its assembler is, and to tune nothing by running."""
    install = GPU_INSTALL.format(version=importlib.metadata.version("jax"))
    _require("jax_plugins.xla_cuda12", install)
    nvcc = Path(_require("nvidia.cuda_nvcc", install).submodule_search_locations[0])
    os.environ["PATH"] = f"{nvcc / 'bin'}{os.pathsep}{os.environ['PATH']}"
    flags = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={nvcc}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"


def _require(module: str, install: str) -> Any:
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise SystemExit(f"{module} is not installed, and compiling for this topology needs it: {install}")
    return spec


def llama3_8b() -> Any:
    """Meta-Llama-3-8B, as its config.json describes it."""
    from empathax.models.hf_config import from_hf_config

    return from_hf_config(
        {
            "model_type": "llama",
            "vocab_size": 128256,
            "num_hidden_layers": 32,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": False,
        }
    )


def rows_for(packing: str, pairs: int, num_devices: int) -> int:
    """Rows that hold `pairs` pairs, rounded up to a multiple of the devices."""
    full_rows = math.ceil(pairs * TOKENS_PER_PAIR[packing] / ROW_TOKENS)
    return math.ceil(full_rows / num_devices) * num_devices


def abstract_batch(rows: int, pairs: int, sharding: Any) -> Any:
    """The shapes of a batch whose rows hold equal shares of the pairs."""
    import jax
    import jax.numpy as jnp

    from empathax.data.batch import Batch

    P = math.ceil(pairs / rows)
    M = math.ceil(P * TRAINED_TOKENS_PER_PAIR / 128) * 128
    sizes = {"T": ROW_TOKENS, "M": M, "S": 2 * P, "P": P}
    names = Batch.__dataclass_fields__
    floats = {"weight_BM", "pair_weight_BP", "ref_logps_BS"}
    return Batch(
        **{
            name: jax.ShapeDtypeStruct(
                (1, rows, sizes[name[-1]]), jnp.float32 if name in floats else jnp.int32, sharding=sharding
            )
            for name in names
        }
    )


def compile_step(topology: str, packing: str, pairs: int, options: dict[str, str]) -> dict[str, Any]:
    """Compiles one DPO step; the row of the table."""
    import jax

    from empathax.config import Config, ModelOptions
    from empathax.models.transformer import abstract_params, logical_axes
    from empathax.parallel.mesh import make_mesh
    from empathax.parallel.rules import batch_sharding, param_shardings
    from empathax.training.optimizer import make_optimizer
    from empathax.training.state import abstract_state, state_shardings
    from empathax.training.step import make_train_step

    devices = topology_devices(topology)
    rows = rows_for(packing, pairs, len(devices))
    config, model = Config(model=ModelOptions(**{"remat": "full", **options})), llama3_8b()
    mesh = make_mesh(config.mesh, devices)
    params = abstract_params(model)
    tx, schedule = make_optimizer(config.dpo, num_steps=1000)
    state = abstract_state(params, tx)
    shardings = state_shardings(state, param_shardings(mesh, params, logical_axes(model)))
    state = jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), state, shardings)
    step = make_train_step("dpo", model, config, tx, schedule, shardings=shardings)
    start = time.perf_counter()
    batch = abstract_batch(rows, pairs, batch_sharding(mesh, num_leading=1))
    lowered = step.lower(state, batch)
    row = {
        "topology": topology,
        "packing": packing,
        "pairs": pairs,
        "rows": rows,
        "rows_per_device": rows // len(devices),
        "tokens": rows * ROW_TOKENS,
        "attention_kernels": len(
            re.findall(r"custom_call @(?:tpu_custom_call|__gpu\$xla\.gpu\.triton)", lowered.as_text())
        ),
        "lower_seconds": round(time.perf_counter() - start, 1),
    }
    return row | _memory(lowered, _device_bytes((state, batch)) / GIB, DEVICE_GIB[topology.partition(":")[0]])


def _device_bytes(tree: Any) -> int:
    """What one device holds of a tree of sharded arrays."""
    import jax

    leaves = jax.tree.leaves(tree)
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _memory(lowered: Any, arguments: float, device_gib: float) -> dict[str, Any]:
    """GiB per device of the compiled step."""
    import jax

    start = time.perf_counter()
    try:
        stats = lowered.compile().memory_analysis()
        arguments, temporaries = stats.argument_size_in_bytes / GIB, stats.temp_size_in_bytes / GIB
    except jax.errors.JaxRuntimeError as error:  # temporaries that alone exceed a TPU's memory are refused
        refused = re.search(r"temporaries \(([\d.]+)G\)", str(error))
        if not refused:
            raise
        temporaries = float(refused[1])
    total = arguments + temporaries
    sizes = {"arguments_gib": arguments, "temporaries_gib": temporaries, "total_gib": total}
    sizes = {name: round(size, 3) for name, size in sizes.items()} | {"fits": total <= device_gib}
    return sizes | {"device_gib": device_gib, "compile_seconds": round(time.perf_counter() - start, 1)}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    head = (
        "| topology | packing | pairs | rows (a device) "
        "| arguments GiB | temporaries GiB | total GiB | fits | compiled in |"
    )

    lines = [
        f"| {row['topology']} | {row['packing']} | {row['pairs']} | {row['rows']} ({row['rows_per_device']}) "
        f"| {row['arguments_gib']:.1f} | {row['temporaries_gib']:.1f} | {row['total_gib']:.1f} of "
        f"{row['device_gib']} | {'yes' if row['fits'] else 'no'} | {row['compile_seconds']} s |"
        for row in rows
    ]
    return "\n".join([head, "|---" * 9 + "|", *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:4x4", help="v5e:4x4, v5p:2x2x4, h100:8, ...")
    parser.add_argument("--packing", action="append", choices=sorted(TOKENS_PER_PAIR), help="repeatable; default all")
    parser.add_argument("--pairs", type=int, default=296, help="preference pairs of one step, over all devices")
    parser.add_argument("--attention", default="auto")
    parser.add_argument("--json", type=Path, help="append one JSON object a row to this file")
    args = parser.parse_args()
    rows = []
    for packing in args.packing or ["tree", "pair", "none"]:
        row = compile_step(args.topology, packing, args.pairs, {"attention": args.attention})
        rows.append(row)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(f"{packing}: {row['attention_kernels']} kernels, compiled in {row['compile_seconds']} s", file=sys.stderr)
    print(table(rows))


if __name__ == "__main__":
    main()

"""One plan: a stage's functions compiled for a topology, and what the compiled programs say."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import Mesh

from empathax.config import Config
from empathax.config.hardware import Topology
from empathax.parallel.mesh import compute_dtype, make_mesh
from empathax.planning.collectives import BETWEEN, Collective, by_kind, collectives_of, moved_logits
from empathax.planning.costs import (
    Counts,
    Memory,
    Roofline,
    adapter_flops,
    device_bytes,
    forward_flops,
    memory_of,
    refused_memory,
    roofline,
    train_flops,
    train_hardware_flops,
)
from empathax.planning.hlo import parse_program
from empathax.planning.model import PlannedModel
from empathax.planning.rows import Rows
from empathax.planning.steps import Lowered, Setup, lower_parts, params_of, trained_of
from empathax.planning.topology import topology_devices

_KERNELS = re.compile(r"custom_call @(?:tpu_custom_call|__gpu\$xla\.gpu\.triton)")


@dataclass(frozen=True)
class Subject:
    """What is planned, without the topology."""

    config: Config
    stage: str
    model: PlannedModel
    rows: Rows
    rows_origin: str

    def with_rows_per_batch(self, rows_per_batch: int) -> Subject:
        """The same with larger or smaller micro-batches."""
        options: dict[str, Any] = {self.stage: replace(self.config.stage(self.stage), rows_per_batch=rows_per_batch)}
        return replace(self, config=replace(self.config, **options))


@dataclass(frozen=True)
class _Program:
    """What a compiled part says of itself; `kernels` is the number of calls of hand-written attention kernels."""

    memory: Memory
    result_bytes: int
    collectives: list[Collective]
    kernels: int
    lower_seconds: float
    compile_seconds: float


def compile_plan(
    subject: Subject, topology: Topology, parts: tuple[str, ...], say: Callable[[str], None]
) -> dict[str, Any]:
    """The plan as plain values, the object that `plan --json` prints; `say` gets a line before and after each compile.

    Raises ConfigError for a topology that does not exist, and for a mesh that does not divide model or rows.
    """
    config, stage, rows = subject.config, subject.stage, subject.rows
    mesh = make_mesh(config.mesh, topology_devices(topology))
    setup = Setup(config, stage, subject.model.config, mesh, rows.sizes)
    hbm_bytes = topology.kind.hbm_bytes or _host_memory() // topology.num_devices
    compiled = _compiled_parts(setup, rows, topology, parts, hbm_bytes, say)
    first = next(iter(compiled.values()))
    options = config.stage(stage)
    num_rows = options.rows_per_batch * options.accumulation_steps
    return {
        "name": config.name,
        "stage": stage,
        "topology": str(topology),
        "num_devices": topology.num_devices,
        "mesh": dict(mesh.shape),
        "model": config.model.path,
        "model_from": subject.model.origin,
        "num_parameters": sum(leaf.size for leaf in jax.tree.leaves(params_of(setup))),
        "num_trained": sum(leaf.size for leaf in jax.tree.leaves(trained_of(setup))),
        "reference": setup.reference,
        "rows_per_batch": options.rows_per_batch,
        "accumulation_steps": options.accumulation_steps,
        "row_length": rows.sizes.tokens,
        "trained_slots": rows.sizes.trained,
        "rows_from": subject.rows_origin,
        "tokens_per_step": round(rows.tokens * num_rows),
        "units_per_step": round(rows.units * num_rows),
        "fits": all(part["fits"] for part in compiled.values()),
        "hbm_bytes": hbm_bytes,
        "missing_bytes": max(part["missing_bytes"] for part in compiled.values()),
        "bytes_per_device": first["bytes_per_device"],
        "collectives": first["collectives"],
        "model_flops_per_step": _train_flops(setup, rows, num_rows),
        "roofline": first["roofline"],
        "compile_seconds": round(sum(part["compile_seconds"] for part in compiled.values()), 1),
        "compiler_flags": {
            name: os.environ[name] for name in ("LIBTPU_INIT_ARGS", "XLA_FLAGS") if os.environ.get(name)
        },
        "parts": compiled,
    }


def _compiled_parts(
    setup: Setup, rows: Rows, topology: Topology, parts: tuple[str, ...], hbm_bytes: int, say: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """What the report says of each part, by name."""
    start = time.perf_counter()
    lowered = lower_parts(setup, parts)
    lower_seconds = (time.perf_counter() - start) / len(lowered)
    compiled = {}
    for name, part in lowered.items():
        say(f"compiling {setup.stage}'s {name} step for {topology}")
        program = _compile(part, lower_seconds, _nodes(topology, setup.mesh))
        compiled[name] = _part(setup, rows, topology, name, part, program, hbm_bytes)
        say(f"  {compiled[name]['compile_seconds']} s: {'fits' if compiled[name]['fits'] else 'does not fit'}")
    return compiled


def _nodes(topology: Topology, mesh: Mesh) -> list[int]:
    """The GPU node of each device of a program, in its order. Empty for one node, and for TPUs, whose programs
    themselves say what leaves a slice."""
    is_several = topology.num_slices > 1 and topology.kind.platform == "cuda"
    return [device.process_index for device in mesh.devices.flat] if is_several else []


def _compile(part: Lowered, lower_seconds: float, nodes: Sequence[int]) -> _Program:
    kernels = len(_KERNELS.findall(part.lowered.as_text()))
    start = time.perf_counter()
    try:
        compiled = part.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        memory = refused_memory(part, str(error))
        if memory is None:
            raise
        return _Program(memory, 0, [], kernels, lower_seconds, time.perf_counter() - start)
    seconds = time.perf_counter() - start
    stats = compiled.memory_analysis()
    collectives = collectives_of(parse_program(compiled.as_text()), part.unknown_trips, nodes)
    return _Program(memory_of(part, stats), stats.output_size_in_bytes, collectives, kernels, lower_seconds, seconds)


def _part(
    setup: Setup, rows: Rows, topology: Topology, name: str, part: Lowered, program: _Program, hbm_bytes: int
) -> dict[str, Any]:
    memory, collectives = program.memory, by_kind(program.collectives)
    estimate = None
    if not memory.refused:
        between = sum(entry["bytes"] for kind, entry in collectives.items() if BETWEEN in kind)
        sent = sum(entry["bytes"] for entry in collectives.values()) - between
        temporary = memory.by_kind["gradients"] + memory.by_kind["temporaries"]
        kept = sum(map(device_bytes, part.arguments.values())) + program.result_bytes
        flops = _hardware_flops(setup, rows, name)
        estimate = roofline(topology, flops, kept, temporary, sent, between, _read_again(setup, part))
    return {
        "fits": memory.total <= hbm_bytes and not memory.refused,
        "missing_bytes": max(0, memory.total - hbm_bytes),
        "bytes_per_device": memory.by_kind | {"total": memory.total},
        "refused_by_compiler": memory.refused,
        "collectives": collectives,
        "collectives_of_logits": len(moved_logits(program.collectives, setup.sizes.trained, setup.model.model_dim)),
        "attention_kernels": program.kernels,
        "roofline": _seconds(estimate),
        "lower_seconds": round(program.lower_seconds, 1),
        "compile_seconds": round(program.compile_seconds, 1),
    }


def _seconds(estimate: Roofline | None) -> dict[str, float] | None:
    if estimate is None:
        return None
    return {
        "compute_seconds": estimate.compute,
        "memory_seconds": estimate.memory,
        "network_seconds": estimate.network,
        "step_seconds_at_least": estimate.shortest,
        "step_seconds_without_overlap": estimate.longest,
    }


def _train_flops(setup: Setup, rows: Rows, num_rows: int) -> int:
    """Useful operations of one step, the forward pass of a reference in memory included."""
    counts = Counts(*(round(figure * num_rows) for figure in (rows.tokens, rows.trained, rows.visible_pairs)))
    reference = forward_flops(setup.model, counts) if setup.passes_reference else 0
    if spec := setup.spec:
        return adapter_flops(setup.model, spec, counts) + reference
    return train_flops(setup.model, counts) + reference


def _hardware_flops(setup: Setup, rows: Rows, name: str) -> float:
    """What all devices together compute, unused tokens and slots included."""
    if name == "decode":
        return _decode_flops(setup)
    options, sizes = setup.config.stage(setup.stage), setup.sizes
    is_train = name == "train"
    num_rows = options.rows_per_batch * options.accumulation_steps if is_train else setup.config.eval.rows_per_batch
    counts = Counts(sizes.tokens * num_rows, sizes.trained * num_rows, round(rows.visible_pairs * num_rows))
    if not is_train:
        return forward_flops(setup.model, counts)
    flops = train_hardware_flops(setup.model, counts, setup.config.model.remat, setup.passes_reference)
    if spec := setup.spec:  # no gradients of kernels
        flops += adapter_flops(setup.model, spec, counts) - train_flops(setup.model, counts)
    return flops


def _decode_flops(setup: Setup) -> float:
    """Prompts of `data.max_length` tokens read once, then a token at a time."""
    options, prompt = setup.config.eval, setup.config.data.max_length
    new, end = options.max_new_tokens, prompt + options.max_new_tokens
    counts = Counts(tokens=end, trained=new, visible_pairs=math.comb(end + 1, 2))
    return options.generation_batch * forward_flops(setup.model, counts)


def _read_again(setup: Setup, part: Lowered) -> int:
    """Bytes of the parameters, in the compute dtype, that the rounds of a decode loop read after the first one."""
    if part.unknown_trips == 1:
        return 0
    model = [part.arguments[kind] for kind in ("frozen", "parameters")]
    return part.unknown_trips * device_bytes(model, compute_dtype(setup.config.model, setup.mesh))


def _host_memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

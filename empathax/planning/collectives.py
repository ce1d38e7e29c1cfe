"""What a compiled program sends between devices: collectives by kind, counted as often as they run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from empathax.errors import ConfigError
from empathax.planning.hlo import Instruction, Program, parse_instruction

BETWEEN = " between "  # KIND between slices, KIND between nodes
SLICES, NODES = "slices", "nodes"
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_OPCODE = re.compile(rf" (?:ragged-)?({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[subf]\d+|bf16|f8\w+|c64|c128)\[([\d,]*)\]")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_SLICES = re.compile(r'_xla_megascale_target="\{([\d,]*)\}.*_xla_megascale_transfer_type="(\w+)"')
_AXIS = r"'(\w+)'(?::\((\d+)\)(\d+))?"
_PART = "chain_id="  # libtpu spreads one collective over several fusions, inner loops' too: start, parts, end


@dataclass(frozen=True)
class Collective:
    """One collective of the program.

    `bytes` are those that a device sends each time, the way rings do it: all-gather and all-to-all (n - 1) / n of the
    whole array, reduce-scatter the same, all-reduce twice that, a permute its operand. Between TPU slices the compiler
    leaves it to the hosts: the program hands them what its slice has to say and gets the result back. One over GPUs of
    several nodes is two here: within the nodes, and between them, where each GPU's network card carries its share.
    `between`: "slices", "nodes", or "" within one.
    """

    kind: str
    bytes: int
    times: int
    arrays: tuple[tuple[int, ...], ...]  # dims of the arrays in it
    between: str = ""


def collectives_of(program: Program, unknown_trips: int = 1, nodes: Sequence[int] = ()) -> list[Collective]:
    """Every collective that a run of the program does, with how often. `nodes`: the GPU node of each of its devices;
    empty where there is one node, or the compiler itself tells what leaves a slice.

    Raises a ConfigError for a collective whose devices are written in a way that is not known here.
    """
    executions = program.executions(unknown_trips)
    found: dict[tuple[str, str], list[Collective]] = {}
    for computation in program.computations.values():
        times = executions[computation.name]
        for name, line in computation.lines.items():
            opcode = _OPCODE.search(line)
            if times and " send(" in line and (slices := _SLICES.search(line)):
                found[computation.name, name] = [_between_slices(slices, parse_instruction(line), times)]
            if not opcode or not times:
                continue
            collectives = _collectives(opcode[1], bool(opcode[2]), parse_instruction(line), times, nodes)
            channel = _CHANNEL.search(line)
            key = (opcode[1], f"channel {channel[1]}") if channel and _PART in line else (computation.name, name)
            if key not in found or found[key][0].times > times:
                found[key] = collectives
    return [collective for collectives in found.values() for collective in collectives if collective.bytes]


def by_kind(collectives: Iterable[Collective]) -> dict[str, dict[str, int]]:
    """Kind -> {"count", "bytes"} of one run, bytes as a device sends them; "KIND between slices" (or nodes) apart."""
    totals: dict[str, dict[str, int]] = {}
    for collective in collectives:
        name = collective.kind + (BETWEEN + collective.between if collective.between else "")
        total = totals.setdefault(name, {"count": 0, "bytes": 0})
        total["count"] += collective.times
        total["bytes"] += collective.times * collective.bytes
    return dict(sorted(totals.items()))


def moved_logits(collectives: Iterable[Collective], trained_slots: int, model_dim: int) -> list[Collective]:
    """Collectives of arrays with more numbers a trained token than a hidden state has: logits, whole or in chunks."""
    return [
        collective
        for collective in collectives
        if any(trained_slots in dims and math.prod(dims) > _rows(dims, trained_slots) * trained_slots * model_dim
               for dims in collective.arrays)
    ]  # fmt: skip


def _rows(dims: tuple[int, ...], trained_slots: int) -> int:
    """The dims before the trained slots: rows of the batch."""
    return math.prod(dims[: dims.index(trained_slots)])


def _collectives(
    kind: str, is_start: bool, instruction: Instruction, times: int, nodes: Sequence[int]
) -> list[Collective]:
    arrays = [(dtype, _dims(dims)) for dtype, dims in _ARRAY.findall(instruction.shape)]
    arrays = [(dtype, dims) for dtype, dims in arrays if not (is_start and dtype == "u32" and dims == ())]  # contexts
    total = sum(_num_bytes(dtype, dims) for dtype, dims in arrays)
    groups_GN = _groups(instruction.attributes, len(nodes))
    size, num_nodes = groups_GN.shape[1], _nodes_of_a_group(groups_GN, nodes)
    whole = total
    if is_start and kind in ("all-gather", "reduce-scatter"):  # operand and result, one of them a share of the other
        whole = total * size // (size + 1)
    elif kind == "reduce-scatter":
        whole = total * size
    elif is_start and kind in ("all-to-all", "collective-permute", "collective-broadcast"):
        whole = total // 2
    within, between = _sent(kind, whole, size, num_nodes)
    dims = tuple(dims for _, dims in arrays)
    return [Collective(kind, within, times, dims), Collective(kind, between, times, dims, NODES)]


def _sent(kind: str, whole: int, size: int, num_nodes: int) -> tuple[int, int]:
    """Bytes that each of `size` devices sends within its node, and through its network card to the other nodes."""
    local = max(size // num_nodes, 1)
    if kind in ("collective-permute", "collective-broadcast"):
        return (whole, 0) if num_nodes == 1 else (0, whole)
    if kind == "all-to-all":
        return whole * (local - 1) // size, whole * (size - local) // size
    rounds = 2 if kind == "all-reduce" else 1
    return whole * (local - 1) // local * rounds, whole // local * (num_nodes - 1) // num_nodes * rounds


def _nodes_of_a_group(groups_GN: Int[np.ndarray, "G N"], nodes: Sequence[int]) -> int:
    if not nodes:
        return 1
    return max(len(set(group)) for group in np.asarray(nodes)[groups_GN].tolist())


def _between_slices(target: re.Match[str], instruction: Instruction, times: int) -> Collective:
    """What a device's host sends for it: its part to all other slices, a sum as a ring does it."""
    num_slices, kind = len(target[1].split(",")), target[2].lower().replace("_", "-")
    arrays = [(dtype, _dims(dims)) for dtype, dims in _ARRAY.findall(instruction.shape)][:1]  # then a context
    operand = sum(_num_bytes(dtype, dims) for dtype, dims in arrays)
    shares = {"all-gather": num_slices - 1.0, "all-reduce": 2 * (num_slices - 1) / num_slices}
    shares |= dict.fromkeys(("reduce-scatter", "all-to-all"), (num_slices - 1) / num_slices)
    sent = int(operand * shares.get(kind, 1.0))
    return Collective(kind, sent, times, tuple(dims for _, dims in arrays), between=SLICES)


def _dims(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


def _num_bytes(dtype: str, dims: tuple[int, ...]) -> int:
    bits = 8 if dtype == "pred" or dtype.startswith("f8") else int(re.sub(r"\D", "", dtype))
    return math.prod(dims) * bits // 8


def _groups(attributes: str, num_devices: int) -> Int[np.ndarray, "G N"]:
    """The devices of each group, from any of the forms in which XLA writes them; of permutes their pairs."""
    if pairs := re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", attributes):
        return _explicit(pairs[1])
    if explicit := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", attributes):
        return _explicit(explicit[1])
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]*\](?:T\([\d,]*\))?)", attributes):
        return _iota(iota[3]).reshape(int(iota[1]), int(iota[2]))
    mesh = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\[[\d,]*\](?:T\([\d,]*\))?)\))? \{([^}]*)\}", attributes
    )
    if mesh and len(set(re.findall(r"'(\w+)'", mesh[3]))) == mesh[3].count("'") // 2:  # no axis in two parts
        return _mesh_groups(mesh[1], mesh[2], mesh[3])
    if "replica_groups={}" in attributes and num_devices:
        return np.arange(num_devices)[None]
    raise ConfigError(
        f"the compiler names the devices of a collective in a way that is not known here: {attributes[:200]}; plan "
        "with the jax version that constraints.txt names"
    )


def _mesh_groups(axes: str, device_ids: str | None, taken: str) -> Int[np.ndarray, "G N"]:
    """Groups along the axes `taken` of a mesh "'a'=8,'b'=2": whole ones ("'a'") or parts ("'a':(2)4": of size 4, in
    each of 2)."""
    dims: list[int] = []
    parts = {name: (int(before or 1), size) for name, before, size in re.findall(_AXIS, taken)}
    groups: list[int] = []
    for name, text in re.findall(r"'(\w+)'=(\d+)", axes):
        whole = int(text)
        if name not in parts:
            dims.append(whole)
            continue
        before, size = parts[name][0], int(parts[name][1] or whole)
        groups.append(len(dims) + 1)
        dims += [before, size, whole // (before * size)]
    order = _iota(device_ids) if device_ids else np.arange(math.prod(dims))
    ends = range(len(dims) - len(groups), len(dims))
    number = math.prod(dims[dim] for dim in groups)
    return np.moveaxis(order.reshape(dims), groups, ends).reshape(-1, number)


def _explicit(text: str) -> Int[np.ndarray, "G N"]:
    return np.array([_dims(group) for group in re.findall(r"\{([\d,]*)\}", text)])


def _iota(text: str) -> Int[np.ndarray, ...]:
    """Device numbers as "[2,8]T(1,0)" says: those from 0 on in this shape, transposed."""
    dims, _, order = text.partition("T")
    numbers = np.arange(math.prod(_dims(dims.strip("[]")))).reshape(_dims(dims.strip("[]")))
    return numbers.transpose(_dims(order.strip("()"))) if order else numbers

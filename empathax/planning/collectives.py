"""What a compiled program sends between devices: collectives by kind, counted as often as they run."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from empathax.planning.hlo import Instruction, Program, parse_instruction

BETWEEN_SLICES = " between slices"
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_OPCODE = re.compile(rf" (?:ragged-)?({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|[subf]\d+|bf16|f8\w+|c64|c128)\[([\d,]*)\]")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_SLICES = re.compile(r'_xla_megascale_target="\{([\d,]*)\}.*_xla_megascale_transfer_type="(\w+)"')
_PART = "chain_id="  # libtpu spreads one collective over several fusions, inner loops' too: start, parts, end


@dataclass(frozen=True)
class Collective:
    """One collective of the program.

    `bytes` are those that a device sends each time, the way rings do it: all-gather and all-to-all (n - 1) / n of the
    whole array, reduce-scatter the same, all-reduce twice that, a permute its operand. Between TPU slices the compiler
    leaves it to the hosts: the program hands them what its slice has to say and gets the result back.
    """

    kind: str
    bytes: int
    times: int
    arrays: tuple[tuple[int, ...], ...]  # dims of the arrays in it
    between_slices: bool = False


def collectives_of(program: Program, unknown_trips: int = 1) -> list[Collective]:
    """Every collective that a run of the program does, with how often."""
    executions = program.executions(unknown_trips)
    found: dict[tuple[str, str], Collective] = {}
    for computation in program.computations.values():
        times = executions[computation.name]
        for name, line in computation.lines.items():
            opcode = _OPCODE.search(line)
            if times and " send(" in line and (slices := _SLICES.search(line)):
                found[computation.name, name] = _between_slices(slices, parse_instruction(line), times)
            if not opcode or not times:
                continue
            collective = _collective(opcode[1], bool(opcode[2]), parse_instruction(line), times)
            channel = _CHANNEL.search(line)
            key = (opcode[1], f"channel {channel[1]}") if channel and _PART in line else (computation.name, name)
            if key not in found or found[key].times > times:
                found[key] = collective
    return [collective for collective in found.values() if collective.bytes]


def by_kind(collectives: Iterable[Collective]) -> dict[str, dict[str, int]]:
    """Kind -> {"count", "bytes"} of one run, bytes as a device sends them; "KIND between slices" apart."""
    totals: dict[str, dict[str, int]] = {}
    for collective in collectives:
        name = collective.kind + BETWEEN_SLICES * collective.between_slices
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


def _collective(kind: str, is_start: bool, instruction: Instruction, times: int) -> Collective:
    arrays = [(dtype, _dims(dims)) for dtype, dims in _ARRAY.findall(instruction.shape)]
    arrays = [(dtype, dims) for dtype, dims in arrays if not (is_start and dtype == "u32" and dims == ())]  # contexts
    total = sum(_num_bytes(dtype, dims) for dtype, dims in arrays)
    group = _group_size(instruction.attributes)
    whole = total
    if is_start and kind in ("all-gather", "reduce-scatter"):  # operand and result, one of them a share of the other
        whole = total * group // (group + 1)
    elif kind == "reduce-scatter":
        whole = total * group
    elif is_start and kind in ("all-to-all", "collective-permute", "collective-broadcast"):
        whole = total // 2
    if kind in ("collective-permute", "collective-broadcast"):
        sent = whole
    else:
        sent = whole * (group - 1) // group * (2 if kind == "all-reduce" else 1)
    return Collective(kind, sent, times, tuple(dims for _, dims in arrays))


def _between_slices(target: re.Match[str], instruction: Instruction, times: int) -> Collective:
    """What a device's host sends for it: its part to all other slices, a sum as a ring does it."""
    num_slices, kind = len(target[1].split(",")), target[2].lower().replace("_", "-")
    arrays = [(dtype, _dims(dims)) for dtype, dims in _ARRAY.findall(instruction.shape)][:1]  # then a context
    operand = sum(_num_bytes(dtype, dims) for dtype, dims in arrays)
    shares = {"all-gather": num_slices - 1.0, "all-reduce": 2 * (num_slices - 1) / num_slices}
    shares |= dict.fromkeys(("reduce-scatter", "all-to-all"), (num_slices - 1) / num_slices)
    sent = int(operand * shares.get(kind, 1.0))
    return Collective(kind, sent, times, tuple(dims for _, dims in arrays), between_slices=True)


def _dims(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


def _num_bytes(dtype: str, dims: tuple[int, ...]) -> int:
    bits = 8 if dtype == "pred" or dtype.startswith("f8") else int(re.sub(r"\D", "", dtype))
    return math.prod(dims) * bits // 8


def _group_size(attributes: str) -> int:
    """Devices that take part in one collective, from any of the forms in which XLA writes replica_groups."""
    if explicit := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return len(explicit[1].split(","))
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
        return int(iota[2])
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", mesh[2]))
    return 2  # permutes have pairs of devices instead; their share does not depend on it

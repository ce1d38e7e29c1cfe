"""Compiled programs as XLA prints them: computations, how often each runs, and single instructions.

A while loop's body runs as often as the loop goes round. XLA says so for some loops (known_trip_count); for others it
is read from the loop's condition (counter < constant), the counter's start and its step in the body.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_KNOWN_TRIPS = re.compile(r'known_trip_count"?:\{"?n"?:"?(\d+)')
_NAME = re.compile(r"%([\w.\-]+)")


@dataclass(frozen=True)
class Instruction:
    """One instruction; `attributes` is all that follows its operands."""

    name: str
    shape: str
    opcode: str
    operands: str
    attributes: str

    @property
    def operand_names(self) -> list[str]:
        """The instructions that it reads."""
        return _NAME.findall(self.operands)


@dataclass(frozen=True)
class Computation:
    """The lines of one computation by instruction name, its root's name, and the lines that call others."""

    name: str
    lines: dict[str, str]
    root: str
    callers: tuple[str, ...]

    def __getitem__(self, name: str) -> Instruction | None:
        line = self.lines.get(name)
        return parse_instruction(line) if line else None


@dataclass(frozen=True)
class Program:
    """All computations of a program."""

    computations: dict[str, Computation]
    entry: str

    def executions(self, unknown_trips: int = 1) -> dict[str, int]:
        """How often each computation runs in one run of the program; branches that exclude each other count each.

        A loop whose rounds depend on the data is taken to go round `unknown_trips` times.
        """
        counts = dict.fromkeys(self.computations, 0)
        pending = [(self.entry, 1)]
        while pending:
            name, times = pending.pop()
            if name not in counts:
                continue
            counts[name] += times
            pending += [
                (callee, times * factor)
                for line in self.computations[name].callers
                for callee, factor in self._called(name, line, unknown_trips)
            ]
        return counts

    def _called(self, caller: str, line: str, unknown_trips: int) -> list[tuple[str, int]]:
        if loop := _LOOP.search(line):
            trips = self._trips(caller, line, loop[1], loop[2])
            return [(loop[2], unknown_trips if trips is None else trips)]
        branches = _BRANCHES.search(line)
        names = _NAME.findall(branches[1]) if branches else []
        return [(name, 1) for name in [*names, *_CALLED.findall(line)]]

    def _trips(self, caller: str, line: str, condition_name: str, body_name: str) -> int | None:
        """Rounds of a loop; None if they are not known before it runs."""
        if known := _KNOWN_TRIPS.search(line):
            return int(known[1])
        condition, body = self.computations[condition_name], self.computations[body_name]
        compare = condition[condition.root]
        if compare is None or compare.opcode != "compare" or "direction=LT" not in compare.attributes:
            return None
        counter, limit = (condition[name] for name in compare.operand_names)
        stop = _constant(limit)
        index = re.search(r"index=(\d+)", counter.attributes) if counter else None
        if stop is None or index is None:
            return None
        start = _start(self.computations[caller], line, int(index[1]))
        step = _step(body, int(index[1]))
        return max(0, -(-(stop - start) // step))


def parse_program(text: str) -> Program:
    """The text of `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, name, lines, root = "", "", dict[str, str](), ""
    for line in text.splitlines():
        if header := _COMPUTATION.match(line):
            name, lines, root = header[2], {}, ""
            entry = name if header[1] else entry
        elif line.startswith("}"):
            callers = tuple(text for text in lines.values() if _LOOP.search(text) or _calls(text))
            computations[name] = Computation(name, lines, root, callers)
        elif instruction := _INSTRUCTION.match(line):
            lines[instruction[2]] = line
            root = instruction[2] if instruction[1] else root
    return Program(computations, entry)


def parse_instruction(line: str) -> Instruction:
    """One line of a computation."""
    match = _INSTRUCTION.match(line)
    assert match is not None, line
    rest = line[match.end() :]
    shape_end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    opcode_start = shape_end + (rest[shape_end] == " ")
    opening = rest.index("(", opcode_start)
    closing = _closing(rest, opening)
    return Instruction(
        match[2], rest[:shape_end], rest[opcode_start:opening].strip(), rest[opening + 1 : closing], rest[closing + 1 :]
    )


def _calls(line: str) -> bool:
    return bool(_CALLED.search(line) or _BRANCHES.search(line))


def _closing(text: str, opening: int) -> int:
    """The index of the bracket that closes the one at `opening`."""
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return match.start()
    raise ValueError(f"unbalanced brackets: {text[opening : opening + 80]}")


def _constant(instruction: Instruction | None) -> int | None:
    if instruction is None or instruction.opcode != "constant" or not instruction.operands.lstrip("-").isdigit():
        return None
    return int(instruction.operands)


def _start(caller: Computation, line: str, index: int) -> int:
    """The counter before the loop: a constant of the tuple it starts from, else 0, where jax's loops start."""
    operands = parse_instruction(line).operand_names
    start = caller[operands[0]] if operands else None
    if start is None or start.opcode != "tuple" or index >= len(start.operand_names):
        return 0
    found = caller[start.operand_names[index]]
    while found is not None and found.opcode in ("copy", "bitcast") and found.operand_names:
        found = caller[found.operand_names[0]]
    return _constant(found) or 0


def _step(body: Computation, index: int) -> int:
    """What a round adds to the counter; 1, as jax's loops do, if that cannot be read."""
    root = body[body.root]
    if root is None or root.opcode != "tuple" or index >= len(root.operand_names):
        return 1
    added = body[root.operand_names[index]]
    if added is None or added.opcode != "add":
        return 1
    steps = [_constant(body[name]) for name in added.operand_names]
    return next((step for step in steps if step is not None and step > 0), 1)

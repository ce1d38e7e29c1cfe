"""A plan in words and tables, for a terminal or a document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from empathax.config.hardware import GIB
from empathax.training.held_out import REPLIES
from empathax.training.stages.stage import find_stage

ASSUMPTIONS = (
    "compute: what the step computes, unused tokens of rows and recomputation included, at the peak bfloat16 rate",
    "memory: arguments and results once, temporaries and what collectives bring written and read once; in decode the "
    "parameters once a token",
    "network: the bytes that a device sends, over all its links at their full rate in one direction; at the same time "
    "what goes between TPU slices or GPU nodes, at its share of the data center network or its card's rate",
    "between the longest of the three (all overlap) and their sum (none do); a real step takes longer",
)
Plan = Mapping[str, Any]


def plan_text(plan: Plan) -> str:
    """The whole plan."""
    blocks = [_subject(plan), _memory(plan["parts"], plan["hbm_bytes"]), _verdict(plan), _network(plan), _time(plan)]
    if "searched" in plan:
        blocks.append(_search(plan))
    return "\n\n".join(blocks)


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f"{size / GIB:,.2f}"


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its columns aligned."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [head, *rows]
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def _subject(plan: Plan) -> str:
    mesh = " x ".join(f"{axis}={size}" for axis, size in plan["mesh"].items())
    units = "replies" if find_stage(plan["stage"]).measures == REPLIES else "pairs"
    micro = f" x {plan['accumulation_steps']} micro-batches" if plan["accumulation_steps"] > 1 else ""
    return "\n".join(
        [
            f"{plan['name']}: {plan['stage']} on {plan['topology']}, {plan['num_devices']} devices of "
            f"{gib(plan['hbm_bytes'])} GiB for XLA, mesh {mesh}",
            f"model    {plan['model']}: {plan['num_parameters'] / 1e6:,.1f}M parameters ({plan['model_from']})",
            *_adapter(plan),
            f"step     {plan['rows_per_batch']} rows{micro} of {plan['row_length']:,} tokens and "
            f"{plan['trained_slots']:,} trained slots; about {plan['units_per_step']:,} {units}; "
            f"reference {plan['reference']}",
            f"         {plan['rows_from']}",
        ]
    )


def _adapter(plan: Plan) -> list[str]:
    if plan["num_trained"] == plan["num_parameters"]:
        return []
    return [f"         {plan['num_trained'] / 1e6:,.1f}M of an adapter are trained, the model is frozen"]


def _memory(parts: Mapping[str, Plan], hbm_bytes: int) -> str:
    rows = [
        [kind, *(gib(part["bytes_per_device"][kind]) for part in parts.values())]
        for kind in next(iter(parts.values()))["bytes_per_device"]
        if any(part["bytes_per_device"][kind] for part in parts.values())
    ]
    rows.append(["fits", *(_fits(part, hbm_bytes) for part in parts.values())])
    rows.append(["compiled in", *(f"{part['compile_seconds']} s" for part in parts.values())])
    return markdown_table(["GiB a device", *parts], rows)


def _fits(part: Plan, hbm_bytes: int) -> str:
    if part["fits"]:
        return f"yes, {gib(hbm_bytes - part['bytes_per_device']['total'])} left"
    return f"no, {gib(part['missing_bytes'])} missing"


def _verdict(plan: Plan) -> str:
    if plan["fits"]:
        return "It fits."
    return f"It does not fit: {gib(plan['missing_bytes'])} GiB a device are missing."


def _network(plan: Plan) -> str:
    rows = [
        [name, kind, f"{entry['count']:,}", gib(entry["bytes"])]
        for name, part in plan["parts"].items()
        for kind, entry in part["collectives"].items()
    ]
    if not rows:
        return "No collectives: nothing is sent between devices."
    logits = sum(part["collectives_of_logits"] for part in plan["parts"].values())
    return (
        f"Collectives of one run, those in loops as often as the loop goes round; {logits} of them move logits\n"
        + markdown_table(["step", "kind", "count", "GiB a device sends"], rows)
    )


def _time(plan: Plan) -> str:
    lines = [f"useful arithmetic of a step: {plan['model_flops_per_step'] / 1e12:,.4g} TFLOP"]
    names = ("compute", "memory", "network")
    for name, part in plan["parts"].items():
        if estimate := part["roofline"]:
            shares = ", ".join(f"{what} {estimate[f'{what}_seconds']:.3g} s" for what in names)
            lines.append(
                f"{name} takes at least {estimate['step_seconds_at_least']:.3g} to "
                f"{estimate['step_seconds_without_overlap']:.3g} s ({shares})"
            )
    return "\n".join([*lines, *(f"  {line}" for line in ASSUMPTIONS)] if len(lines) > 1 else lines)


def _search(plan: Plan) -> str:
    rows = [
        [tried["topology"], str(tried["rows_per_batch"]), gib(tried["total_bytes"]), "yes" if tried["fits"] else "no"]
        for tried in plan["searched"]
    ]
    if "largest_rows_per_batch" in plan:
        least = "" if plan["is_certain"] else "at least "
        rows_found = f"{least}{plan['largest_rows_per_batch']}" if plan["largest_rows_per_batch"] else "none"
        found = f"largest rows_per_batch that fits on {plan['topology']}: {rows_found}"
    else:
        found = f"smallest topology that fits: {plan['smallest_topology'] or 'none of this kind'}"
    return found + "\n" + markdown_table(["topology", "rows", "GiB a device", "fits"], rows)

"""What `config.mesh` may say: sizes of the axes, hardware by name, and rules for what lies on which axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from empathax.config.hardware import parse_hardware
from empathax.config.options import MeshOptions
from empathax.errors import ConfigError, did_you_mean, raise_all

AXES = ("data", "fsdp", "tensor")
LOGICAL_AXES = ("layer", "vocab", "embed", "heads", "kv_heads", "head_dim", "ff")
Rules = Mapping[str, tuple[str, ...]]  # logical axis -> the mesh axes it is split over

# Fully sharded data parallelism splits the model dimension, tensor parallelism the dimension that a matmul leaves or
# enters with. A logical axis without a rule is whole on every device.
DEFAULT_RULES: Rules = {
    "embed": ("fsdp",),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "ff": ("tensor",),
}
# Every device along data x fsdp needs a row of its own, and preference steps have few rows; the key heads of the models
# in configs/ can be split eight ways.
PRESET_MAX_FSDP = 32
PRESET_MAX_TENSOR = 8
_SIZES = ("data", "fsdp", "tensor", "dcn_data", "dcn_fsdp")


def preset_sizes(name: str) -> dict[str, int]:
    """The axes' sizes for the hardware called `name`; raises ConfigError if there is none such.

    Parameters are split within a slice (or GPU node), where links are fast, and repeated on each slice, so that only
    the sum of the gradients goes from slice to slice.
    """
    hardware = parse_hardware(name)
    fsdp, tensor = hardware.slice_size, 1
    while fsdp > PRESET_MAX_FSDP and fsdp % 2 == 0 and tensor < PRESET_MAX_TENSOR:
        fsdp, tensor = fsdp // 2, 2 * tensor
    slices = hardware.num_slices
    return {"data": slices, "fsdp": fsdp, "tensor": tensor, "dcn_data": slices, "dcn_fsdp": 1}


def parse_rules(changes: str) -> Rules:
    """DEFAULT_RULES with `changes` such as "embed=tensor,heads=fsdp+data,vocab=": on one mesh axis, on two, on none.

    Raises one ConfigError with everything in them that cannot be used.
    """
    rules, problems = dict(DEFAULT_RULES), []
    for change in filter(None, (part.strip() for part in changes.split(","))):
        logical, equals, places = (part.strip() for part in change.partition("="))
        axes = tuple(axis.strip() for axis in places.split("+")) if places else ()
        if not equals:
            problems.append(f"mesh.rules: {change!r} is not a rule: expected DIMENSION=AXIS, such as embed=fsdp")
            continue
        if logical not in LOGICAL_AXES:
            problems.append(_unknown(change, "dimension", logical, LOGICAL_AXES))
        problems += [_unknown(change, "axis", axis, AXES) for axis in axes if axis not in AXES]
        if len(set(axes)) != len(axes):
            problems.append(f"mesh.rules: {change!r} names a mesh axis twice")
        rules[logical] = axes
    raise_all(ConfigError, "the rules cannot be used", problems)
    return rules


def problems(mesh: MeshOptions) -> Iterator[str]:
    """What is wrong with the settings of `config.mesh` before any device has been seen."""
    sizes, defaults = ({name: getattr(options, name) for name in _SIZES} for options in (mesh, MeshOptions()))
    if [sizes[axis] for axis in AXES].count(-1) > 1:
        yield "mesh: at most one of data, fsdp, tensor may be -1 (all devices that are left)"
    if 0 in [sizes[axis] for axis in AXES]:
        yield "mesh: an axis of size 0; use 1 for an axis that is not used"
    for axis in ("data", "fsdp"):
        size, times = sizes[axis], sizes[f"dcn_{axis}"]
        if size > 0 and times > 0 and size % times:
            yield (
                f"mesh.dcn_{axis} = {times} does not divide mesh.{axis} = {size}: mesh.{axis} counts the devices of "
                "all slices"
            )
    if mesh.preset:
        changed = [f"mesh.{name}" for name in _SIZES if sizes[name] != defaults[name]]
        if changed:
            yield f"mesh.preset = {mesh.preset!r} sets all sizes: leave it empty, or do not set {', '.join(changed)}"
        yield from _complaints("mesh.preset: ", preset_sizes, mesh.preset)
    yield from _complaints("", parse_rules, mesh.rules)


def _complaints(prefix: str, parse: Any, value: Any) -> Iterator[str]:
    try:
        parse(value)
    except ConfigError as error:
        yield f"{prefix}{error}"


def _unknown(change: str, kind: str, name: str, known: Sequence[str]) -> str:
    near = did_you_mean(name, known, otherwise=f"; known: {', '.join(known)}")
    return f"mesh.rules: {change!r}: there is no {kind} {name!r}{near}"

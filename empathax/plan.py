"""`python -m empathax.plan --config=FILE --topology=v5e:4x4`: what a config needs of hardware that is not there."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from empathax import json_text
from empathax.config import to_dict
from empathax.config.flags import load_config
from empathax.config.hardware import find_kind, parse_hardware
from empathax.config.options import STAGES
from empathax.errors import ConfigError, exit_on_error
from empathax.planning.child_process import PARTS, Request, run_plan


@exit_on_error
def main(argv: Sequence[str]) -> int:
    """See docs/plan.md. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m empathax.plan --config=FILE [--config.a.b=VALUE]", description=__doc__
    )
    add = parser.add_argument
    add("--topology", required=True, help="v5e:4x4, 2xv5p:4x4x4 (two slices), h100:2x8, ...; a kind with --search")
    add("--stage", choices=tuple(STAGES), help="which of the config's stages; by default its last one")
    add("--parts", default="train,reference,eval", help=f"steps to compile, some of {','.join(PARTS)}")
    add("--search", action="store_true", help="the most rows that fit; of a kind (v5e) the smallest slice that fits")
    add("--model-config", default="", help="a config.json that describes the model instead of model.path")
    add("--json", nargs="?", const="-", default="", metavar="FILE", help="the plan as JSON, to stdout or a file")
    flags, rest = parser.parse_known_args(argv)
    config, unknown = load_config(rest)
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    parts = tuple(flags.parts.split(","))
    if not set(parts) <= set(PARTS):
        raise ConfigError(f"--parts={flags.parts}: expected some of {', '.join(PARTS)}")
    stage = flags.stage or config.stages[-1]
    if stage not in config.stages:
        raise ConfigError(f"--stage={stage}: this config's stages are {', '.join(config.stages)}")

    from empathax.planning.plan_text import plan_text

    find_kind(flags.topology) if flags.search and ":" not in flags.topology else parse_hardware(flags.topology)
    request = Request(to_dict(config), stage, flags.topology, parts, flags.search, flags.model_config)
    plan = run_plan(request, lambda text: print(text, file=sys.stderr, flush=True))
    text = json_text.dumps(plan, indent=2)
    if flags.json and flags.json != "-":
        Path(flags.json).write_text(text + "\n", encoding="utf-8")
    print(text if flags.json == "-" else plan_text(plan))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

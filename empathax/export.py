"""`python -m empathax.export --checkpoint=DIR --out=DIR`: a model as a Hugging Face or an Orbax directory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from empathax.config.arguments import file_path, path_text
from empathax.errors import exit_on_error


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m empathax.export", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=path_text, default="", help="a run's --workdir (its latest stage), a stage, or a step")
    add("--out", type=file_path, required=True, help="a directory that does not exist yet, or is empty")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the written weights")
    add(
        "--model",
        type=path_text,
        default="",
        help="where the run's first model is now, if it was moved; with orbax, what to convert",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--adapter", action="store_true", help="a LoRA run's adapters alone, in PEFT format (default)")
    form.add_argument("--merge", action="store_true", help="a LoRA run's model with its adapters merged in")
    add("--to", choices=("huggingface", "orbax"), default="huggingface", help="orbax: many hosts load it faster")
    flags = parser.parse_args(argv)
    if flags.to == "orbax" and bool(flags.checkpoint) == bool(flags.model):
        parser.error("--to=orbax converts one model: name it by --checkpoint or by --model")
    if flags.to != "orbax" and not flags.checkpoint:
        parser.error("--checkpoint=DIR is missing: a run's --workdir, a stage, or a step")
    return flags


@exit_on_error
def main(argv: Sequence[str]) -> int:
    """See docs/commands.md. Returns the exit code."""
    flags = _flags(argv)
    from empathax.training import export

    export.check_out_dir(flags.out)
    if flags.to == "orbax":
        path = flags.checkpoint or flags.model
        print(f"converting {path}, as {flags.dtype} to {flags.out}", flush=True)
        export.convert_to_orbax(path, flags.out, flags.dtype)
        print(f"wrote {flags.out}")
        return 0
    checkpoint = export.open_checkpoint(Path(flags.checkpoint), flags.model)
    export.check_form(checkpoint, flags.adapter, flags.merge)
    if checkpoint.has_adapters and not flags.merge:
        print(f"exporting the adapters of {checkpoint.describe()}, in PEFT format to {flags.out}", flush=True)
        export.export_adapters(checkpoint, flags.out)
    else:
        print(f"exporting {checkpoint.describe()}, as {flags.dtype} to {flags.out}", flush=True)
        export.export_checkpoint(checkpoint, flags.out, flags.dtype)
    print(f"wrote {flags.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

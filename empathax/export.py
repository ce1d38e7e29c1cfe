"""`python -m empathax.export --checkpoint=DIR --out=DIR`: a trained model as a Hugging Face directory."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from empathax.errors import exit_on_error


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m empathax.export", description=__doc__)
    add = parser.add_argument
    add("--checkpoint", type=Path, required=True, help="a run's --workdir (its latest stage), a stage, or a step")
    add("--out", type=Path, required=True, help="a directory that does not exist yet, or is empty")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the written weights")
    add("--model", default="", help="where the model that the run began with is now, if it was moved")
    return parser.parse_args(argv)


@exit_on_error
def main(argv: Sequence[str]) -> int:
    """See docs/commands.md. Returns the exit code."""
    flags = _flags(argv)
    from empathax.training import checkpoint_export

    checkpoint_export.check_out_dir(flags.out)
    checkpoint = checkpoint_export.open_checkpoint(flags.checkpoint, flags.model)
    print(f"exporting {checkpoint.describe()}, as {flags.dtype} to {flags.out}", flush=True)
    checkpoint_export.export_checkpoint(checkpoint, flags.out, flags.dtype)
    print(f"wrote {flags.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

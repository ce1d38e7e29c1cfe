"""`python -m empathax.checkpoint inspect|verify DIR`: what checkpoints hold, and whether they are what was saved."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from empathax.config.arguments import file_path
from empathax.errors import exit_on_error


@exit_on_error
def main(argv: Sequence[str]) -> int:
    """See docs/commands.md. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m empathax.checkpoint", description=__doc__)
    parser.add_argument("action", choices=("inspect", "verify"), help="verify also reads every array")
    parser.add_argument("directory", type=file_path, help="a run's --workdir, a stage, a step, or a converted model")
    flags = parser.parse_args(argv)

    from empathax.training import checkpoint_table

    lines = checkpoint_table.inspect(flags.directory, flags.action == "verify")
    print(checkpoint_table.table(flags.directory, lines), flush=True)
    checkpoint_table.check(lines, flags.directory)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

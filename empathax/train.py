"""`python -m empathax.train --config=FILE --workdir=DIR`: runs a config's stages; run it again to go on."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from empathax import sigterm
from empathax.errors import ConfigError, exit_on_error
from empathax.parallel.host import restart_with_huge_pages


@exit_on_error
def main(argv: Sequence[str]) -> int:
    """See docs/commands.md. Returns the exit code."""
    with sigterm.listening():
        return _main(argv)


def _main(argv: Sequence[str]) -> int:
    from empathax.config.arguments import file_path

    parser = argparse.ArgumentParser(
        prog="python -m empathax.train --config=FILE [--config.a.b=VALUE]", description=__doc__
    )
    add = parser.add_argument
    add("--workdir", type=file_path, required=True, help="where the run is kept; the same again goes on")
    add("--overwrite", action="store_true", help="remove what an earlier run wrote there first, and nothing else")
    add("--multihost", action="store_true", help="one of several processes: find the others, then start")
    flags, rest = parser.parse_known_args(argv)

    from empathax.config.flags import load_sweep
    from empathax.parallel.agreement import fail_together
    from empathax.parallel.processes import is_leader, joined

    with joined(flags.multihost):
        with fail_together():
            variations, unknown = load_sweep(rest)
            if unknown:
                raise ConfigError(f"unknown arguments: {' '.join(unknown)}; see --help and docs/commands.md")

        from empathax.training import sweep, workdirs

        try:
            runs = sweep.prepare(variations, flags.workdir, flags.overwrite)
            if is_leader():
                print(sweep.describe(runs), flush=True)
            text = sweep.run(runs, flags.workdir)
        finally:
            workdirs.release()
        if is_leader():
            print(f"\n{text}\n{flags.workdir}: {sweep.output_files(runs)}", flush=True)
    return 0


if __name__ == "__main__":
    restart_with_huge_pages()
    code = main(sys.argv[1:])
    sigterm.ignore()
    sys.exit(code)

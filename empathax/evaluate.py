"""`python -m empathax.evaluate --config=FILE [--model=DIR] [--out=JSON]`: a model on the config's held-out data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from empathax.config import load_config
from empathax.errors import exit_on_error
from empathax.parallel.huge_pages import restart_with_huge_pages


@exit_on_error
def main(argv: Sequence[str]) -> int:
    """See docs/commands.md. Returns the exit code."""
    prog = "python -m empathax.evaluate --config=FILE [--config.a.b=VALUE]"
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("--model", default="", help="what to evaluate; left out: the config's own base model")
    parser.add_argument("--out", type=Path, help="one flat JSON object: metric name -> number")
    flags, rest = parser.parse_known_args(argv)
    config, unknown = load_config(rest)
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")

    from empathax.evaluation import output
    from empathax.training import evaluate_model

    if flags.out:
        output.check_writable(flags.out)
    evaluation = evaluate_model.prepare(config, flags.model)
    print(evaluation.describe(), flush=True)
    row = evaluate_model.evaluate(evaluation)
    print(evaluate_model.in_words(flags.model or config.model.path, row))
    if flags.out:
        output.write_json(flags.out, row.metrics)
    return 0


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(main(sys.argv[1:]))

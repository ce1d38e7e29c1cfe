"""`python -m empathax.build_preferences`: preference pairs, made by rules or with an LLM, ranked, filtered, known."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from empathax.config import Config
from empathax.errors import ConfigError, exit_on_error

USAGE = "python -m empathax.build_preferences --source=PATH --out=DIR (--rules=NAMES | --candidates=KIND | --inspect)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m empathax.build_preferences", usage=USAGE, description=__doc__)
    add = parser.add_argument
    add("--source", default="", help="dialogues, prompts or pairs: whatever data.path takes (else the config's)")
    add("--out", type=Path, help="a new directory: rows by split, what was dropped, summary and data card")
    add("--splits", default="train,valid", help="train, valid, test, with commas between")
    add("--seed", type=int, default=0)
    add("--max-length-ratio", type=float, default=3.0, help="words of one reply per word of the other; 0 = no limit")
    add("--near-duplicates", type=float, default=0.8, help="similarity from which on a pair is dropped; 0 = never")
    rules = parser.add_argument_group("rules, which need no LLM")
    rules.add_argument("--rules", default="", help="names with commas between, or all: docs/preference_data.md")
    rules.add_argument("--failed", default="", help="FailedESConv; left out: failed_esconv.json in --source")
    return parser


@exit_on_error
def main(argv: Sequence[str]) -> int:
    """See docs/commands.md and docs/preference_data.md. Returns the exit code."""
    parser = _parser()
    flags, rest = parser.parse_known_args(argv)
    if not flags.out:
        parser.error("--out is missing: where the set is to be written")
    config = _config(flags, rest)
    return _rules(flags, config)


def _config(flags: argparse.Namespace, rest: Sequence[str]) -> Config:
    """The settings of --config, if there is one, with --source in place of its data.path."""
    from empathax.config_flags import load_config

    has_config = any(flag.split("=")[0] == "--config" for flag in rest)
    config, unknown = load_config(rest) if has_config else (Config(), list(rest))
    if unknown:
        raise ConfigError(f"unknown arguments: {' '.join(unknown)}; see --help and docs/commands.md")
    path = flags.source or config.data.path
    if not path:
        raise ConfigError("no source was given: --source=PATH, or --config=FILE with data.path")
    return dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))


def _rules(flags: argparse.Namespace, config: Config) -> int:
    from empathax.preferences.filters import FilterOptions
    from empathax.preferences.rule_sets import build_rule_sets
    from empathax.preferences.rules import RULES

    build_rule_sets(
        tuple(RULES) if flags.rules == "all" else tuple(name for name in flags.rules.split(",") if name),
        config.data,
        failed_path=flags.failed,
        filters=FilterOptions(flags.max_length_ratio, flags.near_duplicates),
        splits=tuple(flags.splits.split(",")),
        seed=flags.seed,
        out=flags.out,
        say=lambda text: print(text, flush=True),
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

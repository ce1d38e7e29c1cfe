"""`python -m empathax.score --model=DIR --data=FILE --out=FILE`: log-probabilities of given replies, row by row."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from empathax.config import DataOptions, ModelOptions, from_config_dict
from empathax.config.arguments import file_path, path_text, whole_number
from empathax.errors import ConfigError, exit_on_error


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m empathax.score", description=__doc__)
    add = parser.add_argument
    add("--model", type=path_text, required=True, help="directory, .gguf file, hub name, package:NAME or random:PRESET")
    add(
        "--adapter",
        type=path_text,
        action="append",
        default=[],
        metavar="DIR",
        help="in PEFT format, on top of --model; several add up",
    )
    add(
        "--data",
        type=path_text,
        required=True,
        help="preference or SFT rows: JSON lines and every other format that training reads",
    )
    add("--out", type=file_path, required=True, help="JSON lines, a line for each row of --data in its order")
    add("--tokenizer", type=path_text, default="", help="another directory or .gguf file whose tokenizer is used")
    add("--packing", choices=("tree", "pair", "none"), default="tree", help="how much of the prompts is shared")
    add("--system-prompt", default="none", help="dbt, caregiving, none (the template's own), or the text itself")
    add("--chat-template", type=path_text, default="auto", help="auto, a family's name, or a .jinja file")
    add("--chat-template-kwargs", default="", metavar="JSON", help="""what it is told: '{"enable_thinking": true}'""")
    add("--template-date", default=DataOptions.template_date, help="the day that it prints, or today")
    add("--plain-text", choices=("chat", "raw"), default="chat", help="string prompts: a chat turn, or as they are")
    add(
        "--max-length",
        type=whole_number(),
        default=0,
        help="longest prompt + reply in tokens; 0 = the model's positions",
    )
    add("--rows-per-batch", type=whole_number(1), default=1, help="packed rows at once; more for accelerators")
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of weights and activations")
    return parser.parse_args(argv)


@exit_on_error
def main(argv: Sequence[str]) -> int:
    """See docs/commands.md. Returns the exit code."""
    flags = _flags(argv)
    import jax.numpy as jnp

    from empathax.evaluation import output, scoring
    from empathax.evaluation.progress import ProgressBar
    from empathax.models.weights.source import adapted_model, load_tokenizer, resolve_model
    from empathax.training.forward import make_score_step

    if flags.out.resolve() == Path(flags.data).resolve():
        raise ConfigError(
            f"--out and --data are the same file, {flags.data}: the rows would be lost; name another --out"
        )
    output.check_writable(flags.out)
    source = adapted_model(resolve_model(flags.model), flags.adapter)
    source.check()
    tokenizer = load_tokenizer(flags.tokenizer) if flags.tokenizer else source.tokenizer()
    named = ("packing", "system_prompt", "chat_template", "chat_template_kwargs", "template_date", "plain_text")
    settings = {name: getattr(flags, name) for name in named}
    settings["max_length"] = flags.max_length or source.config.max_positions
    options = from_config_dict({"data": settings}).data
    job = scoring.prepare(flags.data, options, tokenizer.fitted_to(source.config.vocab_size), source.config)
    print(f"{flags.model} scores {flags.data}: {job.describe()}", file=sys.stderr, flush=True)
    params = source.load_params(jnp.dtype(flags.dtype))
    step = make_score_step(source.config, ModelOptions(compute_dtype=flags.dtype))
    with ProgressBar("scoring", len(job.packed)) as bar:
        scores = scoring.score_replies(job, step, params, flags.rows_per_batch, bar.update)
    output.write_json_lines(flags.out, scoring.output_rows(job, *scores))
    print(f"wrote {flags.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

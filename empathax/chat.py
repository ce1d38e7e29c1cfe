"""`python -m empathax.chat --model=DIR`: talk to a model, to two side by side, or answer a file of prompts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from empathax.config import Config, DataOptions, EvalOptions, ModelOptions, from_config_dict
from empathax.config.arguments import MAX_COUNT, MAX_FLOAT, file_path, number, path_text, whole_number
from empathax.errors import exit_on_error


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m empathax.chat", description=__doc__)
    add, real = parser.add_argument, number(-MAX_FLOAT)  # sampling.py says what cannot work
    add("--model", type=path_text, required=True, help="directory, .gguf file, hub name, package:NAME or random:PRESET")
    add(
        "--adapter",
        type=path_text,
        action="append",
        default=[],
        metavar="DIR",
        help="in PEFT format, on top of --model; several add up",
    )
    add("--compare", type=path_text, help="a second model that answers the same prompts")
    add("--prompt-file", type=file_path, help='JSON lines with "prompt" or "messages", or text with a prompt a line')
    add("--out", type=file_path, help="JSON lines for --prompt-file; stdout if left out")
    add("--system-prompt", default="none", help="dbt, caregiving, none (the template's own), or the text itself")
    add("--chat-template", type=path_text, default="auto", help="auto, a family's name, or a .jinja file")
    add("--chat-template-kwargs", default="", metavar="JSON", help="""what it is told: '{"enable_thinking": true}'""")
    add("--template-date", default=DataOptions.template_date, help="the day that it prints, or today")
    add("--max-new-tokens", type=whole_number(1), default=128)
    add("--temperature", type=real, default=0.0, help="0 = greedy")
    add("--top-k", type=whole_number(-MAX_COUNT), default=0, help="0 = all tokens")
    add("--top-p", type=real, default=1.0, help="1 = all tokens")
    add("--min-p", type=real, default=0.0, help="least probability, as a share of the likeliest token's; 0 = all")
    add("--repetition-penalty", type=real, default=1.0, help="on tokens of prompt and reply; 1 = none")
    add("--stop-token", action="append", default=[], metavar="TEXT", help="ends a reply too; may be given again")
    add("--num-samples", type=whole_number(1), default=1, help="replies to each prompt of --prompt-file")
    add("--seed", type=whole_number(), default=0)
    add("--batch-size", type=whole_number(1), default=8, help="prompts of --prompt-file at once")
    add("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="auto: bfloat16 on accelerators only")
    flags = parser.parse_args(argv)
    if flags.out and not flags.prompt_file:
        parser.error("--out needs --prompt-file")
    if flags.num_samples > 1 and not flags.prompt_file:
        parser.error("--num-samples needs --prompt-file: a dialogue goes on from one reply")
    return flags


@exit_on_error
def main(argv: Sequence[str]) -> int:
    """See docs/commands.md. Returns the exit code."""
    flags = _flags(argv)
    from rich.console import Console

    from empathax.data.templates import system_text
    from empathax.evaluation import output
    from empathax.evaluation.generation import speaker
    from empathax.evaluation.generation.prompt_file import read_prompts
    from empathax.evaluation.generation.sampling import sampling_from
    from empathax.evaluation.progress import ProgressBar

    config = _config(flags)
    sampling_from(config.eval)  # refuses values that cannot work
    system = system_text(flags.system_prompt)
    rows = read_prompts(flags.prompt_file, system) if flags.prompt_file else []
    if flags.out:
        output.check_writable(flags.out)
    paths = [flags.model, *([flags.compare] if flags.compare else [])]
    opened = [
        speaker.open_speaker(path, config, flags.chat_template, adapters)
        for path, adapters in zip(paths, (flags.adapter, []), strict=False)
    ]
    speakers = [load() for load in opened]
    if not rows:
        speaker.talk(speakers, system, config, input, Console())
        return 0
    print(f"{' and '.join(paths)}: {len(rows)} prompts", file=sys.stderr, flush=True)
    with ProgressBar("answering", len(rows) * flags.num_samples) as bar:
        answers = list(speaker.answer_rows(speakers, rows, config, bar.update))
    if flags.out:
        output.write_json_lines(flags.out, answers)
    else:
        sys.stdout.writelines(map(output.json_line, answers))
    return 0


def _config(flags: argparse.Namespace) -> Config:
    told = {"chat_template_kwargs": flags.chat_template_kwargs, "template_date": flags.template_date}
    return Config(
        seed=flags.seed,
        data=from_config_dict({"data": told}).data,
        model=ModelOptions(param_dtype="float32" if flags.dtype == "auto" else flags.dtype, compute_dtype=flags.dtype),
        eval=EvalOptions(
            generation_batch=flags.batch_size,
            max_new_tokens=flags.max_new_tokens,
            temperature=flags.temperature,
            top_k=flags.top_k,
            top_p=flags.top_p,
            min_p=flags.min_p,
            repetition_penalty=flags.repetition_penalty,
            stop_tokens=tuple(flags.stop_token),
            num_samples=flags.num_samples,
        ),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

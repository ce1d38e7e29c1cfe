"""Pairs so short that a step compiles fast."""

import json
from pathlib import Path

MONTHS = ("January", "March", "May", "July", "September", "November")


def short_pairs(path: Path) -> str:
    """Writes pairs that fill some rows of 128 tokens of the byte tokenizer; returns `path` as data.path takes it."""
    losses = [f"I lost {thing} in {month}." for thing in ("a job", "a friend", "a dog") for month in MONTHS]
    rows = [{"prompt": loss, "chosen": "That hurts. What happened?", "rejected": "Find another."} for loss in losses]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)

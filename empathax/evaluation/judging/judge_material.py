"""What a judge is shown: one of our rubrics, and the texts to be judged under their names in a JSON object."""

from __future__ import annotations

import functools
import hashlib
import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass

from empathax.data.records import Message
from empathax.evaluation.judging.chat_requests import ChatRequest


@dataclass(frozen=True)
class JudgeOptions:
    """How a judge is asked. A model that thinks before it answers needs more tokens; some allow temperature 1 only."""

    max_tokens: int = 512
    temperature: float = 0.0
    seed: int | None = 0


DEFAULT_OPTIONS = JudgeOptions()


@functools.cache
def rubric(name: str) -> str:
    """The text of rubrics/NAME.md."""
    place = importlib.resources.files("empathax.evaluation.judging") / "rubrics" / f"{name}.md"
    return place.read_text(encoding="utf-8").strip()


def rubric_version(name: str) -> str:
    """Twelve hex digits that change with the rubric's text: scores under different versions cannot be compared."""
    return hashlib.sha256(rubric(name).encode()).hexdigest()[:12]


def judge_request(name: str, prompt: Sequence[Message], texts: dict[str, str], options: JudgeOptions) -> ChatRequest:
    """The request that puts `texts` and the conversation `prompt` before the judge, under the rubric `name`.

    A JSON object has no delimiter that a judged text could imitate. The system message of a prompt is the model's own
    business: rows with different ones are judged alike.
    """
    turns = [{"role": turn.role, "content": turn.content} for turn in prompt if turn.role != "system"]
    material = json.dumps({"conversation": turns, **texts}, ensure_ascii=False, indent=1)
    messages = (Message("system", rubric(name)), Message("user", material))
    return ChatRequest(messages, options.max_tokens, temperature=options.temperature, seed=options.seed)

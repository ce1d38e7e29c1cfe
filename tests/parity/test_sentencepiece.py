"""Directories whose only tokenizer is `tokenizer.model`, against sentencepiece and against transformers."""

from __future__ import annotations

import importlib.util
import json
import random
import shutil
from pathlib import Path

import pytest
import sentencepiece
import transformers

from empathax.models.tokenizers.hf import tokenizer_from_directory

WORDS = ["i", "feel", "so", "alone", "since", "my", "brother", "left", "the", "house", "and", "work", "been", "hard"]


def real_models() -> list[Path]:
    """The sentencepiece files of Mistral 7B 0.1 to 0.3, which the package mistral-common ships."""
    spec = importlib.util.find_spec("mistral_common")
    root = Path(next(iter(spec.submodule_search_locations))) if spec else Path("nowhere")
    return sorted((root / "data").glob("*.model.v*"))


def texts() -> list[str]:
    rng = random.Random(0)
    ranges = ((32, 126), (160, 0x2000), (0x3000, 0xD000), (0x1F300, 0x1F700), (32, 32))
    alphabet = [chr(rng.randint(*rng.choice(ranges))) for _ in range(3000)]
    noise = ["".join(rng.choices(alphabet, k=rng.randint(1, 50))) for _ in range(1000)]
    spaces = ["".join(rng.choices("ab  et\n.,1", k=rng.randint(1, 50))) for _ in range(1000)]
    return [*noise, *spaces, "", " ", "  two", "\x00", "aaaaaaaaaaa", "[INST]hi[/INST]", "<s></s><unk>", "<0x0A>"]


@pytest.mark.parametrize("path", real_models() or [None], ids=lambda path: path.name if path else "none")
def test_real_models_give_the_ids_of_sentencepiece(tmp_path, path):
    if path is None:
        pytest.skip("no real tokenizer.model at hand: pip install mistral-common brings those of Mistral 7B")
    shutil.copy(path, tmp_path / "tokenizer.model")
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ours = tokenizer_from_directory(tmp_path)
    assert [text for text in texts() if ours.encode_plain(text) != reference.encode(text)] == []


@pytest.mark.parametrize("legacy", [True, False])
def test_transformers_gives_the_same_ids(tmp_path, legacy):
    """Texts that begin with a space are left out: transformers 5 drops one there, sentencepiece does not."""
    rng = random.Random(1)
    lines = [" ".join(rng.choices(WORDS, k=10)) + rng.choice(["", "!", " 12", "é"]) for _ in range(400)]
    options = {"model_type": "bpe", "vocab_size": 360, "byte_fallback": True, "normalization_rule_name": "identity"}
    options |= {"remove_extra_whitespaces": False, "control_symbols": ["[INST]", "[/INST]"], "minloglevel": 2}
    with (tmp_path / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=file, **options)
    settings = {"tokenizer_class": "LlamaTokenizer", "legacy": legacy, "bos_token": "<s>", "eos_token": "</s>"}
    settings |= {"unk_token": "<unk>", "add_bos_token": True}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    ours, theirs = tokenizer_from_directory(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    chats = ["<s>[INST] feel so[/INST] alone</s>", "<s>[INST]feel so[/INST]alone</s>[INST]left", "a</s>b"]
    if legacy:  # here a space after a control token meets the same difference as one at the beginning
        chats = chats[1:]
    for text in [*chats, *(text for text in texts() if not text.startswith(" "))]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), repr(text)
    assert ours.encode("left", add_special_tokens=True) == theirs.encode("left")

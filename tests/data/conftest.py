"""Tiny tokenizers built like those of the model families, trained here in milliseconds."""

import json

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from empathax.models.tokenizers.tokenizer import SpecialNames, Tokenizer

CORPUS = [
    "Good morning, I hear you and I am here with you. It sounds hard, and it makes sense that you feel low today.",
    "user assistant system model Hello there. Tell me more about it, take your time. You should try a walk!",
    "[INST] [/INST] <<SYS>> <</SYS>>",
] * 3
SPECIALS = {
    "llama2": ("<unk>", "<s>", "</s>"),
    "mistral": ("<unk>", "<s>", "</s>"),
    "llama3": ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "gemma": ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
    "chatml": ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
}
NAMES = {
    "llama2": SpecialNames("<s>", "</s>", None, "<unk>"),
    "mistral": SpecialNames("<s>", "</s>", None, "<unk>"),
    "llama3": SpecialNames("<|begin_of_text|>", "<|end_of_text|>"),
    "gemma": SpecialNames("<bos>", "<eos>", "<pad>", "<unk>"),
    "chatml": SpecialNames("<|im_start|>", "<|im_end|>", "<|endoftext|>"),
}


def build_tokenizer(style: str, chat_template: str | None = None) -> Tokenizer:
    """A tokenizer with the splitting rules and control tokens of a family."""
    backend = Backend(models.BPE(byte_fallback=style in ("llama2", "mistral", "gemma")))
    if style in ("llama3", "chatml"):
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:  # sentencepiece: Llama and Mistral put a space before the text, Gemma does not
        strip = [decoders.Strip(" ", 1, 0)] if style != "gemma" else []
        backend.normalizer = normalizers.Replace(" ", "\u2581") if style == "gemma" else None
        scheme = "never" if style == "gemma" else "first"
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)  # to learn whole words
        backend.decoder = decoders.Sequence(
            [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
        alphabet = [chr(code) for code in range(32, 127)] + ["\u2581"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if style in ("llama2", "mistral", "gemma") else []
    trainer = trainers.BpeTrainer(
        vocab_size=900, initial_alphabet=alphabet, special_tokens=[*SPECIALS[style], *bytes_], show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    if bytes_:
        spec = json.loads(backend.to_str())
        spec["pre_tokenizer"]["split"] = False
        # the trainer marks bytes special; here they are what unknown characters fall back to
        spec["added_tokens"] = [token for token in spec["added_tokens"] if token["content"] in SPECIALS[style]]
        backend = Backend.from_str(json.dumps(spec))
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS[style]])
    return Tokenizer(backend, NAMES[style], chat_template=chat_template)


@pytest.fixture(scope="session")
def tokenizers():
    """Tokenizers by style, without chat templates of their own."""
    return {style: build_tokenizer(style) for style in SPECIALS}


@pytest.fixture(scope="session")
def make_tokenizer():
    """build_tokenizer, for tests that need a chat template in the tokenizer."""
    return build_tokenizer


@pytest.fixture(scope="session")
def chatml(tokenizers):
    """The tokenizer most tests use."""
    return tokenizers["chatml"]


@pytest.fixture
def write_lines(tmp_path):
    """Writes rows (JSON values, or raw text) as lines of a file and returns its path."""

    def write(name, rows):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return path

    return write

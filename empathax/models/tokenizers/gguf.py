"""The tokenizer inside a GGUF file, from its metadata (keys `tokenizer.*`).

Reference: https://github.com/ggml-org/llama.cpp/blob/master/src/llama-vocab.cpp for what `tokenizer.ggml.pre` means,
and the tokenizer.json files of the models that llama.cpp names so.
"""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from empathax import json_text
from empathax.errors import WeightsError
from empathax.models.tokenizers.sentencepiece import CONTROL, USER_DEFINED, Piece, Spaces, bpe_backend
from empathax.models.tokenizers.tokenizer import SpecialNames, Tokenizer, add_whole_tokens, begin_with

_SPACE = "\u2581"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# tokenizer.ggml.pre -> the split that comes before byte-level pieces; None: GPT-2's own
_SPLITS: dict[str, str | None] = {
    "default": None,
    "gpt-2": None,
    "smollm": None,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama-bpe": _LLAMA3,
    "smaug-bpe": _LLAMA3,
    "dbrx": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,
}
_SINGLE_DIGITS = frozenset({"smollm"})
_WHOLE_WORDS = frozenset({"llama3", "llama-v3", "llama-bpe", "tekken"})  # a word in the vocabulary needs no merges
_COMPOSED = frozenset({"qwen2", "deepseek-r1-qwen"})  # text is brought to Unicode NFC first
_ROLES = {"bos": "bos_token_id", "eos": "eos_token_id", "pad": "padding_token_id", "unk": "unknown_token_id"}


def tokenizer_from_gguf(metadata: dict[str, Any], source: str) -> Tokenizer:
    """The tokenizer of a GGUF file; raises a WeightsError that names `source` if its kind is not supported."""
    with json_text.content_of(f"{source}: the tokenizer", WeightsError):
        return _read(metadata, source)


def _read(metadata: dict[str, Any], source: str) -> Tokenizer:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise WeightsError(f"{source} has no tokenizer (tokenizer.ggml.tokens): name another with model.tokenizer_path")
    json_text.texts(tokens, f"{source}: tokenizer.ggml.tokens", WeightsError)
    kind = metadata.get("tokenizer.ggml.model")
    builders = {"gpt2": _byte_level, "llama": _sentencepiece}
    if kind not in builders:
        raise WeightsError(f"{source}: tokenizer.ggml.model = {kind!r}: expected one of {', '.join(builders)}")
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    backend = builders[kind](metadata, tokens, kinds, source)
    roles = {role: metadata.get(f"tokenizer.ggml.{key}") for role, key in _ROLES.items()}
    names = {role: tokens[index] for role, index in roles.items() if index is not None and 0 <= index < len(tokens)}
    if metadata.get("tokenizer.ggml.add_bos_token", kind == "llama") and "bos" in names:
        begin_with(backend, names["bos"])
    architecture = metadata.get("general.architecture", "")
    return Tokenizer(
        backend,
        SpecialNames(**names),
        chat_template=metadata.get("tokenizer.chat_template"),
        stop_token_ids=[
            index for index in (roles["eos"], metadata.get("tokenizer.ggml.eot_token_id")) if index is not None
        ],
        max_length=metadata.get(f"{architecture}.context_length"),
    )


def _byte_level(metadata: dict[str, Any], tokens: list[str], kinds: list[int], source: str) -> Backend:
    split_name = metadata.get("tokenizer.ggml.pre", "default")
    if split_name not in _SPLITS:
        raise WeightsError(f"{source}: tokenizer.ggml.pre = {split_name!r}: expected one of {', '.join(_SPLITS)}")
    merges = [tuple(merge.split(" ", 1)) for merge in metadata.get("tokenizer.ggml.merges", ())]
    vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=split_name in _WHOLE_WORDS))
    if split_name in _COMPOSED:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _split(split_name)
    backend.decoder = decoders.ByteLevel()
    kind_of = dict(zip(tokens, kinds, strict=True))
    add_whole_tokens(backend, [token for token in tokens if kind_of[token] == CONTROL], special=True)
    add_whole_tokens(backend, [token for token in tokens if kind_of[token] == USER_DEFINED], special=False)
    return backend


def _split(name: str) -> pre_tokenizers.PreTokenizer:
    pattern = _SPLITS[name]
    if pattern is not None:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in _SINGLE_DIGITS:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    return words


def _sentencepiece(metadata: dict[str, Any], tokens: list[str], kinds: list[int], source: str) -> Backend:
    scores = metadata.get("tokenizer.ggml.scores")
    if scores is None:
        raise WeightsError(f"{source}: the tokenizer has no scores (tokenizer.ggml.scores), so its merges are unknown")
    # llama.cpp stores user-defined runs of spaces as they look in text
    texts = (
        text.replace(" ", _SPACE) if kind == USER_DEFINED else text for text, kind in zip(tokens, kinds, strict=True)
    )
    pieces = [Piece(*piece) for piece in zip(texts, scores, kinds, strict=True)]
    prefix = "first" if metadata.get("tokenizer.ggml.add_space_prefix", True) else "never"  # as transformers
    return bpe_backend(pieces, Spaces(prefix))

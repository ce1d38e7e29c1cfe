"""Sentencepiece vocabularies as `tokenizers` backends that give the ids of SentencePieceProcessor itself.

Used for a `tokenizer.model` file and for the "llama" tokenizers inside GGUF files, which have the same token types.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from empathax.errors import WeightsError
from empathax.models.tokenizers.tokenizer import add_whole_tokens

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(
    1, 7
)  # sentencepiece_model.proto, ModelProto.SentencePiece
_UNIGRAM, _BPE = 1, 2
_SPACE = "\u2581"  # sentencepiece spells a space like this
# Gemma's files call these user-defined, but they are its chat format's control tokens, as transformers has it
_CHAT_MARKS = frozenset({"<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>"})


class Piece(NamedTuple):
    """One entry of a sentencepiece vocabulary."""

    text: str
    score: float
    kind: int


class Spaces(NamedTuple):
    """What happens to the spaces of a text before it is cut into pieces."""

    prefix: str = "always"  # a space is put before: "always" each stretch of text, the "first" only, "never"
    collapse: bool = False  # runs of spaces become one, outer ones are dropped
    charsmap: bytes = b""  # Unicode normalization rules, compiled by sentencepiece


def read_model(path: Path, prefix: str | None = None) -> tuple[Tokenizer, dict[str, str]]:
    """The backend of a `tokenizer.model` file and its {"bos" | "eos" | "pad" | "unk": token}.

    `prefix` overrides the file's rule for `Spaces.prefix`.
    """
    proto = _parse(path)
    trainer, rules = proto.trainer_spec, proto.normalizer_spec
    pieces = [Piece(piece.piece, piece.score, piece.type) for piece in proto.pieces]
    if not rules.escape_whitespaces or trainer.treat_whitespace_as_suffix:
        raise WeightsError(f"{path}: its treatment of spaces (kept raw, or as a suffix) is not supported")
    file_prefix = "always" if rules.add_dummy_prefix else "never"
    spaces = Spaces(prefix or file_prefix, rules.remove_extra_whitespaces, rules.precompiled_charsmap)
    if trainer.model_type == _BPE:
        backend = bpe_backend(pieces, spaces)
    elif trainer.model_type == _UNIGRAM:
        backend = _unigram_backend(pieces, spaces)
    else:
        raise WeightsError(f"{path}: sentencepiece model type {trainer.model_type}, expected unigram (1) or bpe (2)")
    ids = {"bos": trainer.bos_id, "eos": trainer.eos_id, "pad": trainer.pad_id, "unk": trainer.unk_id}
    names = {role: pieces[token_id].text for role, token_id in ids.items() if 0 <= token_id < len(pieces)}
    return backend, names


def bpe_backend(pieces: Sequence[Piece], spaces: Spaces) -> Tokenizer:
    """A byte-pair backend. Sentencepiece stores no merges: any two pieces merge into a third, best score first."""
    unknown = next((piece.text for piece in pieces if piece.kind == UNKNOWN), None)
    vocabulary = {piece.text: token_id for token_id, piece in enumerate(pieces)}
    if unknown is None and "<unk>" in vocabulary:  # GGUF files of Gemma mark it as control
        unknown = "<unk>"
    merges, has_bytes = merges_from_scores(pieces), _has_bytes(pieces)
    model = models.BPE(vocab=vocabulary, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes)
    return _assemble(model, pieces, spaces)


def merges_from_scores(pieces: Sequence[Piece]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a third, in the order in which sentencepiece would apply them.

    User-defined pieces come first: sentencepiece cuts them out before merging. Equal pieces are ordered by the longer
    left half, as in the converters of transformers; Gemma 3's own 514,906 merges come out as they are in its files.
    """
    rank = {piece.text: _merge_rank(piece) for piece in pieces if piece.kind in (NORMAL, USER_DEFINED)}
    found = []
    for text, score in rank.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in rank and right in rank:
                found.append((score, len(left), len(right), left, right))
    found.sort(key=lambda merge: merge[:3], reverse=True)
    return [(left, right) for *_, left, right in found]


def _merge_rank(piece: Piece) -> float:
    return float("inf") if piece.kind == USER_DEFINED else piece.score


def _unigram_backend(pieces: Sequence[Piece], spaces: Spaces) -> Tokenizer:
    unknown_id = next((token_id for token_id, piece in enumerate(pieces) if piece.kind == UNKNOWN), None)
    vocabulary = [(piece.text, piece.score) for piece in pieces]
    return _assemble(models.Unigram(vocabulary, unk_id=unknown_id, byte_fallback=_has_bytes(pieces)), pieces, spaces)


def _assemble(model: models.Model, pieces: Sequence[Piece], spaces: Spaces) -> Tokenizer:
    backend = Tokenizer(model)
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(spaces.charsmap)] if spaces.charsmap else []
    if spaces.collapse:
        steps += [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip()]
    if spaces.prefix == "always":
        steps.append(normalizers.Prepend(_SPACE))
    backend.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    if spaces.prefix == "first":  # of a normalizer's rules, only Metaspace knows where the text begins
        backend.normalizer = normalizers.Sequence(steps) if steps else None
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = _decoder(strip=spaces.prefix != "never")
    add_whole_tokens(backend, [p.text for p in pieces if p.kind == CONTROL or p.text in _CHAT_MARKS], special=True)
    # runs of spaces stay with the merges: an added token would be looked for before spaces are respelled
    words = [p.text for p in pieces if p.kind == USER_DEFINED and _SPACE not in p.text and p.text not in _CHAT_MARKS]
    add_whole_tokens(backend, words, special=False)
    return backend


def _decoder(strip: bool) -> decoders.Decoder:
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if strip else steps)


def _has_bytes(pieces: Sequence[Piece]) -> bool:
    return sum(piece.kind == BYTE for piece in pieces) == 256


def _parse(path: Path) -> Any:
    try:
        from sentencepiece import sentencepiece_model_pb2
    except ImportError as error:
        raise WeightsError(
            f"reading {path} needs sentencepiece and protobuf: pip install sentencepiece protobuf"
        ) from error
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # the class is made at import time
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError; its module moves between versions
        raise WeightsError(f"{path} is no sentencepiece model: {error}") from error
    if not proto.pieces:
        raise WeightsError(f"{path} is no sentencepiece model: it has no pieces (a tiktoken file is not supported)")
    return proto

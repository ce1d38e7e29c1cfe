"""The tokenizer of a Hugging Face directory: `tokenizer.json`, or a sentencepiece `tokenizer.model` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers

from empathax.errors import WeightsError
from empathax.models.tokenizers.sentencepiece import read_model
from empathax.models.tokenizers.tokenizer import SpecialNames, Tokenizer, begin_with
from empathax.models.weights.safetensors import read_json

_NO_LIMIT = 10**9  # transformers writes 10**30 for "no maximal length"


def tokenizer_from_directory(directory: Path) -> Tokenizer:
    """The tokenizer of a directory that transformers would load; a WeightsError says what is missing."""
    settings = read_json(directory / "tokenizer_config.json") or {}
    backend, names = _backend(directory, settings)
    names = {**names, **_special_names(directory, settings)}
    _add_listed_tokens(backend, directory, settings)
    tokenizer = Tokenizer(
        backend,
        SpecialNames(**names),
        chat_template=_chat_template(directory, settings),
        stop_token_ids=_stop_token_ids(directory),
        max_length=_max_length(settings),
    )
    _set_ends(backend, names, settings)
    return tokenizer


def _backend(directory: Path, settings: dict[str, Any]) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    json_path, model_path = directory / "tokenizer.json", directory / "tokenizer.model"
    if json_path.is_file():
        try:
            return tokenizers.Tokenizer.from_file(str(json_path)), {}
        except Exception as error:  # the library raises plain Exception
            raise WeightsError(f"{json_path} cannot be read as a tokenizer: {error}") from error
    if model_path.is_file():
        backend, names = read_model(model_path, _prefix(settings))
        if "bos" in names:
            begin_with(backend, names["bos"])
        return backend, names
    found = sorted(path.name for path in directory.glob("*") if "token" in path.name or "vocab" in path.name)
    raise WeightsError(
        f"{directory} has no tokenizer: expected tokenizer.json or tokenizer.model, found "
        f"{', '.join(found) or 'neither'}; copy it from the original model, or set model.tokenizer_path"
    )


def _prefix(settings: dict[str, Any]) -> str | None:
    """The `Spaces.prefix` that tokenizer_config.json asks for; None = the sentencepiece file's own rule.

    The models were trained with the file's rule, "always" (each text between control tokens starts with a space);
    `legacy: false` is transformers' later change to it.
    """
    if settings.get("add_prefix_space") is False:
        return "never"
    if settings.get("legacy") is False and settings.get("add_prefix_space") is not False:
        return "first" if "Gemma" not in str(settings.get("tokenizer_class")) else None
    return None


def _special_names(directory: Path, settings: dict[str, Any]) -> dict[str, str]:
    listed = read_json(directory / "special_tokens_map.json") or {}
    names = {}
    for role in ("bos", "eos", "pad", "unk"):
        value = settings.get(f"{role}_token", listed.get(f"{role}_token"))
        text = value.get("content") if isinstance(value, dict) else value
        if text:
            names[role] = text
    return names


def _add_listed_tokens(backend: tokenizers.Tokenizer, directory: Path, settings: dict[str, Any]) -> None:
    """Adds the tokens that only tokenizer_config.json or added_tokens.json know, under the ids they state."""
    listed = {
        token_id: {"content": text} for text, token_id in (read_json(directory / "added_tokens.json") or {}).items()
    }
    listed |= {int(token_id): token for token_id, token in settings.get("added_tokens_decoder", {}).items()}
    known = backend.get_added_tokens_decoder()
    for token_id, token in sorted(listed.items()):
        if token_id in known:
            continue
        options = {key: bool(token[key]) for key in ("single_word", "lstrip", "rstrip", "normalized") if key in token}
        added = tokenizers.AddedToken(token["content"], special=token.get("special", True), **options)
        backend.add_tokens([added])
        if backend.token_to_id(token["content"]) != token_id:
            raise WeightsError(
                f"{directory}: added token {token['content']!r} should have id {token_id}, but the vocabulary gives it "
                f"{backend.token_to_id(token['content'])}: tokenizer files of different models are mixed"
            )


def _chat_template(directory: Path, settings: dict[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template") or (read_json(directory / "chat_template.json") or {}).get("chat_template")
    if isinstance(template, list):  # several, by name
        by_name = {entry["name"]: entry["template"] for entry in template}
        return by_name.get("default") or next(iter(by_name.values()), None)
    return template


def _stop_token_ids(directory: Path) -> list[int]:
    """End tokens that generation_config.json names (several, for chat models), else those of config.json."""
    config = read_json(directory / "config.json") or {}
    stated = (read_json(directory / "generation_config.json") or {}).get("eos_token_id")
    if stated is None:
        stated = config.get("eos_token_id", config.get("text_config", {}).get("eos_token_id"))
    return list(stated) if isinstance(stated, list) else [stated] if stated is not None else []


def _max_length(settings: dict[str, Any]) -> int | None:
    length = settings.get("model_max_length")
    return int(length) if isinstance(length, int | float) and 0 < length < _NO_LIMIT else None


def _set_ends(backend: tokenizers.Tokenizer, names: dict[str, str], settings: dict[str, Any]) -> None:
    """Puts BOS and EOS around raw text as `add_bos_token` and `add_eos_token` say, where they say anything."""
    if settings.get("add_bos_token") is None and settings.get("add_eos_token") is None:
        return
    bos = names.get("bos") if settings.get("add_bos_token") else None
    eos = names.get("eos") if settings.get("add_eos_token") else None
    if bos or eos:
        begin_with(backend, bos, eos)
    elif names.get("bos") and backend.encode("a").ids[:1] == [backend.token_to_id(names["bos"])]:
        backend.post_processor = tokenizers.processors.Sequence([])

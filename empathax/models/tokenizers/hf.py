"""The tokenizer of a Hugging Face directory: `tokenizer.json`, or a sentencepiece `tokenizer.model` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tokenizers

from empathax import json_text
from empathax.errors import WeightsError
from empathax.models.tokenizers.sentencepiece import read_model
from empathax.models.tokenizers.tokenizer import SpecialNames, Tokenizer, begin_with
from empathax.models.weights.safetensors import read_json
from empathax.shown import quoted, shown

SETTINGS_NAME = "tokenizer_config.json"
_NO_LIMIT = 10**9  # transformers writes 10**30 for "no maximal length"


def tokenizer_from_directory(directory: Path) -> Tokenizer:
    """The tokenizer of a directory that transformers would load; a WeightsError says what is missing or wrong."""
    with json_text.content_of(f"{directory}: the tokenizer", WeightsError):
        return _read(directory)


def _read(directory: Path) -> Tokenizer:
    settings = read_json(directory / SETTINGS_NAME) or {}
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
    if not backend.get_vocab_size():
        raise WeightsError(f"{directory}: the tokenizer has no vocabulary: copy it from the original model")
    return tokenizer


def _backend(directory: Path, settings: dict[str, Any]) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
    json_path, model_path = directory / "tokenizer.json", directory / "tokenizer.model"
    if json_path.is_file():
        with json_text.content_of(json_path, WeightsError):
            try:
                return tokenizers.Tokenizer.from_file(str(json_path)), {}
            except Exception as error:  # the library raises plain Exception
                raise WeightsError(f"{json_path} cannot be read as a tokenizer: {shown(str(error))}") from error
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
        key = f"{role}_token"
        value, file = (
            (settings[key], SETTINGS_NAME) if key in settings else (listed.get(key), "special_tokens_map.json")
        )
        text = value.get("content") if isinstance(value, dict) else value
        if text is not None and text != "":
            names[role] = json_text.a_text(text, f"{directory / file}: {key}", WeightsError)
    return names


def _add_listed_tokens(backend: tokenizers.Tokenizer, directory: Path, settings: dict[str, Any]) -> None:
    """Adds the tokens that only tokenizer_config.json or added_tokens.json know, under the ids they state."""
    listed = _listed_tokens(directory, settings)
    known = backend.get_added_tokens_decoder()
    for token_id, token in sorted(listed.items()):
        if token_id in known:
            continue
        options = {key: bool(token[key]) for key in ("single_word", "lstrip", "rstrip", "normalized") if key in token}
        added = tokenizers.AddedToken(token["content"], special=bool(token.get("special", True)), **options)
        backend.add_tokens([added])
        if backend.token_to_id(token["content"]) != token_id:
            raise WeightsError(
                f"{directory}: added token {quoted(token['content'])} should have id {token_id}, but the vocabulary "
                f"gives it {backend.token_to_id(token['content'])}: tokenizer files of different models are mixed"
            )


def _listed_tokens(directory: Path, settings: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Token id -> its options, the text under "content"."""
    path, listed = directory / "added_tokens.json", {}
    for text, token_id in (read_json(path) or {}).items():
        listed[json_text.whole_number(token_id, f"{path}: {shown(text)}", WeightsError)] = {"content": text}
    name = f"{directory / SETTINGS_NAME}: added_tokens_decoder"
    for key, token in json_text.an_object(settings.get("added_tokens_decoder") or {}, name, WeightsError).items():
        if not key.isascii() or not key.isdigit() or len(key) > 9:
            raise WeightsError(f"{name} has the key {quoted(key)}, expected a token's id")
        own = json_text.an_object(token, f"{name}.{key}", WeightsError)
        json_text.a_text(own.get("content"), f"{name}.{key}.content", WeightsError)
        listed[int(key)] = own
    return listed


def _chat_template(directory: Path, settings: dict[str, Any]) -> str | None:
    path = directory / "chat_template.jinja"
    if path.is_file():
        return json_text.read_text(path, WeightsError)
    name, template = f"{directory / SETTINGS_NAME}: chat_template", settings.get("chat_template")
    if not template:
        other = directory / "chat_template.json"
        name, template = f"{other}: chat_template", (read_json(other) or {}).get("chat_template")
    if isinstance(template, list):  # several, by name
        by_name = {}
        for number, entry in enumerate(template):
            own = json_text.an_object(entry, f"{name}[{number}]", WeightsError)
            title, text = (
                json_text.a_text(own.get(key), f"{name}[{number}].{key}", WeightsError) for key in ("name", "template")
            )
            by_name[title] = text
        return by_name.get("default") or next(iter(by_name.values()), None)
    return None if template is None else json_text.a_text(template, name, WeightsError)


def _stop_token_ids(directory: Path) -> list[int]:
    """End tokens that generation_config.json names (several, for chat models), else those of config.json."""
    config = read_json(directory / "config.json") or {}
    file, stated = "generation_config.json", (read_json(directory / "generation_config.json") or {}).get("eos_token_id")
    if stated is None:
        inner = config.get("text_config") or {}
        inner = json_text.an_object(inner, f"{directory / 'config.json'}: text_config", WeightsError)
        file, stated = "config.json", config.get("eos_token_id", inner.get("eos_token_id"))
    if stated is None:
        return []
    name = f"{directory / file}: eos_token_id"
    ids = stated if isinstance(stated, list) else [stated]
    return [json_text.whole_number(one, name, WeightsError, low=-1) for one in ids if one != -1]


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

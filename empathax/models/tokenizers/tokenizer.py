"""Text to token ids and back: one class over the `tokenizers` library, whatever files a tokenizer came from.

Also `byte_tokenizer`, which needs no files, and the changes to a backend of that library that it has no call for; most
go through its JSON form.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend

from empathax.errors import ConfigError, WeightsError
from empathax.models.weights.safetensors import write_json
from empathax.shown import quoted, shown

# Tokens that end a turn in the known chat formats; a model stops at them even where its files name only an end of text.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>")
# Markup that some files store as ordinary words although it steers the model.
_MARKER = re.compile(
    r"<\|[^|]*\|>|<unused\d+>|<(start|end)_of_\w+>|<mask>|\[multimodal\]|</?(think|tool_call|tool_response)>"
)
# Gemma 3's text models share a tokenizer with the multimodal ones, which have this one more row in their embedding.
_UNUSED_BY_TEXT = frozenset({"<image_soft_token>"})
# Of `byte_tokenizer`: ids 0, 1, 2, as the presets have them.
_BYTE_CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_BYTE_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class SpecialNames:
    """The tokens with a role of their own; None where a model has none."""

    bos: str | None = None
    eos: str | None = None
    pad: str | None = None
    unk: str | None = None


class Tokenizer:
    """A tokenizer with its special tokens and chat template.

    `encode` parses the text of special tokens ("<|im_end|>") into their ids, as templates need. `encode_plain` and the
    plain parts of `encode_segments` never yield a control token, whatever the text says: they are for what users wrote.
    """

    def __init__(
        self,
        backend: Backend,
        names: SpecialNames,
        *,
        chat_template: str | None = None,
        stop_token_ids: Iterable[int] = (),
        max_length: int | None = None,
    ):
        self._backend = backend
        self._backend.no_padding()
        self._backend.no_truncation()
        self._names = names
        self._max_length = max_length
        self.chat_template = chat_template
        _add_missing_names(backend, names)
        self._added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
        ends = (backend.token_to_id(text) for text in (names.eos, *END_OF_TURN) if text in self._added)
        stops = {*stop_token_ids, *(token_id for token_id in ends if token_id is not None)}
        self.stop_token_ids: tuple[int, ...] = tuple(sorted(stops))
        self._controls = {text: backend.token_to_id(text) for text in self._control_texts()}
        self._control_ids = frozenset(self._controls.values())
        self._controls_in = functools.lru_cache(4096)(self._find_controls)  # templates repeat a few strings

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Token ids of `text`; the text of a special token becomes that token.

        Chat templates write the BOS token themselves; `add_special_tokens` adds it (see `add_bos`) for raw text.
        """
        return _ids(self._backend, text, add_special_tokens)

    def encode_plain(self, text: str) -> list[int]:
        """Token ids of `text` without control tokens: "<|im_end|>" is spelled out like any other characters."""
        return self.encode_segments([(text, True)])

    def encode_segments(self, segments: Sequence[tuple[str, bool]]) -> list[int]:
        """Token ids of the joined (text, is_plain) segments, tokenized as one string.

        Control tokens are recognized in the segments that are not plain, and nowhere else: not in plain text, nor where
        plain text and template meet.
        """
        ids = self.encode("".join(text for text, _ in segments))
        expected = [token for text, is_plain in segments if not is_plain for token in self._controls_in(text)]
        if [token for token in ids if token in self._control_ids] == expected:
            return ids
        hidden, names = self._hidden
        rename = functools.partial(self._control_pattern.sub, lambda match: names[match[0]])
        renamed = "".join(text if is_plain else rename(text) for text, is_plain in segments)
        return _ids(hidden, renamed)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids; `skip_special_tokens` leaves out those that the files mark as special."""
        return self._backend.decode([int(token) for token in ids], skip_special_tokens=skip_special_tokens)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token given as the vocabulary spells it; None if there is none."""
        return self._backend.token_to_id(token)

    def id_to_token(self, token_id: int) -> str | None:
        """The vocabulary's spelling of an id; None if there is none."""
        return self._backend.id_to_token(token_id)

    @functools.cached_property
    def vocab_size(self) -> int:
        """Rows an embedding needs: one more than the largest id."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @property
    def special_tokens(self) -> set[str]:
        """Every token that text marked as plain cannot become."""
        return set(self._controls)

    @property
    def bos_token(self) -> str | None:
        """The token that begins a text."""
        return self._names.bos

    @property
    def eos_token(self) -> str | None:
        """The token that ends a text (in chat models, often a turn)."""
        return self._names.eos

    @property
    def pad_token(self) -> str | None:
        """The token that fills rows; no meaning of its own."""
        return self._names.pad

    @property
    def unk_token(self) -> str | None:
        """The token for what the vocabulary cannot spell."""
        return self._names.unk

    @property
    def bos_token_id(self) -> int | None:
        """Id of `bos_token`."""
        return self._controls.get(self._names.bos) if self._names.bos else None

    @property
    def eos_token_id(self) -> int | None:
        """Id of `eos_token`."""
        return self._controls.get(self._names.eos) if self._names.eos else None

    @property
    def pad_token_id(self) -> int | None:
        """Id of `pad_token`."""
        return self._controls.get(self._names.pad) if self._names.pad else None

    @functools.cached_property
    def add_bos(self) -> bool:
        """Whether raw text (no chat template) starts with the BOS token."""
        return self.encode("a", add_special_tokens=True)[0] == self.bos_token_id is not None

    def fingerprint(self) -> str:
        """SHA-256 of everything that decides ids, stop tokens and the rendering of chats."""
        parts = [self._backend.to_str(), repr(self._names), repr(self.chat_template), repr(self.stop_token_ids)]
        return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()

    def save(self, directory: Path) -> None:
        """Writes the files that transformers' AutoTokenizer loads into an existing directory."""
        self._backend.save(str(directory / "tokenizer.json"))
        names = {"bos_token": self.bos_token, "eos_token": self.eos_token, "pad_token": self.pad_token}
        named = {key: token for key, token in (names | {"unk_token": self.unk_token}).items() if token}
        settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
        settings |= {"clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"]}
        if self._max_length:
            settings["model_max_length"] = self._max_length
        if self.chat_template:
            (directory / "chat_template.jinja").write_text(self.chat_template, encoding="utf-8")
        write_json(directory / "tokenizer_config.json", settings)
        write_json(directory / "special_tokens_map.json", named)

    def fitted_to(self, num_embeddings: int) -> Tokenizer:
        """This tokenizer, or one without a known unused token, for a model with `num_embeddings` rows.

        Raises a ConfigError if the tokenizer has ids that the embedding lacks.
        """
        if self.vocab_size <= num_embeddings:
            return self
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        beyond = sorted((token_id, text) for text, token_id in vocabulary.items() if token_id >= num_embeddings)
        if not {text for _, text in beyond} <= _UNUSED_BY_TEXT:
            shown = ", ".join(f"{text!r} = {token_id}" for token_id, text in beyond[:3])
            raise ConfigError(
                f"the tokenizer has {len(beyond)} token(s) that the embedding of {num_embeddings} rows lacks "
                f"({shown}{', ...' if len(beyond) > 3 else ''}): use the tokenizer that came with the model"
            )
        return Tokenizer(
            _without_added_tokens(self._backend, num_embeddings),
            self._names,
            chat_template=self.chat_template,
            stop_token_ids=self.stop_token_ids,
            max_length=self._max_length,
        )

    def _control_texts(self) -> set[str]:
        template = self.chat_template or ""
        roles = (self._names.bos, self._names.eos, self._names.pad, self._names.unk)
        stops = (self._backend.id_to_token(token_id) for token_id in self.stop_token_ids)
        marked = {
            text
            for text, token in self._added.items()
            if token.special or _MARKER.fullmatch(text) or (text.strip() and text in template and not text.isalnum())
        }
        return marked.union(text for text in (*roles, *stops) if text)

    def _find_controls(self, text: str) -> tuple[int, ...]:
        return tuple(token for token in self.encode(text) if token in self._control_ids)

    @functools.cached_property
    def _hidden(self) -> tuple[Backend, dict[str, str]]:
        return _hide_tokens(self._backend, self._controls)

    @functools.cached_property
    def _control_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._controls, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _ids(backend: Backend, text: str, add_special_tokens: bool = False) -> list[int]:
    try:
        return backend.encode(text, add_special_tokens=add_special_tokens).ids
    except Exception as error:  # the library raises plain Exception
        raise WeightsError(f"the tokenizer cannot encode {quoted(text, 40)}: {shown(str(error))}") from error


def byte_tokenizer() -> Tokenizer:
    """259 tokens: <|endoftext|> (padding), <|im_start|>, <|im_end|> (end of turn), then the 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: token_id for token_id, token in enumerate([*_BYTE_CONTROLS, *alphabet])}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    add_whole_tokens(backend, _BYTE_CONTROLS, special=True)
    names = SpecialNames(bos=_BYTE_CONTROLS[1], eos=_BYTE_CONTROLS[2], pad=_BYTE_CONTROLS[0])
    return Tokenizer(backend, names, chat_template=_BYTE_TEMPLATE)


def add_whole_tokens(backend: Backend, texts: Iterable[str], *, special: bool) -> None:
    """Makes tokens whole words that are found in text before anything else; new ones get the next ids."""
    backend.add_tokens([AddedToken(text, normalized=False, special=special) for text in texts])


def begin_with(backend: Backend, bos: str | None, eos: str | None = None) -> None:
    """Makes `encode(..., add_special_tokens=True)` put `bos` before a text and `eos` after it, where given."""
    ends = [token for token in (bos, eos) if token]
    backend.post_processor = processors.TemplateProcessing(
        single=[piece for piece in (bos, "$A", eos) if piece],
        special_tokens=[(token, backend.token_to_id(token)) for token in ends],
    )


def _add_missing_names(backend: Backend, names: SpecialNames) -> None:
    """Registers role tokens that the files keep as mere vocabulary (or forgot), so that `encode` finds them in text."""
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    missing = [text for text in (names.bos, names.eos, names.pad, names.unk) if text and text not in known]
    add_whole_tokens(backend, missing, special=True)


def _without_added_tokens(backend: Backend, first_id: int) -> Backend:
    """A copy without the added tokens from `first_id` on."""
    spec = json.loads(backend.to_str())
    spec["added_tokens"] = [token for token in spec["added_tokens"] if token["id"] < first_id]
    return Backend.from_str(json.dumps(spec))


def _hide_tokens(backend: Backend, texts: Iterable[str]) -> tuple[Backend, dict[str, str]]:
    """A copy in which the given tokens have names that no text can contain, and those names.

    Ids, merges and everything else stay, so all other text is tokenized as before.
    """
    nonce = secrets.token_hex(8)
    names = {text: f"\U0010fffe{nonce}{number}\U0010fffe" for number, text in enumerate(sorted(texts))}
    spec = json.loads(backend.to_str())
    spec["post_processor"] = None
    for token in spec["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    _rename_in_model(spec["model"], names)
    return Backend.from_str(json.dumps(spec)), names


def _rename_in_model(model: dict[str, Any], names: dict[str, str]) -> None:
    """Renames tokens in the "model" part of a tokenizer.json; merges that would build one of them are dropped."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(text, text): token_id for text, token_id in vocabulary.items()}
    else:  # Unigram: [text, score] pairs
        model["vocab"] = [[names.get(text, text), score] for text, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        model["merges"] = [
            (left, right)
            for left, right in model["merges"]
            if left not in names and right not in names and left + right not in names
        ]

"""Loaded models that answer dialogues: one after another, side by side, in a terminal or for a file of prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from empathax.config import Config
from empathax.data.chat import ChatTemplate
from empathax.data.records import Message
from empathax.data.sandbox import TemplateRefused
from empathax.errors import DataError
from empathax.evaluation.generation.prompt_file import PromptRow
from empathax.evaluation.generation.replies import generate_replies, stop_token_ids
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.weights.source import adapted_model, resolve_model

HELP = "type a message; /reset begins a new dialogue, /quit (or end of input) ends"


@dataclass(frozen=True)
class Speaker:
    """A model in memory with its chat template."""

    name: str
    params: Any
    model_config: ModelConfig
    template: ChatTemplate

    def encode(self, messages: Sequence[Message], max_new_tokens: int) -> list[int]:
        """The prompt's token ids; of a dialogue too long for the model the oldest turns are left out.

        Raises a DataError for messages that the template refuses, or a last turn that is too long by itself.
        """
        system = [message for message in messages[:1] if message.role == "system"]
        turns = list(messages[len(system) :])
        room = self.model_config.max_positions - max_new_tokens
        while True:
            try:
                token_ids = self.template.encode_prompt([*system, *turns]).tolist()
            except TemplateRefused as error:
                raise DataError(f"{self.name}: the chat template refuses these messages: {error}") from None
            if len(token_ids) <= room:
                return token_ids
            if len(turns) <= 2:
                raise DataError(
                    f"{self.name}: the prompt has {len(token_ids)} tokens; with {max_new_tokens} new ones the model's "
                    f"{self.model_config.max_positions} positions leave room for {room}: shorten it"
                )
            turns = turns[2:]

    def answer(
        self, prompts: Sequence[Sequence[int]], config: Config, on_progress: Callable[[int], None] | None = None
    ) -> list[str]:
        """A reply to each prompt, or `num_samples` of them, one after another."""
        return generate_replies(self.params, self.model_config, self.template, prompts, config, on_progress=on_progress)


def open_speaker(
    path: str, config: Config, chat_template: str = "auto", adapters: Sequence[str] = ()
) -> Callable[[], Speaker]:
    """Checks the model at `path`, its template and the stop tokens; the result loads the weights.

    The template gets `data.chat_template_kwargs` and `data.template_date` of `config`. `adapters` are directories in
    PEFT's format that are added to the model.
    """
    source = adapted_model(resolve_model(path), adapters)
    source.check()
    data = config.data
    template = ChatTemplate(
        source.tokenizer(), chat_template, source.config.family, data.template_variables, data.template_date
    )
    stop_token_ids(template, config.eval.stop_tokens)  # refuses texts that are no token
    return lambda: Speaker(
        " + ".join([path, *adapters]), source.load_params(jnp.dtype(config.model.param_dtype)), source.config, template
    )


def answer_rows(
    speakers: Sequence[Speaker],
    rows: Sequence[PromptRow],
    config: Config,
    on_progress: Callable[[int], None] | None = None,
) -> Iterator[dict[str, Any]]:
    """{"prompt", "reply"} of each row, in order, and "reply_compare" of a second speaker.

    With several samples "replies" and "replies_compare" are lists of all, of which "reply" is the first.
    """
    count = config.eval.num_samples
    prompts = [[speaker.encode(row.messages, config.eval.max_new_tokens) for row in rows] for speaker in speakers]
    replies = [speaker.answer(encoded, config, on_progress) for speaker, encoded in zip(speakers, prompts, strict=True)]
    for start, row in enumerate(rows):
        samples = [texts[start * count : (start + 1) * count] for texts in replies]
        answers: dict[str, Any] = dict(zip(("reply", "reply_compare"), (texts[0] for texts in samples), strict=False))
        if count > 1:
            answers |= zip(("replies", "replies_compare"), samples, strict=False)
        yield {"prompt": row.given} | answers


def talk(
    speakers: Sequence[Speaker],
    system: str | None,
    config: Config,
    read_line: Callable[[str], str],
    console: Console,
) -> None:
    """A dialogue in the terminal; each speaker sees its own replies as the history. Ends at /quit or end of input."""
    console.print(HELP, style="dim")
    histories: list[list[Message]] = [[] for _ in speakers]
    turn = 0
    while (line := _next_line(read_line)) is not None:
        if line == "/reset":
            histories = [[] for _ in speakers]
            console.print("new dialogue", style="dim")
        elif line.startswith("/"):
            console.print(HELP, style="dim")
        elif line:
            turn += 1  # another seed for each turn: the same words may be answered differently
            seeded = dataclasses.replace(config, seed=(config.seed + turn) % 2**31)
            try:
                replies = [_reply(*pair, system, line, seeded) for pair in zip(speakers, histories, strict=True)]
            except DataError as error:
                console.print(f"error: {error}", style="red", markup=False)
                continue
            for history, reply in zip(histories, replies, strict=True):
                history += [Message("user", line), Message("assistant", reply)]
            _show(speakers, replies, console)


def _next_line(read_line: Callable[[str], str]) -> str | None:
    """The next line, None at the end."""
    try:
        line = read_line("you> ").strip()
    except (EOFError, KeyboardInterrupt):
        return None
    return None if line in ("/quit", "/exit") else line


def _reply(speaker: Speaker, history: Sequence[Message], system: str | None, line: str, config: Config) -> str:
    lead = [Message("system", system)] if system else []
    prompt = speaker.encode([*lead, *history, Message("user", line)], config.eval.max_new_tokens)
    return speaker.answer([prompt], config)[0]


def _show(speakers: Sequence[Speaker], replies: Sequence[str], console: Console) -> None:
    if len(speakers) == 1:
        console.print(replies[0], markup=False, highlight=False)
        return
    table = Table(expand=True)
    for speaker in speakers:
        table.add_column(Text(speaker.name))
    table.add_row(*map(Text, replies))
    console.print(table, highlight=False)

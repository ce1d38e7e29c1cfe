"""Dialogues with loaded models: history, commands, two models side by side, dialogues that grow too long."""

import dataclasses
import io

import pytest
from rich.console import Console

from empathax.config import Config, EvalOptions, ModelOptions
from empathax.data.records import Message
from empathax.errors import DataError
from empathax.evaluation.generation.prompt_file import PromptRow
from empathax.evaluation.generation.speaker import answer_rows, open_speaker, talk

CONFIG = Config(model=ModelOptions(), eval=EvalOptions(max_new_tokens=4, generation_batch=2))


@pytest.fixture(scope="module")
def speakers():
    return [open_speaker(path, CONFIG)() for path in ("random:tiny-llama", "random:tiny-qwen2:1")]


class Recorder:
    """Stands for a speaker: answers with a count, and remembers the messages it was shown."""

    def __init__(self, name):
        self.name, self.seen, self.seeds = name, [], []

    def encode(self, messages, max_new_tokens):
        self.seen.append([(message.role, message.content) for message in messages])
        return [1]

    def answer(self, prompts, config, on_progress=None):
        self.seeds.append(config.seed)
        return [f"{self.name} {len(self.seen)} [b]"]


def scripted(*lines):
    remaining = iter(lines)

    def read_line(prompt):
        try:
            return next(remaining)
        except StopIteration:
            raise EOFError from None

    return read_line


def conversation(speakers, *lines, system=None):
    screen = io.StringIO()
    talk(speakers, system, CONFIG, scripted(*lines), Console(file=screen, width=60))
    return screen.getvalue()


def test_each_speaker_sees_its_own_history():
    pair = [Recorder("one"), Recorder("two")]
    screen = conversation(pair, "hi", "  ", "sad", "/quit", "never read", system="S")
    assert pair[1].seen == [
        [("system", "S"), ("user", "hi")],
        [("system", "S"), ("user", "hi"), ("assistant", "two 1 [b]"), ("user", "sad")],
    ]
    assert pair[0].seen[1][2] == ("assistant", "one 1 [b]")
    assert "one 2 [b]" in screen  # brackets are text, not markup
    assert "two 2 [b]" in screen
    assert pair[0].seeds == [1, 2]


def test_reset_forgets_and_unknown_commands_help():
    alone = Recorder("one")
    screen = conversation([alone], "hi", "/reset", "/what", "again")
    assert alone.seen[1] == [("user", "again")]
    assert screen.count("/reset begins a new dialogue") == 2
    assert "one 2 [b]" in screen


def test_an_error_ends_the_turn_not_the_dialogue():
    class Refusing(Recorder):
        def encode(self, messages, max_new_tokens):
            super().encode(messages, max_new_tokens)
            if messages[-1].content == "bad":
                raise DataError("too long [x]")
            return [1]

    alone = Refusing("one")
    screen = conversation([alone], "bad", "good")
    assert "error: too long [x]" in screen
    assert alone.seen[1] == [("user", "good")]


def test_rows_are_answered_in_order_by_both(speakers):
    rows = [PromptRow(text, (Message("user", text),)) for text in ("Hi", "I feel low", "Bye")]
    answers = list(answer_rows(speakers, rows, CONFIG))
    assert [answer["prompt"] for answer in answers] == ["Hi", "I feel low", "Bye"]
    assert all(answer.keys() == {"prompt", "reply", "reply_compare"} for answer in answers)
    alone = list(answer_rows(speakers[1:], rows, CONFIG))
    assert [answer["reply"] for answer in alone] == [answer["reply_compare"] for answer in answers]


def test_oldest_turns_go_when_the_dialogue_is_too_long(speakers):
    short = dataclasses.replace(
        speakers[0], model_config=dataclasses.replace(speakers[0].model_config, max_positions=120)
    )
    system, last = Message("system", "Be kind"), Message("user", "What now?")
    turns = [Message(("user", "assistant")[n % 2], f"turn number {n}") for n in range(8)]
    text = short.template.tokenizer.decode(short.encode([system, *turns, last], 10))
    assert len(short.encode([system, *turns, last], 10)) <= 110
    assert "Be kind" in text
    assert "What now?" in text
    assert "turn number 0" not in text
    with pytest.raises(DataError, match="leave room for 110: shorten it"):
        short.encode([Message("user", "x" * 200)], 10)

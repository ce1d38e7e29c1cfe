"""From settings to rows: what is trained, counted, dropped and refused."""

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

import empathax.data
from empathax.config import DataOptions
from empathax.config.losses import PAIRED_ROWS, REPLY_ROWS
from empathax.data.dataset import build_dataset, trained_tokens
from empathax.data.templates import TEMPLATES
from empathax.errors import ConfigError, DataError

SAMPLES = Path(empathax.data.__file__).with_name("samples")


@pytest.fixture(scope="module")
def model(chatml):
    return SimpleNamespace(family="qwen2", vocab_size=chatml.vocab_size)


def pairs(count):
    return [{"prompt": f"p{n}", "chosen": f"I hear you {n}", "rejected": f"You should {n}"} for n in range(count)]


def chat(*turns):
    return {"messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]}


def build(path, rows_kind, tokenizer, model, **changes):
    settings = {"path": str(path), "system_prompt": "Be kind.", "max_length": 200, **changes}
    return build_dataset(DataOptions(**settings), rows_kind, tokenizer, model)


@pytest.mark.parametrize("packing", ["tree", "pair", "none"])
@pytest.mark.parametrize("rows_kind", [REPLY_ROWS, PAIRED_ROWS])
def test_the_trained_tokens_are_the_replies(packing, rows_kind, chatml, model):
    dataset = build("samples", rows_kind, chatml, model, packing=packing, max_length=2000)
    name = {REPLY_ROWS: "dialogues_train.jsonl", PAIRED_ROWS: "preferences_train.jsonl"}[rows_kind]
    rows = [json.loads(line) for line in (SAMPLES / name).read_text(encoding="utf-8").splitlines()]
    replies = [
        message for row in rows for message in row.get("messages", []) + row.get("chosen", []) + row.get("rejected", [])
    ]
    expected = Counter(message["content"] + "<|im_end|>" for message in replies if message["role"] == "assistant")
    trained = (trained_tokens(dataset.train, row, chatml) for row in range(len(dataset.train)))
    found = Counter("".join(tokens) for replies in trained for tokens in replies)
    assert found == expected
    assert dataset.train.num_sequences == expected.total()


def test_examples_carry_what_sampling_and_metrics_need(write_lines, chatml, model):
    path = write_lines("rows.jsonl", [chat("Hi", "a", "b", "c", "d", "e"), chat("Ho", "x")])
    dataset = build(path, REPLY_ROWS, chatml, model, eval_fraction=0.0)
    turns = [(e.turn, e.num_turns, e.reply, e.sequence_ids) for e in dataset.train_examples]
    assert turns == [(0, 3, "a", (0,)), (1, 3, "c", (1,)), (2, 3, "e", (2,)), (0, 1, "x", (3,))]
    example = dataset.train_examples[1]
    assert chatml.decode(example.prompt_ids).endswith("<|im_start|>user\nb<|im_end|>\n<|im_start|>assistant\n")
    assert example.origin == f"{path}:1"
    assert len(dataset.eval) == 0


def test_pairs_number_their_sequences(write_lines, chatml, model):
    dataset = build(write_lines("rows.jsonl", pairs(20)), PAIRED_ROWS, chatml, model, eval_fraction=0.3)
    for rows, examples in ((dataset.train, dataset.train_examples), (dataset.eval, dataset.eval_examples)):
        assert [example.sequence_ids for example in examples] == [(2 * n, 2 * n + 1) for n in range(len(examples))]
        assert rows.num_sequences == 2 * len(examples)
        assert all(example.reply.startswith("I hear") for example in examples)


def test_sft_learns_the_chosen_reply_of_a_pair(write_lines, chatml, model):
    dataset = build(write_lines("rows.jsonl", pairs(3)), REPLY_ROWS, chatml, model, eval_fraction=0.0)
    trained = (trained_tokens(dataset.train, row, chatml) for row in range(len(dataset.train)))
    texts = {"".join(tokens) for replies in trained for tokens in replies}
    assert texts == {f"I hear you {n}<|im_end|>" for n in range(3)}


def test_what_is_dropped_is_counted_by_reason(write_lines, chatml, model):
    rows = [
        *pairs(6),
        {"prompt": "a", "chosen": "same", "rejected": " same"},
        {"prompt": "a", "chosen": "", "rejected": "b"},
        {"prompt": "a", "chosen": "word " * 300, "rejected": "b"},
    ]
    path = write_lines("rows.jsonl", rows)
    with pytest.raises(DataError, match=r"3 of 9 examples had to be dropped.*max_dropped_fraction = 0.2 allows 1"):
        build(path, PAIRED_ROWS, chatml, model, eval_fraction=0.0)
    dataset = build(path, PAIRED_ROWS, chatml, model, eval_fraction=0.0, max_dropped_fraction=0.5)
    assert dataset.report["dropped"] == {
        "chosen equals rejected": 1,
        "empty reply": 1,
        "no room for the reply within data.max_length": 1,
    }
    assert dataset.report["examples"] == 6


def test_nothing_left(write_lines, chatml, model):
    path = write_lines("rows.jsonl", [{"prompt": "a", "completion": ""}])
    with pytest.raises(DataError, match=r"no example is left of 1 \(empty reply: 1\)"):
        build(path, REPLY_ROWS, chatml, model, max_dropped_fraction=1.0)


def test_rejects_can_be_written(write_lines, tmp_path, chatml, model):
    path = write_lines("rows.jsonl", [*pairs(3), "{broken"])
    dataset = build(path, PAIRED_ROWS, chatml, model, eval_fraction=0.0, max_bad_fraction=0.5)
    dataset.write_rejects(tmp_path / "rejects.txt")
    assert (tmp_path / "rejects.txt").read_text().startswith(f"{path}:4: not JSON")
    assert dataset.report["rows_bad"] == 1


def test_a_tokenizer_larger_than_the_embedding(write_lines, chatml):
    small = SimpleNamespace(family="qwen2", vocab_size=100)
    with pytest.raises(ConfigError, match=r"token id \d+ .*has 100 rows"):
        build(write_lines("rows.jsonl", pairs(3)), PAIRED_ROWS, chatml, small, eval_fraction=0.0)


def test_a_limit_to_a_dialogues_pairs_holds_in_training_only(chatml, model):
    free, limited = (
        build("samples", PAIRED_ROWS, chatml, model, max_length=2000, max_pairs_per_dialogue=n) for n in (0, 2)
    )
    assert limited.train.max_units == 2
    assert limited.report["train"]["passes"] == len(limited.train.pass_sizes) > 1
    assert limited.report["train"]["tokens_per_unit"] > free.report["train"]["tokens_per_unit"]
    assert limited.eval.fingerprint() == free.eval.fingerprint()
    assert {key for key in free.fingerprint if free.fingerprint[key] != limited.fingerprint[key]} >= {
        "max_pairs_per_dialogue",
        "train_rows",
    }


def test_the_fingerprint_names_what_changed(write_lines, tokenizers, chatml, model):
    path = write_lines("rows.jsonl", pairs(9))
    base = build(path, PAIRED_ROWS, chatml, model).fingerprint
    assert base == build(path, PAIRED_ROWS, chatml, model).fingerprint

    def changed(**changes):
        other = build(path, PAIRED_ROWS, chatml, model, **changes).fingerprint
        return {key for key in base if base[key] != other[key]}

    assert changed(max_length=199) == {"max_length"}
    assert "system_prompt" in changed(system_prompt="Be brief.")
    assert "packing" in changed(packing="none")
    assert changed(max_pairs_per_dialogue=1) == {"max_pairs_per_dialogue"}  # each dialogue has one pair
    assert changed(eval_fraction=0.5) == {"train_rows", "eval_rows"}
    model_of_gemma = SimpleNamespace(family="gemma2", vocab_size=10_000)
    other = build(path, PAIRED_ROWS, tokenizers["gemma"], model_of_gemma).fingerprint
    assert {key for key in base if base[key] != other[key]} >= {"tokenizer", "chat_template", "train_rows"}


def test_undesirable_dialogues_and_context_only_turns_are_not_trained(write_lines, chatml, model):
    context = chat("Hi", "a", "b", "c")
    context["messages"][1]["weight"] = 0
    path = write_lines("rows.jsonl", [chat("Hi", "good"), {**chat("Ho", "bad"), "label": False}, context])
    dataset = build(path, REPLY_ROWS, chatml, model, eval_fraction=0.0)
    assert [example.reply for example in dataset.train_examples] == ["good", "c"]
    assert dataset.report["counts"]["undesirable replies, which sft leaves out"] == 1
    assert "a<|im_end|>" in chatml.decode(dataset.train_examples[1].prompt_ids)


def test_tools_of_a_row_are_in_its_prompt(write_lines, make_tokenizer, model):
    tools = [{"type": "function", "function": {"name": "w"}}]
    rows = [chat("Hi", "a"), {**chat("Hi", "a"), "tools": tools}]
    source = "{% if tools %}{{ tools | tojson }}{% endif %}" + TEMPLATES["chatml"]
    dataset = build(
        write_lines("rows.jsonl", rows), REPLY_ROWS, make_tokenizer("chatml", source), model, eval_fraction=0.0
    )
    tokenizer = dataset.template.tokenizer
    prompts = [tokenizer.decode(example.prompt_ids) for example in dataset.train_examples]
    assert prompts[1] == json.dumps(tools) + prompts[0]


def test_the_borders_of_trained_tokens_are_shown(write_lines, chatml, model):
    dataset = build(write_lines("rows.jsonl", [chat("Hi", "I hear é🙂")]), REPLY_ROWS, chatml, model, eval_fraction=0.0)
    (tokens,) = trained_tokens(dataset.train, 0, chatml)
    assert "".join(tokens) == "I hear é🙂<|im_end|>"
    assert tokens[-1] == "<|im_end|>"
    assert tokens[-2] == "🙂"
    assert len(tokens) > 4

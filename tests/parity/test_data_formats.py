"""Our reading of chats and rows against transformers' templates and TRL's formats."""

from pathlib import Path

import pytest
import trl
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from trl.data_utils import extract_prompt

from empathax.data.chat import ChatTemplate
from empathax.data.records import Message
from empathax.data.trl_format import parse_row
from empathax.models.tokenizers.tokenizer import SpecialNames, Tokenizer

TEMPLATES = Path(trl.__file__).with_name("chat_templates")
STOPS = {
    "llama3": "<|eot_id|>",
    "llama3_1": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "gemma3": "<end_of_turn>",
    "qwen2_5": "<|im_end|>",
    "qwen3": "<|im_end|>",
    "qwen3_instruct_2507": "<|im_end|>",
    "phi3": "<|end|>",
}
HISTORY = [
    Message("system", "Be kind."),
    Message("user", "Good morning <3"),
    Message("assistant", "Hello, I hear you."),
    Message("user", "I feel low\ntoday."),
]
CONTROLS = [
    "<s>",
    "</s>",
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|im_start|>",
]
CONTROLS += ["<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]
CONTROLS += ["<think>", "</think>"]


@pytest.fixture(scope="module")
def backend():
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=CONTROLS, show_progress=False
    )
    backend.train_from_iterator(["Hello, I hear you. user assistant model system"] * 3, trainer)
    return backend


@pytest.mark.parametrize("name", STOPS)
def test_ids_are_those_of_apply_chat_template(name, backend):
    source = (TEMPLATES / f"{name}.jinja").read_text()
    template = ChatTemplate(Tokenizer(backend, SpecialNames("<s>", "</s>"), chat_template=source))
    reference = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=source
    )
    messages = [{"role": message.role, "content": message.content} for message in HISTORY]
    if not template.accepts_system:
        messages = [{"role": "user", "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}, *messages[2:]]
    reply = "I hear  you.\n\nTell me more?"
    prompt_ids = reference.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
    full_ids = reference.apply_chat_template(
        [*messages, {"role": "assistant", "content": reply}], enable_thinking=False, return_dict=False
    )
    encoded = template.encode_example(HISTORY, reply)
    assert encoded.prompt_ids.tolist() == prompt_ids
    ids = [*encoded.prompt_ids.tolist(), *encoded.reply_ids.tolist()]
    assert full_ids[: len(ids)] == ids
    assert template.tokenizer.decode(encoded.reply_ids) == reply + STOPS[name]


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        ("The sky is blue.", "The sky is green."),
        ("ab c", "ab d"),
        ("Human: Hi\n\nAssistant: I hear you", "Human: Hi\n\nAssistant: You should"),
    ],
)
def test_implicit_prompts_are_trls(chosen, rejected):
    expected = extract_prompt({"chosen": chosen, "rejected": rejected})
    row = parse_row({"chosen": chosen, "rejected": rejected}, "f:1")
    assert {"prompt": row.prompt, "chosen": row.chosen, "rejected": row.rejected} == expected


def test_implicit_prompts_of_messages_are_trls():
    head = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}]
    value = {key: [*head, {"role": "assistant", "content": key}] for key in ("chosen", "rejected")}
    expected = extract_prompt(value)
    row = parse_row(value, "f:1")
    assert [message.content for message in row.prompt] == [message["content"] for message in expected["prompt"]]
    assert row.chosen == expected["chosen"][0]["content"]

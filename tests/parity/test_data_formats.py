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
CONTROLS += ["<think>", "</think>", "[Question]", "<tool_call>", "</tool_call>"]
MISTRAL_V3 = (  # the system text stands before the last user turn
    "{%- if messages[0]['role'] == 'system' %}{%- set system_message = messages[0]['content'] %}"
    "{%- set loop_messages = messages[1:] %}{%- else %}{%- set loop_messages = messages %}{%- endif %}{{- bos_token }}"
    "{%- for message in loop_messages %}{%- if message['role'] == 'user' %}"
    "{%- if loop.last and system_message is defined %}{{- '[INST] ' + system_message + '\\n\\n' + message['content']"
    " + '[/INST]' }}{%- else %}{{- '[INST] ' + message['content'] + '[/INST]' }}{%- endif %}"
    "{%- else %}{{- ' ' + message['content'] + eos_token }}{%- endif %}{%- endfor %}"
)


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


def both(source, backend, **settings):
    ours = ChatTemplate(Tokenizer(backend, SpecialNames("<s>", "</s>"), chat_template=source), **settings)
    reference = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", chat_template=source
    )
    return ours, reference


@pytest.mark.parametrize("name", ["llama3", "qwen2_5", "qwen3", "gemma", "phi3"])
@pytest.mark.parametrize(
    "reply", ["[Question] What happened then?", "<tool_call>\n{}\n</tool_call>", "<think>\nLow.\n</think>\n\nHard."]
)
def test_added_tokens_in_a_reply_are_trained_as_transformers_has_them(name, reply, backend):
    template, reference = both((TEMPLATES / f"{name}.jinja").read_text(), backend)
    thinks = {"enable_thinking": reply.startswith("<think>")}
    messages = [{"role": "user", "content": "I feel low."}]
    prompt_ids = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **thinks)
    answered = [*messages, {"role": "assistant", "content": reply}]
    full_ids = reference.apply_chat_template(answered, return_dict=False, **thinks)
    encoded = template.encode_example([Message(**message) for message in messages], reply)
    ids = [*encoded.prompt_ids.tolist(), *encoded.reply_ids.tolist()]
    assert encoded.prompt_ids.tolist() == prompt_ids
    assert full_ids[: len(ids)] == ids
    assert template.tokenizer.decode(encoded.reply_ids) == reply + STOPS[name]


def test_thoughts_after_a_prompt_that_opens_them(backend):
    """R1's own template leaves a reply's thoughts out of the history; trained is what follows its generation prompt."""
    template, reference = both((TEMPLATES / "deepseek_r1_distill.jinja").read_text(), backend)
    messages = [{"role": "user", "content": "I feel low."}]
    prompt_ids = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    encoded = template.encode_example([Message("user", "I feel low.")], "<think>\nLow.\n</think>\n\nHard.")
    assert encoded.prompt_ids.tolist() == prompt_ids
    joined = [*prompt_ids, *encoded.reply_ids.tolist()]
    text = reference.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    end = "<\uff5cend\u2581of\u2581sentence\uff5c>"  # of DeepSeek; this tokenizer has it as text
    assert joined == [*reference.encode(f"{text}Low.\n</think>\n\nHard."), template.tokenizer.eos_token_id]
    assert end in template.source


@pytest.mark.parametrize("history", [HISTORY, HISTORY[:2]])
def test_the_system_text_stands_where_mistral_v3_puts_it(history, backend):
    template, reference = both(MISTRAL_V3, backend)
    messages = [{"role": message.role, "content": message.content} for message in history]
    expected = reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert template.encode_example(history, "I hear you.").prompt_ids.tolist() == expected


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "llama3_1"])
def test_tools_are_printed_as_transformers_prints_them(name, backend):
    template, reference = both((TEMPLATES / f"{name}.jinja").read_text(), backend)
    tools = [{"type": "function", "function": {"name": "w", "parameters": {"type": "object"}}}]
    messages = [{"role": message.role, "content": message.content} for message in HISTORY]
    expected = reference.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
    assert template.encode_example(HISTORY, "ok", {"tools": tools}).prompt_ids.tolist() == expected


@pytest.mark.parametrize("name", ["qwen3", "qwen2_5", "llama3_1"])
def test_calls_of_tools_are_printed_as_transformers_prints_them(name, backend):
    template, reference = both((TEMPLATES / f"{name}.jinja").read_text(), backend)
    call = {"type": "function", "function": {"name": "w", "arguments": {"city": "Bonn"}}}
    messages = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "w", "content": "sunny"},
    ]
    tools = [{"type": "function", "function": {"name": "w"}}]
    row = parse_row({"messages": [*messages, {"role": "assistant", "content": "Sunny!"}], "tools": tools}, "f:1")
    expected = reference.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, enable_thinking=False, return_dict=False
    )
    encoded = template.encode_example(row.messages[:-1], "Sunny!", row.template_variables)
    assert encoded.prompt_ids.tolist() == expected
    assert template.prints_tool_messages


@pytest.mark.parametrize("enable_thinking", [True, False])
def test_what_was_trained_is_the_default_of_the_template_that_is_exported(enable_thinking, backend):
    source = (TEMPLATES / "qwen3.jinja").read_text()
    template, reference = both(source, backend, variables={"enable_thinking": enable_thinking})
    messages = [{"role": message.role, "content": message.content} for message in HISTORY]
    prompt = template.encode_prompt(HISTORY).tolist()
    named = {"enable_thinking": enable_thinking}
    assert prompt == reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, **named)
    reference.chat_template = template.source
    assert prompt == reference.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


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

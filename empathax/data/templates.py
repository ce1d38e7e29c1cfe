"""Built-in chat templates by model family, and the system prompts that a config may name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from empathax import json_text
from empathax.errors import ConfigError, DataError
from empathax.models.tokenizers.template_defaults import defaults_of, with_defaults
from empathax.shown import quoted

if TYPE_CHECKING:
    from empathax.models.tokenizers.tokenizer import Tokenizer

_LLAMA2 = """\
{%- if messages[0]['role'] == 'system' -%}
    {%- set system = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set system = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
    {%- endif -%}
    {%- set content = system + message['content'] if loop.first else message['content'] -%}
    {%- if message['role'] == 'user' -%}
        {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
    {%- else -%}
        {{- ' ' + content.strip() + ' ' + eos_token -}}
    {%- endif -%}
{%- endfor -%}"""

_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim -}}
    {{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}"""

_MISTRAL = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
    {%- endif -%}
    {%- if message['role'] == 'user' -%}
        {{- '[INST] ' + message['content'].strip() + ' [/INST]' -}}
    {%- else -%}
        {{- ' ' + message['content'].strip() + eos_token -}}
    {%- endif -%}
{%- endfor -%}"""

_GEMMA = """\
{{- bos_token -}}
{%- for message in messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<start_of_turn>model\\n' -}}
{%- endif -%}"""

_CHATML = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}"""

TEMPLATES = {
    "llama2": _LLAMA2,
    "llama3": _LLAMA3,
    "mistral": _MISTRAL,
    "gemma": _GEMMA,
    "chatml": _CHATML,
    "qwen": _CHATML,
}

# Tokens a template writes that must be control tokens of the tokenizer; without them it is another family's template.
CONTROL_TOKENS = {
    "llama2": (),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "mistral": (),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "qwen": ("<|im_start|>", "<|im_end|>"),
}


def template_source(tokenizer: Tokenizer, choice: str, family: str) -> tuple[str, str]:
    """(name for messages, Jinja source) of `data.chat_template`."""
    if choice == "auto" and tokenizer.chat_template:
        return "the tokenizer's own chat template", tokenizer.chat_template
    if choice.endswith(".jinja"):
        try:
            return f"the chat template {choice}", json_text.read_text(Path(choice), DataError)
        except FileNotFoundError:
            raise DataError(f"data.chat_template = {quoted(choice)} cannot be read: there is no such file") from None
    name = _fallback_name(family, tokenizer.special_tokens) if choice == "auto" else choice
    if name not in TEMPLATES:
        raise DataError(
            f"data.chat_template = {quoted(choice)}: expected auto, one of {', '.join(TEMPLATES)}, or a path ending in "
            ".jinja"
        )
    missing = [token for token in CONTROL_TOKENS[name] if token not in tokenizer.special_tokens]
    if missing:
        raise DataError(
            f"data.chat_template = {name!r} writes {', '.join(missing)}, which this tokenizer does not know as control "
            "tokens: choose the template of the model's own family (auto does)"
        )
    return f"the built-in chat template {name!r}", TEMPLATES[name]


# Qwen3 and others: an empty think block ends the prompt, as most replies here hold no thoughts.
_DEFAULTS = {"enable_thinking": False}
_OF_ROWS = ("messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "pad_token")


def prepared_source(source: str, name: str, variables: Mapping[str, Any]) -> str:
    """A template with `data.chat_template_kwargs`, and our defaults for variables that it reads, set at its head.

    What is trained, what a checkpoint keeps and what an export writes is then one text.
    """
    for key, value in variables.items():
        if key in _OF_ROWS or not key.isidentifier():
            raise ConfigError(f"data.chat_template_kwargs: {key!r} is set for each row, not by the template's user")
        if value is None or not re.search(rf"\b{key}\b", source):
            problem = f"{key!r} is null: leave it out" if value is None else f"{name} does not read {key!r}"
            raise ConfigError(f"data.chat_template_kwargs = {dict(variables)}: {problem}")
    known = defaults_of(source)
    ours = {key: value for key, value in _DEFAULTS.items() if key not in known and re.search(rf"\b{key}\b", source)}
    return with_defaults(source, {**ours, **variables})


def _fallback_name(family: str, special_tokens: set[str]) -> str:
    """The template for a tokenizer without one: by its control tokens first, then by the model's family."""
    for name in ("llama3", "gemma", "chatml"):
        if special_tokens.issuperset(CONTROL_TOKENS[name]):
            return name
    return "mistral" if family == "mistral" else "llama2"


SYSTEM_PROMPTS = {
    # Son & So's four validation stages of dialectical behavior therapy.
    "dbt": (
        "You are a warm and attentive supporter. Someone is telling you about something that is hard for them; answer "
        "what they say now, in the light of the whole conversation. First listen: show that you are with them and ask "
        "openly. Then reflect: say back what happened and the feeling you hear in it, without adding your own reading. "
        "Then acknowledge: say why this feeling makes sense given what they went through. Last, respond as a real "
        "person: see their strength, stay on an equal footing, and offer an idea only gently and only when they are "
        "ready for it. Never lecture, minimise, or hurry to a solution. Keep your reply short and natural."
    ),
    # Empathy by Design: questions of people who care for someone with dementia.
    "caregiving": (
        "You help people who care for a family member or friend. Begin with one sentence that shows you understand how "
        "they feel. Then answer their question in plain, friendly words that need no medical training, say only what "
        "you know to be true, and suggest asking a doctor or nurse where that is the safe thing to do."
    ),
}


def system_text(choice: str) -> str | None:
    """The text of `data.system_prompt`: a name above, "none" (None: the template decides), or the text itself."""
    if choice in ("none", ""):
        return None
    return SYSTEM_PROMPTS.get(choice, choice)

"""A tokenizer that needs no files: one token per byte, and the ChatML control tokens. For `random:` models."""

from __future__ import annotations

from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from empathax.models.tokenizer import SpecialNames, Tokenizer
from empathax.models.tokenizer_backend import add_whole_tokens

_CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2, as the presets have them
_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """259 tokens: <|endoftext|> (padding), <|im_start|>, <|im_end|> (end of turn), then the 256 bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: token_id for token_id, token in enumerate([*_CONTROLS, *alphabet])}
    backend = Backend(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    add_whole_tokens(backend, _CONTROLS, special=True)
    names = SpecialNames(bos=_CONTROLS[1], eos=_CONTROLS[2], pad=_CONTROLS[0])
    return Tokenizer(backend, names, chat_template=_TEMPLATE)

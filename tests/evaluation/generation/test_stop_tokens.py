"""Extra stop tokens: names, texts of one token, and texts that are none."""

import pytest

from empathax.data.chat import ChatTemplate
from empathax.errors import ConfigError
from empathax.evaluation.generation.replies import stop_token_ids
from empathax.models.weights.source import resolve_model


@pytest.fixture(scope="module")
def template():
    source = resolve_model("random:tiny-llama")
    return ChatTemplate(source.tokenizer(), "auto", source.config.family)


def test_the_templates_own_are_always_among_them(template):
    assert stop_token_ids(template) == template.stop_token_ids
    newline, start = template.tokenizer.encode("\n")[0], template.tokenizer.token_to_id("<|im_start|>")
    expected = sorted({*template.stop_token_ids, newline, start})
    assert list(stop_token_ids(template, ("\n", "<|im_start|>", "<|im_end|>"))) == expected


def test_texts_of_several_tokens_are_all_named(template):
    with pytest.raises(ConfigError) as error:
        stop_token_ids(template, ("User:", "\n", "", "<|im_end|>\n"))
    message = str(error.value)
    assert "3 problems" in message
    assert f"stop token 'User:' is {len(template.tokenizer.encode('User:'))} tokens" in message
    assert "stop token '' is 0 tokens (none)" in message
    assert "stop token '<|im_end|>\\n' is 2 tokens ('<|im_end|>'" in message


class Lacking:
    """A tokenizer without byte fallback: what it does not know is <unk>."""

    unk_token = "<unk>"

    def token_to_id(self, token):
        return {"<unk>": 0, "a": 1}.get(token)

    def encode(self, text):
        return [self.token_to_id(letter) or 0 for letter in text]

    def id_to_token(self, token_id):
        return ("<unk>", "a")[token_id]


class Template:
    tokenizer = Lacking()
    stop_token_ids = (7,)


def test_the_unknown_token_is_no_stop_unless_it_is_named():
    with pytest.raises(ConfigError, match="stop token 'é' is not in the vocabulary"):
        stop_token_ids(Template(), ("é",))
    assert stop_token_ids(Template(), ("<unk>", "a")) == (0, 1, 7)

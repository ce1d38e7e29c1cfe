"""Damaged files end in a sentence that names them: kinds of malformed model files, rows and records, one by one.

fuzz_readers.py beside this file looks for more; what it finds becomes a case here.
"""

import contextlib
import json
import random
import shutil
import struct
import time

import pytest

from empathax.config import DataOptions
from empathax.config.losses import PAIRED_ROWS, REPLY_ROWS
from empathax.data.chat import ChatTemplate
from empathax.data.sources import load_splits
from empathax.errors import DataError, EmpathaxError, WeightsError
from empathax.evaluation.report.curves import read_curves
from empathax.evaluation.report.record import read_record
from empathax.models.lora.files import read_adapter
from empathax.models.weights.gguf import GgufFile
from empathax.models.weights.source import resolve_model
from tests.faults.readers import READERS, originals

HUGE = "1" + "0" * 400
DEEP = "[" * 300 + "]" * 300


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    place = tmp_path_factory.mktemp("valid")
    originals(place / "all")
    return place / "all"


@pytest.fixture
def model(valid, tmp_path):
    """A copy of a model's directory to damage."""
    return shutil.copytree(valid / "model", tmp_path / "model")


def read_model(place):
    source = resolve_model(place)
    source.check()
    return source.tokenizer()


@pytest.mark.parametrize("name", READERS)
def test_valid_files_are_read(valid, tmp_path, name):
    READERS[name].try_case(valid, tmp_path / "case", random.Random(0), damaged=False)


@pytest.mark.parametrize("name", READERS)
def test_some_damaged_files_end_in_a_sentence(valid, tmp_path, name):
    for seed in range(5 if name == "template" else 30):
        with contextlib.suppress(EmpathaxError):
            READERS[name].try_case(valid, tmp_path / "case", random.Random(seed), damaged=True)


@pytest.mark.parametrize(
    ("file", "field", "value", "named"),
    [
        ("config.json", "hidden_size", HUGE, "hidden_size"),
        ("config.json", "hidden_size", "[64]", "hidden_size"),
        ("config.json", "model_type", "[]", "model_type"),
        ("config.json", "rms_norm_eps", "1e300", "rms_norm_eps"),
        ("config.json", "rms_norm_eps", "NaN", "rms_norm_eps"),
        ("config.json", "layer_types", "[[1], {}]", "layer_types"),
        ("config.json", "rope_scaling", '{"rope_type": []}', "rope_type"),
        ("config.json", "unknown", DEEP, "nested too deeply"),
        ("config.json", "eos_token_id", '{"a": 1}', "eos_token_id"),
        ("generation_config.json", "eos_token_id", '["a"]', "eos_token_id"),
        ("generation_config.json", "eos_token_id", "1e30", "eos_token_id"),
        ("tokenizer_config.json", "added_tokens_decoder", '{"a": {}}', "added_tokens_decoder"),
        ("tokenizer_config.json", "added_tokens_decoder", '{"5": 7}', r"added_tokens_decoder\.5"),
        ("tokenizer_config.json", "added_tokens_decoder", '{"5": {"content": 7}}', r"added_tokens_decoder\.5\.content"),
        ("tokenizer_config.json", "added_tokens_decoder", "[1]", "added_tokens_decoder"),
        ("tokenizer_config.json", "eos_token", "[1]", "eos_token"),
        ("tokenizer_config.json", "bos_token", '{"content": {}, "a": "b"}', "bos_token"),
        ("config.json", "hidden_act", "{}", "hidden_act"),
        ("config.json", "torch_dtype", "[]", "dtype"),
        ("special_tokens_map.json", "unk_token", "3", "unk_token"),
        ("special_tokens_map.json", "unk_token", r'"\ud800"', "half of a surrogate pair"),
        ("added_tokens.json", "x", '"y"', "x"),
        ("added_tokens.json", "x", "99999999999", "x"),
    ],
)
def test_a_field_of_a_wrong_kind(model, file, field, value, named):
    path = model / file
    settings = json.loads(path.read_text())
    settings.pop(field, None)
    text = json.dumps(settings).rstrip("}") if settings else "{"
    path.write_text(f'{text}{", " if settings else ""}"{field}": {value}}}')
    with pytest.raises(WeightsError, match=rf"(?s){file}.*{named}"):
        read_model(model)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "\ufeff", '{"a": 1, "a": 2}', "9" * 5000, "[" * 100_000])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_files_that_are_no_settings(model, file, text):
    (model / file).write_text(text)
    with pytest.raises(WeightsError, match=file.replace(".", r"\.")):
        read_model(model)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "chat_template.jinja"])
def test_other_encodings(model, file):
    text = (model / file).read_text()
    for data, reason in ((text.encode("utf-16"), "it is UTF-16"), (text.encode() + b"\xff", "not UTF-8: byte 0xff")):
        (model / file).write_bytes(data)
        with pytest.raises(WeightsError, match=rf"{file}.*{reason}"):
            read_model(model)


@pytest.mark.parametrize("template", ["[1]", '[{"name": "default"}]', '[{"name": 1, "template": "a"}]', "5"])
def test_templates_of_a_wrong_kind(model, template):
    (model / "chat_template.jinja").unlink()
    path = model / "tokenizer_config.json"
    path.write_text(path.read_text().rstrip().rstrip("}") + f', "chat_template": {template}}}')
    with pytest.raises(WeightsError, match=r"tokenizer_config\.json: chat_template"):
        read_model(model)


def test_names_of_shards_that_no_disk_can_hold(valid, tmp_path):
    place = shutil.copytree(valid / "sharded", tmp_path / "model")
    path = place / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    for name in ("a" * 300 + ".safetensors", "a\0.safetensors", "a\x1b[2J.safetensors"):
        index["weight_map"]["model.norm.weight"] = name
        path.write_text(json.dumps(index))
        with pytest.raises(WeightsError, match=r"index\.json names files that no file system can hold") as caught:
            read_model(place)
        assert "\x1b" not in str(caught.value)


def test_a_header_of_many_names_is_read_in_linear_time(model):
    path = model / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, end = json.loads(data[8 : 8 + length]), len(data) - 8 - length
    header |= {f"x{n}": {"dtype": "F32", "shape": [0], "data_offsets": [end, end]} for n in range(50_000)}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    start = time.perf_counter()
    with pytest.raises(WeightsError, match=r"x0 \.\.\. x49999 \(50000 tensors x\*\): found in the file") as caught:
        read_model(model)
    assert time.perf_counter() - start < 20  # it took 30 s and grew with the square
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("length", [100_000_001, 2**62, 2**64 - 1])
def test_a_header_beyond_the_formats_limit(model, length):
    path = model / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(WeightsError, match=f"its header has {length:,} bytes, and the format allows 100,000,000"):
        read_model(model)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rank_pattern", 7), ("rank_pattern", [1]), ("alpha_pattern", 0.5), ("alpha_pattern", {"q_proj": "a"}),
     ("rank_pattern", {"q_proj": 0}), ("r", 10**18), ("r", True), ("lora_alpha", [1]), ("lora_alpha", 1e308)],
)  # fmt: skip
def test_adapters_with_fields_of_a_wrong_kind(valid, tmp_path, field, value):
    place = shutil.copytree(valid / "adapter", tmp_path / "adapter")
    path = place / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(WeightsError, match=rf"adapter_config\.json cannot be used: {field} = "):
        read_adapter(place, resolve_model("random:tiny-llama").config)


def gguf_header(num_tensors, fields=()):
    data = b"GGUF" + struct.pack("<IQQ", 3, num_tensors, len(fields))
    for key, kind, value in fields:
        data += struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value
    return data


def an_array(item, count, rest=b""):
    return struct.pack("<IQ", item, count) + rest


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (gguf_header(2**60), "1,152,921,504,606,846,976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "metadata fields"),
        (gguf_header(0, [(b"a", 8, struct.pack("<Q", 2**62))]), "bytes of one text"),
        (gguf_header(0, [(b"a", 9, an_array(4, 2**62))]), "values of one list"),
        (gguf_header(0, [(b"a", 9, an_array(8, 2**24))]), "ends early"),
        (gguf_header(0, [(b"a", 9, an_array(9, 1, an_array(9, 1)))]), "a list of values of type 9"),
        (gguf_header(0, [(b"a", 9, an_array(9, 1) * 5000)]), "a list of values of type 9"),
        (gguf_header(0, [(b"a", 4, b"\1\0\0\0")] * 2), "the key 'a' twice"),
        (gguf_header(0, [(b"a", 77, b"")]), "unknown type 77"),
        (gguf_header(1) + struct.pack("<Q", 1) + b"t" + struct.pack("<I", 2**31), "dimensions of t"),
        (gguf_header(1)[:-3], "does not start|version|ends early"),
    ],
)
def test_gguf_headers_that_promise_too_much(tmp_path, data, reason):
    path = tmp_path / "a.gguf"
    path.write_bytes(data.ljust(24, b"\0"))
    start = time.perf_counter()
    with pytest.raises(WeightsError, match=rf"a\.gguf cannot be read as GGUF: .*({reason})"):
        GgufFile(path)
    assert time.perf_counter() - start < 5


def row(more):
    """The JSON of a preference row with another field."""
    return '{"prompt": "a", "chosen": "b", "rejected": "c", ' + more + "}"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row(f'"n": {HUGE}'), "n: a number of 401 digits"),
        (row('"n": ' + "9" * 5000), "n: a number of 5,000 digits"),
        (row('"n": NaN'), "n: found NaN"),
        (row('"n": 1e999'), "n: the number 1e999"),
        (row('"chosen": "d"'), "the key 'chosen' stands twice"),
        (row(r'"dialogue_id": "\ud800"'), "surrogate"),
        (row(f'"n": {DEEP}'), "nested too deeply"),
        ('{"dialog": [{"speaker": ["seeker"], "text": "a"}]}', "found the keys dialog"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".json"])
def test_bad_rows_are_counted_with_their_line(tmp_path, bad, reason, suffix):
    good = [json.dumps({"prompt": f"p{n}", "chosen": "b", "rejected": "c"}) for n in range(3)]
    lines = [good[0], bad, *good[1:]]
    path = tmp_path / f"rows{suffix}"
    path.write_text("\n".join(lines) if suffix == ".jsonl" else "[" + ",\n".join(lines) + "]")
    with pytest.raises(DataError, match=rf"1 of 4 rows cannot be used.*rows\{suffix}:2: .*{reason}"):
        load_splits(DataOptions(path=str(path)), PAIRED_ROWS)
    splits = load_splits(DataOptions(path=str(path), max_bad_fraction=0.3), PAIRED_ROWS)
    assert len(splits.train) + len(splits.eval) == 3
    assert len(splits.tally.bad) == 1


@pytest.mark.parametrize(
    "dialog",
    [[{"speaker": ["seeker"], "text": "a"}], [{"speaker": "supporter", "text": "a", "strategy": ["Question"]}], [7]],
)
def test_utterances_of_a_wrong_kind(tmp_path, dialog):
    path = tmp_path / "esconv.json"
    path.write_text(json.dumps([{"dialog": dialog}]))
    with pytest.raises(DataError, match=r"esconv\.json:1: dialog\[0\]"):
        load_splits(DataOptions(path=str(path)), REPLY_ROWS)


@pytest.mark.parametrize("path", ["a\0b", "x" * 300 + ".jsonl", "/dev/zero", "/dev/null"])
def test_data_that_are_no_files(path):
    with pytest.raises(DataError, match=r"cannot be a path|no ordinary file"):
        load_splits(DataOptions(path=path), PAIRED_ROWS)


@pytest.mark.parametrize("path", ["a\0b", "x" * 300, "/x" * 3000])
def test_models_that_are_no_paths(path):
    with pytest.raises(WeightsError, match="cannot be a path"):
        resolve_model(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ('{"format": 1, "label": "a', "not JSON"),
        ('{"format": 1, "seed": ' + HUGE + "}", "seed: a number of 401 digits"),
        ('{"format": 1, "format": 1}', "stands twice"),
        ('{"format": 1, "\\u001b[2J": 1}', r"unknown entry '\\x1b\[2J'"),
    ],
)
def test_records_that_are_torn(tmp_path, text, reason):
    path = tmp_path / "evaluation.json"
    path.write_text(text)
    with pytest.raises(DataError, match=rf"evaluation\.json.*{reason}") as caught:
        read_record(path)
    assert "\x1b" not in str(caught.value)


def test_a_torn_line_of_metrics(tmp_path, capsys):
    path, line = tmp_path / "metrics.jsonl", '{"step": 1, "stage": "sft", "split": "train", "loss": 2.5, "kl": NaN}\n'
    path.write_text(line + line.replace('"step": 1', '"step": 2')[:30])
    (curve,) = read_curves(path)
    assert (curve.steps, curve.values) == ((1,), (2.5,))
    assert "metrics.jsonl:2: the last line is not whole" in capsys.readouterr().err
    for torn in (line[:30] + "\n" + line, line.replace("1,", f"{HUGE},", 1) + line, "\xff\n" + line):
        path.write_bytes(torn.encode("latin-1"))
        with pytest.raises(DataError, match=r"metrics\.jsonl:1: "):
            read_curves(path)


def test_what_a_template_raises_is_shown_in_part_and_obeyed_by_no_terminal(model):
    message = "\\x1b[2Jgone\\r" + "a" * 5000
    (model / "chat_template.jinja").write_text("{{ raise_exception('" + message + "') }}")
    source = resolve_model(model)
    with pytest.raises(DataError) as caught:
        ChatTemplate(source.tokenizer(), "auto", source.config.family)
    assert len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)
    assert "\r" not in str(caught.value)


@pytest.mark.parametrize("template", ["{{ 9" + "9" * 5000 + " }}", "{{ 10 ** 400 * 1.5 }}", "{% if %}", "\ud800"])
def test_templates_that_no_compiler_takes(model, template):
    (model / "chat_template.jinja").write_bytes(template.encode("utf-8", "surrogatepass"))
    with pytest.raises(EmpathaxError):  # noqa: PT012
        source = resolve_model(model)
        ChatTemplate(source.tokenizer(), "auto", source.config.family)

"""The readers that are tried with damaged files: what each reads, of which valid files it is made."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from empathax.config import DataOptions
from empathax.config.flags import load_sweep
from empathax.config.losses import PAIRED_ROWS, REPLY_ROWS
from empathax.data.chat import ChatTemplate
from empathax.data.sources import load_splits
from empathax.evaluation.generation.prompt_file import read_prompts
from empathax.evaluation.judging.response_cache import ResponseCache
from empathax.evaluation.report.curves import read_curves
from empathax.evaluation.report.files import read_runs
from empathax.evaluation.report.table import Results
from empathax.evaluation.report.text import Report, markdown
from empathax.models.encoder.files import encoder_config
from empathax.models.lora.files import read_adapter
from empathax.models.tokenizers.tokenizer import byte_tokenizer
from empathax.models.weights.export import export_model
from empathax.models.weights.safetensors import read_json
from empathax.models.weights.source import resolve_model
from empathax.preferences.set_files import done_before, start
from tests.faults.mutations import mutated_bytes, mutated_json

ROOT = Path(__file__).parent.parent.parent
TEXTS = ("Hello <|im_end|> you", "", "\u00e9\n\n  x", "a" * 300)


@dataclass(frozen=True)
class Reader:
    """`read` of a directory in which one of `files` was damaged; `folder` is its valid form."""

    folder: str
    files: tuple[str, ...]
    read: Callable[[Path], object]

    def try_case(self, valid: Path, place: Path, rng: random.Random, damaged: bool) -> None:
        """Copies the valid files to `place`, damages one of them and reads."""
        if place.exists():
            shutil.rmtree(place)
        shutil.copytree(valid / self.folder, place)
        if damaged:
            path = place / rng.choice(self.files)
            path.write_bytes(_damaged(path, rng))
        self.read(place)


def _damaged(path: Path, rng: random.Random) -> bytes:
    data = path.read_bytes()
    if rng.random() < 0.02:
        return b""
    if path.suffix == ".safetensors" and rng.random() < 0.6:
        length = int.from_bytes(data[:8], "little")
        header = mutated_json(json.loads(data[8 : 8 + length]), rng)
        return len(header).to_bytes(8, "little") + header + data[8 + length :]
    if rng.random() < 0.25 or path.suffix not in (".json", ".jsonl"):
        return mutated_bytes(data, rng)
    if path.suffix == ".json":
        return mutated_json(json.loads(data), rng)
    lines = data.splitlines()
    number = rng.randrange(len(lines))
    lines[number] = mutated_json(json.loads(lines[number]), rng)
    return b"\n".join(lines) + b"\n"


def _read_model(place: Path) -> None:
    source = resolve_model(place)
    source.check()
    _use(source.tokenizer())
    if (place / "model.safetensors").exists() or list(place.glob("model-*")):
        source.load_params()
    source.fingerprint()


def _read_tokenizer(place: Path) -> None:
    _use(resolve_model(place).tokenizer())


def _use(tokenizer) -> None:
    for text in TEXTS:
        tokenizer.decode(tokenizer.encode(text)[:50])
        tokenizer.encode_plain(text)
    tokenizer.fingerprint()


def _read_gguf(place: Path) -> None:
    source = resolve_model(place / "model.gguf")
    source.check()
    _use(source.tokenizer())
    source.load_params()


def _read_template(place: Path) -> None:
    source = resolve_model(place)
    ChatTemplate(source.tokenizer(), "auto", source.config.family)


def _read_adapter(place: Path) -> None:
    read_adapter(place, resolve_model("random:tiny-llama").config)


def _read_rows(place: Path) -> None:
    for path in sorted(place.iterdir()):
        for kind in (REPLY_ROWS, PAIRED_ROWS):
            load_splits(
                DataOptions(path=str(path), max_bad_fraction=1.0, eval_fraction=0.0, esconv_rejected="random"), kind
            )


def _read_report(place: Path) -> None:
    records = read_runs([place / "runs"])
    read_curves(place / "metrics.jsonl")
    markdown(Report("title", Results(records, 0), (), ()))


def _read_flags(place: Path) -> None:
    try:
        values = json.loads((place / "flags.jsonl").read_bytes().decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError):  # no flags
        return
    flags = [f"--config.{name}={value}" for name, value in values.items()] if isinstance(values, dict) else []
    load_sweep([f"--config={ROOT}/configs/demo.py", *flags])


def _read_caches(place: Path) -> None:
    ResponseCache(place / "answers")
    start(place / "set", {"a": 1})
    done_before(place / "set")


READERS = {
    "config": Reader("model", ("config.json", "generation_config.json"), _read_model),
    "tokenizer": Reader("model", ("tokenizer.json",), _read_tokenizer),
    "tokenizer_settings": Reader(
        "model", ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"), _read_tokenizer
    ),
    "index": Reader("sharded", ("model.safetensors.index.json",), _read_model),
    "safetensors": Reader("model", ("model.safetensors",), _read_model),
    "template": Reader("model", ("chat_template.jinja",), _read_template),
    "gguf": Reader("gguf", ("model.gguf",), _read_gguf),
    "adapter": Reader("adapter", ("adapter_config.json", "adapter_model.safetensors"), _read_adapter),
    "encoder": Reader(
        "encoder", ("config.json",), lambda place: encoder_config(read_json(place / "config.json") or {}, str(place))
    ),
    "rows": Reader("rows", ("pairs.jsonl", "esconv.json", "messages.json", "empathetic.csv", "pairs.csv"), _read_rows),
    "prompts": Reader("prompts", ("prompts.jsonl",), lambda place: read_prompts(place / "prompts.jsonl")),
    "report": Reader("report", ("runs/base/evaluation.json", "metrics.jsonl"), _read_report),
    "flags": Reader("flags", ("flags.jsonl",), _read_flags),
    "caches": Reader("caches", ("answers/responses.jsonl", "set/started.json", "set/summary.json"), _read_caches),
}


def originals(place: Path) -> None:
    """Writes the valid files of all readers, a folder for each kind."""
    model = resolve_model("random:tiny-llama")
    params = model.load_params()
    export_model(params, model.config, byte_tokenizer(), place / "model")
    (place / "model" / "added_tokens.json").write_text('{"<extra>": 259}')
    export_model(params, model.config, byte_tokenizer(), place / "sharded", max_shard_bytes=200_000)
    _write_gguf(place / "gguf" / "model.gguf")
    _write_adapter(place / "adapter")
    _write_rows(place)
    _write_report(place / "report")


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def _write_lines(path: Path, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_gguf(path: Path) -> None:
    from tests.models.weights.test_gguf import llama_tensors, write_gguf

    path.parent.mkdir(parents=True)
    fields = [("tokenizer.ggml.token_type", [1] * 40), ("tokenizer.ggml.eos_token_id", 3)]
    write_gguf(path, llama_tensors(), fields=fields)


def _write_adapter(place: Path) -> None:
    import jax
    import numpy as np

    from empathax.config.lora import LoraSpec
    from empathax.models.lora.adapters import Adapter, abstract_adapter
    from empathax.models.lora.files import write_adapter
    from empathax.models.transformer import abstract_params

    place.mkdir()
    spec = LoraSpec(2, 4.0, targets=("q_proj", "up_proj"))
    shapes = abstract_adapter(abstract_params(resolve_model("random:tiny-llama").config), spec)
    write_adapter(place, Adapter(jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes), spec), "base")


def _write_rows(place: Path) -> None:
    user, reply = {"role": "user", "content": "I lost my job"}, {"role": "assistant", "content": "That hurts."}
    pairs = [
        {"prompt": [user], "chosen": [reply], "rejected": [{**reply, "content": "No."}], "dialogue_id": f"d{n}"}
        for n in range(6)
    ]
    last = {"speaker": "supporter", "text": "Hello", "strategy": "Question"}
    esconv = [
        {"dialog": [{"speaker": "seeker", "text": f"Hi {n}"}, last], "situation": f"s{n}", "emotion_type": "fear"}
        for n in range(4)
    ]
    _write_lines(place / "rows" / "pairs.jsonl", pairs)
    _write_json(place / "rows" / "esconv.json", esconv)
    _write_json(place / "rows" / "messages.json", [{"messages": [user, reply], "id": n} for n in range(4)])
    header = "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags\n"
    lines = (f"hit:{n},{turn},sad,Why,1,Words_comma_ and {n},5|5,\n" for n in range(4) for turn in (1, 2))
    (place / "rows" / "empathetic.csv").write_text(header + "".join(lines))
    (place / "rows" / "pairs.csv").write_text('prompt,chosen,rejected\n"a, b",c,d\ne,f,"g\nh"\n')
    _write_lines(place / "prompts" / "prompts.jsonl", [{"prompt": "Hi"}, {"messages": [user, reply]}])
    flags = {"sft.max_steps": 3, "sft.learning_rate": 0.1, "model.path": "x", "stages": "sft", "eval.readability": True,
             "dpo.loss_weights": "1", "data.system_prompt": "dbt", "mesh.rules": "embed=", "lora.rank": 2,
             "lora.targets": "q_proj", "mesh.preset": "v5e:4x4", "eval.stop_tokens": "x", "seed": 1}  # fmt: skip
    _write_lines(place / "flags" / "flags.jsonl", [flags])
    outcome = {"status": "answered", "text": "a", "reason": "", "finish_reason": "stop", "prompt_tokens": 1}
    entry = {"key": "k", "url": "u", "request": {}, "sample": 0, "time": 1.5, "outcome": outcome}
    _write_lines(place / "caches" / "answers" / "responses.jsonl", [entry, entry])
    _write_json(place / "caches" / "set" / "started.json", {"time": 1.5, "settings": {"a": 1}})
    _write_json(
        place / "caches" / "set" / "summary.json",
        {"splits": {"train": {"pairs": 3}}, "notes": {"contexts": {"train": 2}}},
    )
    encoder = {"model_type": "bert", "vocab_size": 9, "num_hidden_layers": 1, "hidden_size": 8, "hidden_act": "gelu",
               "intermediate_size": 8, "num_attention_heads": 2, "max_position_embeddings": 9, "type_vocab_size": 2,
               "layer_norm_eps": 1e-12, "pad_token_id": 0, "initializer_range": 0.02}  # fmt: skip
    _write_json(place / "encoder" / "config.json", encoder)


def _write_report(place: Path) -> None:
    from empathax.data.records import Message
    from empathax.evaluation.metrics.statistics import MeanOfValues
    from empathax.evaluation.report.record import Curve, EvaluatedData, EvaluationRecord, Reply, write_record

    record = EvaluationRecord(
        label="base",
        model="m",
        data=EvaluatedData("p", "eval", 2, 2),
        seed=0,
        command="c",
        metrics={"words": 2.0, "perplexity": 5.0},
        decoding={"temperature": 0.5},
        per_example={"words": MeanOfValues(("a", "b"), (1.0, 3.0))},
        replies=(Reply("a", (Message("user", "u"),), "r", "s", 1, 2),),
        curves=(Curve("sft", "train", "loss", (1, 2), (3.0, 2.0)),),
    )
    (place / "runs" / "base").mkdir(parents=True)
    write_record(place / "runs" / "base" / "evaluation.json", record)
    line = {"step": 1, "stage": "sft", "split": "train", "loss": 3.5, "perplexity": 2}
    _write_lines(place / "metrics.jsonl", [line, {**line, "step": 2}])

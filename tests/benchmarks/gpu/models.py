"""The models of the GPU benchmark: their shapes, and where their configs and random weights lie."""

from __future__ import annotations

import json
from pathlib import Path

from empathax.models.architecture.hf_config import from_hf_config, to_hf_config
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.tokenizers.tokenizer import Tokenizer
from tests.benchmarks.task import Task

SMALL, LARGE = "model", "llama_1b"  # their folders


def llama_1b() -> ModelConfig:
    """Llama-3.2-1B, as its config.json describes it (but for the rope's scaling, which is for long contexts)."""
    return from_hf_config(
        {
            "model_type": "llama",
            "vocab_size": 128256,
            "num_hidden_layers": 16,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0,
            "tie_word_embeddings": True,
        }
    )


def write_model(config: ModelConfig, tokenizer: Tokenizer, directory: Path) -> None:
    """Config and tokenizer as Hugging Face's files; no weights."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(to_hf_config(config), indent=2))
    tokenizer.save(directory)


class FolderTask(Task):
    """A task whose model is one of the folder's, named in its options."""

    @property
    def model_dir(self) -> Path:
        """See Task."""
        return Path(self.folder) / self.options["model"]


def weights_dir(folder: Path) -> Path:
    """Where weights.py writes the smaller model."""
    return folder / "weights"

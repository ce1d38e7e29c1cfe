"""Writes random weights of a model as a Hugging Face directory, for the parts that read one."""

from __future__ import annotations

from pathlib import Path

from empathax.models.export import export_model
from empathax.models.source import resolve_model
from empathax.models.transformer import init_params
from tests.benchmarks.gpu.part import Part, part_from_argv
from tests.benchmarks.gpu.train_steps import llama_1b
from tests.benchmarks.task import Task

LLAMA = "llama_1b"


def run(part: Part) -> None:
    """weights/model and weights/llama_1b; the second is only for training, with the first's tokenizer."""
    source = resolve_model(part.folder / "model")
    found = {"model": source.config} if part.quick else {"model": source.config, LLAMA: llama_1b()}
    for name, config in found.items():
        export_model(init_params(config, 0), config, source.tokenizer(), weights_dir(part.folder, name))


def weights_dir(folder: Path, name: str) -> Path:
    """Where a model's weights are."""
    return folder / "weights" / name


class WeightsTask(Task):
    """A task whose model lies with the other weights of the GPU benchmark."""

    @property
    def model_dir(self) -> Path:
        """See Task."""
        return weights_dir(Path(self.folder), self.options["model"])


if __name__ == "__main__":
    run(part_from_argv(__doc__))

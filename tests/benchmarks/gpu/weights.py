"""Writes random weights of the prepared model as a Hugging Face directory, for the parts that read one."""

from __future__ import annotations

from empathax.models.transformer import init_params
from empathax.models.weights.export import export_model
from empathax.models.weights.source import resolve_model
from tests.benchmarks.gpu.models import SMALL, weights_dir
from tests.benchmarks.gpu.part import Part, part_from_argv


def run(part: Part) -> None:
    """Writes them."""
    source = resolve_model(part.folder / SMALL)
    export_model(init_params(source.config, 0), source.config, source.tokenizer(), weights_dir(part.folder))


if __name__ == "__main__":
    run(part_from_argv(__doc__))

"""The rows that a step is planned for: read from the data, or taken from figures measured on ESConv."""

from __future__ import annotations

from dataclasses import dataclass

from empathax.config import Config
from empathax.config.losses import LABELED_ROWS, MISMATCHED_ROWS, PAIRED_ROWS, REPLY_ROWS
from empathax.data.dataset import build_dataset
from empathax.data.packing import SEQUENCE_MULTIPLE, TRAINED_MULTIPLE, PackedRows, RowSizes
from empathax.data.row_plan import ROW_MULTIPLE, round_up
from empathax.errors import DataError, WeightsError
from empathax.planning.costs import tree_counts
from empathax.planning.model import PlannedModel
from empathax.training.stages.stage import find_stage


@dataclass(frozen=True)
class Rows:
    """Shapes of a row, and what the average row holds. `num_rows` of the training data; 0 = not known."""

    sizes: RowSizes
    tokens: float
    trained: float
    visible_pairs: float
    units: float  # pairs, or replies of sft
    num_rows: int = 0


# Rows of 2,048 tokens of ESConv, printed by `python -m tests.benchmarks.row_figures --data=ESCONV`
_MEASURED_LENGTH = 2048
_ESCONV = {
    (PAIRED_ROWS, "tree"): Rows(RowSizes(2048, 1408, 56, 32), 1978.8, 1048.4, 888359, 17.69),
    (PAIRED_ROWS, "pair"): Rows(RowSizes(2048, 384, 24, 16), 2025.8, 231.3, 625748, 3.90),
    (PAIRED_ROWS, "none"): Rows(RowSizes(2048, 384, 16, 8), 2017.1, 122.1, 600254, 2.06),
    (REPLY_ROWS, "tree"): Rows(RowSizes(2048, 800, 48, 0), 1954.0, 715.1, 872907, 27.10),
    (REPLY_ROWS, "pair"): Rows(RowSizes(2048, 320, 16, 0), 2027.9, 109.8, 604971, 4.16),
    (REPLY_ROWS, "none"): Rows(RowSizes(2048, 320, 16, 0), 2027.9, 109.8, 604971, 4.16),
}


def find_rows(config: Config, stage: str, model: PlannedModel) -> tuple[Rows, str]:
    """The rows of a stage and where they come from, in words: the data, where they and the tokenizer can be read.

    Raises a DataError if they cannot, and rows of the kind were not measured.
    """
    reason = "the model's tokenizer is not here"
    try:
        if config.model.tokenizer_path or model.tokenizer:
            return _from_data(config, stage, model), f"rows of {config.data.path}"
    except (DataError, WeightsError) as error:  # not here, or not to be read; wrong settings are errors of the plan too
        reason = str(error).splitlines()[0]
    if find_stage(stage).rows_kind(config) in (LABELED_ROWS, MISMATCHED_ROWS):
        raise DataError(f"{reason}; there are no figures to assume for replies with a label: plan with the data")
    return assumed_rows(config, stage), f"rows assumed to be like ESConv's, see docs/plan.md ({reason})"


def check_enough_rows(config: Config, stage: str, rows: Rows) -> None:
    """Raises DataError if the data fill fewer rows than a step takes, as training would."""
    options = config.stage(stage)
    needed = options.rows_per_batch * options.accumulation_steps
    if 0 < rows.num_rows < needed:
        raise DataError(
            f"the data fill {rows.num_rows} row(s) of {rows.sizes.tokens} tokens, but one step of {stage} takes "
            f"rows_per_batch * accumulation_steps = {needed}: lower these or data.row_length, or add data"
        )


def measured_rows(packed: PackedRows) -> Rows:
    """The figures of packed data."""
    counts, num_rows = tree_counts(packed.trees), len(packed)
    num_sequences = sum(len(tree.sequence_ids) for tree in packed.trees)
    return Rows(
        sizes=packed.sizes,
        tokens=counts.tokens / num_rows,
        trained=counts.trained / num_rows,
        visible_pairs=counts.visible_pairs / num_rows,
        units=(len(packed.labels) or num_sequences / (2 if packed.paired else 1)) / num_rows,
        num_rows=num_rows,
    )


def assumed_rows(config: Config, stage: str) -> Rows:
    """ESConv's rows at the config's row length, every figure in proportion to it.

    `data.row_length` = 0 is taken as twice `data.max_length`, the most that packing chooses.
    """
    measured = _ESCONV[find_stage(stage).rows_kind(config), config.data.packing]
    tokens = round_up(config.data.row_length or 2 * config.data.max_length, ROW_MULTIPLE)
    ratio = tokens / _MEASURED_LENGTH

    def scaled(size: int, multiple: int) -> int:
        return round_up(round(size * ratio), multiple) if size else 0

    sizes = RowSizes(
        tokens=tokens,
        trained=scaled(measured.sizes.trained, TRAINED_MULTIPLE),
        sequences=scaled(measured.sizes.sequences, SEQUENCE_MULTIPLE),
        pairs=scaled(measured.sizes.pairs, SEQUENCE_MULTIPLE),
    )
    return Rows(
        sizes,
        tokens=measured.tokens * ratio,
        trained=measured.trained * ratio,
        visible_pairs=measured.visible_pairs * ratio,
        units=measured.units * ratio,
    )


def _from_data(config: Config, stage: str, model: PlannedModel) -> Rows:
    from empathax.models.weights.source import load_tokenizer

    path = config.model.tokenizer_path
    tokenizer = load_tokenizer(path) if path or model.tokenizer is None else model.tokenizer()
    tokenizer = tokenizer.fitted_to(model.config.vocab_size)
    kind = find_stage(stage).rows_kind(config)
    return measured_rows(build_dataset(config.data, kind, tokenizer, model.config, config.seed).train)

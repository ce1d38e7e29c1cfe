"""Rows of a plan: the data's where they can be read, else ESConv's in proportion."""

import numpy as np
import pytest

from empathax.config.losses import PAIRED_ROWS
from empathax.data.dataset import build_dataset
from empathax.data.packing import RowSizes
from empathax.errors import ConfigError, DataError
from empathax.planning.model import PlannedModel, find_model
from empathax.planning.rows import Rows, assumed_rows, check_enough_rows, find_rows, measured_rows
from tests.training.tiny import tiny_config


def test_rows_of_data_are_counted():
    config, model = tiny_config(), find_model("random:tiny-llama")
    rows, origin = find_rows(config, "dpo", model)
    packed = build_dataset(config.data, PAIRED_ROWS, model.tokenizer(), model.config, config.seed).train
    assert rows == measured_rows(packed)
    assert origin == "rows of samples"
    batches = [packed[row] for row in range(len(packed))]
    assert rows.sizes.tokens == batches[0].token_ids_BT.shape[0]
    assert rows.trained == np.mean([batch.weight_BM.sum() for batch in batches])
    assert rows.units == np.mean([batch.pair_weight_BP.sum() for batch in batches])
    in_use = [(batch.subtree_end_BT - np.arange(rows.sizes.tokens)).sum() for batch in batches]
    unused = rows.sizes.tokens - rows.tokens  # each unused token sees itself, and is not counted
    assert rows.visible_pairs == pytest.approx(np.mean(in_use) - unused)


@pytest.mark.parametrize("changes", [{"data__path": "no/such_place"}, {"model__path": "random:tiny-gemma"}])
def test_where_data_or_tokenizer_are_missing_rows_are_assumed(changes):
    config = tiny_config(**changes, data__row_length=4096)
    known = PlannedModel(find_model(config.model.path).config, "a table")
    model = find_model(config.model.path) if "data__path" in changes else known
    rows, origin = find_rows(config, "dpo", model)
    assert rows == assumed_rows(config, "dpo")
    assert "assumed" in origin
    assert "docs/plan.md" in origin


def test_wrong_settings_are_errors_of_the_plan_too():
    with pytest.raises(ConfigError, match="row_length = 128"):
        find_rows(tiny_config(data__row_length=128), "dpo", find_model("random:tiny-llama"))


def test_assumed_rows_are_in_proportion_to_their_length():
    rows = {length: assumed_rows(tiny_config(data__row_length=length), "dpo") for length in (2048, 4096)}
    assert rows[2048].sizes == RowSizes(2048, 1408, 56, 32)
    assert rows[4096].sizes == RowSizes(4096, 2816, 112, 64)
    assert rows[4096].visible_pairs == 2 * rows[2048].visible_pairs
    automatic = assumed_rows(tiny_config(data__row_length=0, data__max_length=1024), "sft")
    assert (automatic.sizes.tokens, automatic.sizes.pairs) == (2048, 0)


def test_a_step_larger_than_the_data_is_refused():
    config = tiny_config(dpo__rows_per_batch=4, dpo__accumulation_steps=2)
    few = Rows(RowSizes(2048, 32, 8, 8), 1.0, 1.0, 1.0, 1.0, num_rows=7)
    with pytest.raises(DataError, match=r"fill 7 row\(s\).*= 8"):
        check_enough_rows(config, "dpo", few)

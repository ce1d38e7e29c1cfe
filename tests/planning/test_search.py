"""The search against a device whose memory is a formula."""

from dataclasses import replace

import pytest

from empathax.config.hardware import parse_hardware, smaller_to_larger
from empathax.data.packing import RowSizes
from empathax.errors import ConfigError, DataError
from empathax.planning.compile import Subject
from empathax.planning.model import find_model
from empathax.planning.rows import Rows
from empathax.planning.search import MAX_COMPILES, LargestRows, largest_rows, smallest_topology
from tests.training.tiny import tiny_config


def _subject(rows_per_batch: int, num_rows: int = 0) -> Subject:
    config = tiny_config(mesh__data=1, mesh__fsdp=-1, dpo__rows_per_batch=rows_per_batch, eval__rows_per_batch=64)
    rows = Rows(RowSizes(128, 32, 8, 8), 1.0, 1.0, 1.0, 1.0, num_rows=num_rows)
    return Subject(config, "dpo", find_model("random:tiny-llama"), rows, "a test")


def _attempt(capacity: float):
    """A train step that takes 100 / devices + rows / devices of `capacity`."""

    def attempt(subject, topology):
        rows = subject.config.dpo.rows_per_batch
        total = (100 + rows**1.1 / 100**0.1) / topology.num_devices  # not quite a line
        sizes = {"bytes_per_device": {"total": total}, "hbm_bytes": capacity}
        return {"fits": total <= capacity, "rows_per_batch": rows, "devices": topology.num_devices, **sizes}

    return attempt


@pytest.mark.parametrize("start", [4, 20, 400])
@pytest.mark.parametrize("largest", [4, 36, 100])
def test_the_largest_batch(start, largest):
    capacity = (100 + (largest + 3) ** 1.1 / 100**0.1) / 4
    found, plans = largest_rows(_subject(start), parse_hardware("v5e:2x2"), _attempt(capacity))
    assert found == LargestRows(largest, is_certain=True)
    assert len(plans) <= MAX_COMPILES


def test_nothing_fits():
    found, plans = largest_rows(_subject(16), parse_hardware("v5e:2x2"), _attempt(1))
    assert found == LargestRows(0, is_certain=True)
    assert [plan["rows_per_batch"] for plan in plans] == [16, 8, 4]


def test_no_more_rows_than_the_data_have():
    found, _ = largest_rows(_subject(4, num_rows=39), parse_hardware("v5e:2x2"), _attempt(1e6))
    assert found == LargestRows(36, is_certain=True)
    with pytest.raises(DataError, match=r"the data fill 3 row\(s\)"):
        largest_rows(_subject(4, num_rows=3), parse_hardware("v5e:2x2"), _attempt(1e6))


def test_a_search_that_ends_early_says_so():
    found, plans = largest_rows(_subject(4), parse_hardware("v5e:2x2"), _attempt(1e9))
    assert len(plans) == MAX_COMPILES
    assert found == LargestRows(4 * 2 ** (MAX_COMPILES - 1), is_certain=False)


@pytest.mark.parametrize(("capacity", "found"), [(1e6, "v5e:2x2"), (21.0, "v5e:2x4"), (4.0, "v5e:8x8"), (0.1, None)])
def test_the_smallest_topology(capacity, found):
    topology, plans = smallest_topology(_subject(64), smaller_to_larger("v5e"), _attempt(capacity))
    assert (str(topology) if topology else None) == found
    assert len(plans) <= 3  # of 5 that 64 rows divide over


def test_topologies_that_the_rows_do_not_divide_over_are_left_out():
    subject = _subject(6)
    with pytest.raises(ConfigError, match=r"dpo.rows_per_batch = 6, or the model, divides over no topology"):
        smallest_topology(subject, smaller_to_larger("v5e"), _attempt(1e6))
    tensor = replace(subject, config=tiny_config(mesh__data=1, mesh__fsdp=1, mesh__tensor=-1, dpo__rows_per_batch=6))
    assert str(smallest_topology(tensor, smaller_to_larger("v5e"), _attempt(1e6))[0]) == "v5e:2x2"


def test_topologies_that_the_model_does_not_divide_over_are_left_out():
    """64 wide: 128 chips along fsdp do not divide it, though they divide 128 rows."""
    subject = _subject(128)
    config = tiny_config(mesh__data=1, mesh__fsdp=-1, dpo__rows_per_batch=128, eval__rows_per_batch=128)
    found, plans = smallest_topology(replace(subject, config=config), smaller_to_larger("v5e"), _attempt(0.1))
    assert found is None
    assert max(plan["devices"] for plan in plans) == 64

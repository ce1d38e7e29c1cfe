"""The same losses and gradients on every mesh; the same bits twice on one."""

import functools

import numpy as np
import pytest
from jax.sharding import PartitionSpec

from empathax.training.experiment import assemble
from empathax.training.stages.stage import rows_kinds
from tests.training.ten_steps import MESHES, ten_steps
from tests.training.tiny import tiny_config


@functools.cache
def _on_one_device(objective):
    return ten_steps(objective, (1, 1, 1))[0]


@pytest.mark.parametrize(
    ("objective", "sizes"),  # each objective on every mesh: `python -m tests.training.ten_steps`
    [("dpo", MESHES[0]), ("sft", MESHES[1]), ("dpo", MESHES[2]), ("sft", MESHES[3])],
    ids=str,
)
def test_ten_steps_are_those_of_one_device_and_repeat_bit_by_bit(objective, sizes):
    wanted = _on_one_device(objective)
    first, second = ten_steps(objective, sizes, repeats=2)
    np.testing.assert_allclose(first.losses, wanted.losses, rtol=1e-5)
    np.testing.assert_allclose(first.grad_norms, wanted.grad_norms, rtol=1e-5)
    assert first.losses.tobytes() == second.losses.tobytes()
    assert first.grad_norms.tobytes() == second.grad_norms.tobytes()
    assert first.digest == second.digest
    assert (wanted.losses[5:] < wanted.losses[:5]).all()  # the same batches, after some training


def test_a_run_places_parameters_by_the_rules_of_its_config(tmp_path):
    config = tiny_config(mesh__data=1, mesh__fsdp=-1, mesh__tensor=2, mesh__rules="vocab=", eval__rows_per_batch=4)
    shardings = assemble(config, rows_kinds(config)).model.param_shardings
    assert shardings["embedding"]["kernel"].spec == PartitionSpec(None, "fsdp")
    assert shardings["layers"]["mlp"]["up"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")

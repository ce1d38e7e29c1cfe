"""The same losses and gradients on every mesh; the same bits twice on one."""

import functools

import numpy as np
import pytest

from tests.training.ten_steps import ten_steps

MESHES = [(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)]


@functools.cache
def _on_one_device(objective):
    return ten_steps(objective, (1, 1, 1))[0]


@pytest.mark.parametrize("objective", ["sft", "dpo"])
@pytest.mark.parametrize("sizes", MESHES, ids=lambda sizes: "x".join(map(str, sizes)))
def test_ten_steps_are_those_of_one_device_and_repeat_bit_by_bit(objective, sizes):
    wanted = _on_one_device(objective)
    first, second = ten_steps(objective, sizes, repeats=2)
    np.testing.assert_allclose(first.losses, wanted.losses, rtol=1e-5)
    np.testing.assert_allclose(first.grad_norms, wanted.grad_norms, rtol=1e-5)
    assert first.losses.tobytes() == second.losses.tobytes()
    assert first.grad_norms.tobytes() == second.grad_norms.tobytes()
    assert first.digest == second.digest
    assert len(set(wanted.losses.tolist())) == 10  # it does train

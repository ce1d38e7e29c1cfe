"""The GPU kernels' choice of tiles; what they compute is in test_flash.py."""

import pytest

from empathax.models.attention.gpu import best_tiles


@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_tiles_divide_a_row_and_fit_a_tensor_core(head_dim, itemsize):
    for tile in best_tiles(head_dim, itemsize):
        assert 128 % tile.queries == 0
        assert 128 % tile.keys == 0
        assert min(tile.sizes) >= 16

"""The TPU kernels' choice of blocks; what they compute is in test_flash.py."""

from empathax.models.attention.tpu import block_size


def test_block_sizes_divide_the_row_and_leave_blocks_to_skip():
    assert [block_size(T, 256) for T in (128, 384, 512, 1024, 2048, 4096)] == [128, 128, 128, 256, 512, 512]
    assert block_size(4096, 1024) == 256  # float32 heads of 256 numbers

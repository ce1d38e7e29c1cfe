"""Rope frequencies against hand-computed numbers; parity with transformers is in tests/parity."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from empathax.models.rope import RopeConfig, apply_rope, inverse_frequencies, rope_tables

LLAMA3 = RopeConfig(type="llama3", factor=8.0, original_max_positions=64, low_freq_factor=1.0, high_freq_factor=4.0)


def test_default_and_linear():
    np.testing.assert_allclose(inverse_frequencies(RopeConfig(), 4), [1.0, 0.01], rtol=1e-6)
    np.testing.assert_allclose(inverse_frequencies(RopeConfig(type="linear", factor=4.0), 4), [0.25, 0.0025], rtol=1e-6)


def test_llama3_keeps_fast_planes_divides_slow_ones_and_blends_between():
    # wavelengths 6.3 (< 64 / 4) and 628 (> 64)
    np.testing.assert_allclose(inverse_frequencies(LLAMA3, 4), [1.0, 0.01 / 8], rtol=1e-6)
    # a wavelength of 32: blend (64 / 32 - 1) / (4 - 1) = 1/3
    theta = (32 / (2 * np.pi)) ** 2
    blended = inverse_frequencies(dataclasses.replace(LLAMA3, theta=theta), 4)[1]
    assert blended == pytest.approx(2 * np.pi / 32 * (2 / 3 / 8 + 1 / 3), rel=1e-5)


def test_yarn_between_extrapolation_and_interpolation():
    rope = RopeConfig(type="yarn", factor=4.0, original_max_positions=2048, attention_factor=1.5)
    plain, scaled = inverse_frequencies(RopeConfig(), 32), inverse_frequencies(rope, 32)
    ratio = scaled / plain
    # turns over 2,048 positions: 326 in plane 0 (more than beta_fast 32), 0.06 in the last (less than beta_slow 1)
    assert ratio[0] == pytest.approx(1.0)
    assert ratio[-1] == pytest.approx(0.25)
    assert np.all(np.diff(ratio) <= 1e-6)
    cos, sin = rope_tables(rope, jnp.zeros((1, 1), jnp.int32), 32)
    assert float(cos[0, 0, 0]) == 1.5
    assert float(sin[0, 0, 0]) == 0.0


def test_dynamic_grows_with_the_longest_position_of_the_batch():
    rope = RopeConfig(type="dynamic", factor=2.0, original_max_positions=100)

    def angle(positions):
        cos, sin = rope_tables(rope, jnp.asarray(positions), 4)
        return np.arctan2(sin, cos)[..., 1]

    np.testing.assert_allclose(angle([[10, 99]])[0], [0.1, 0.99], rtol=1e-5)
    # 200 positions: theta times (2 * 200 / 100 - 1) ** (4 / 2) = 9, so this plane turns 3 times slower, in both rows
    stretched = angle([[10, 20], [10, 199]])
    np.testing.assert_allclose(stretched, [[0.1 / 3, 0.2 / 3], [0.1 / 3, 1.99 / 3]], rtol=1e-5)


def test_rotation_depends_on_distance_only_and_keeps_length():
    q, k = np.random.default_rng(0).standard_normal((2, 1, 1, 1, 8)).astype(np.float32)

    def score(i, j):
        rotated = [
            apply_rope(jnp.asarray(x), *rope_tables(RopeConfig(), jnp.full((1, 1), at), 8))
            for x, at in ((q, i), (k, j))
        ]
        assert float(jnp.linalg.norm(rotated[0])) == pytest.approx(float(np.linalg.norm(q)), rel=1e-5)
        return float((rotated[0] * rotated[1]).sum())

    assert score(7, 3) == pytest.approx(score(107, 103), abs=1e-4)
    assert score(7, 3) != pytest.approx(score(8, 3), abs=1e-2)

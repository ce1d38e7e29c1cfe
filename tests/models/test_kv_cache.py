"""Cached decoding against the full forward pass."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathax.models import kv_cache
from empathax.models.architecture.presets import PRESETS, preset
from empathax.models.kv_cache import decode_step, init_cache, prefill, split_layers
from empathax.models.transformer import init_params, logits, project_logits

NUM_PROMPT, NUM_NEW = 12, 7
LENGTHS = np.array([12, 3, 7])
FORWARD = jax.jit(logits, static_argnums=1)
ROWS = np.arange(len(LENGTHS))


def _texts(vocab_size):
    return np.random.default_rng(0).integers(0, vocab_size, (len(LENGTHS), NUM_PROMPT + NUM_NEW))


def _left_padded(texts, padding_id):
    prompts = np.full((len(LENGTHS), NUM_PROMPT), padding_id)
    for row, length in enumerate(LENGTHS):
        prompts[row, NUM_PROMPT - length :] = texts[row, :length]
    return prompts


def _greedy_next(params, config, text):
    T = NUM_PROMPT + NUM_NEW
    padded = np.pad(text, (0, T - len(text)))[None]
    out = FORWARD(params, config, padded, np.arange(T)[None], np.full((1, T), T))
    return int(out[0, len(text) - 1].argmax())


@partial(jax.jit, static_argnums=1, static_argnames=("cache_dtype", "split"))
def _forced_logits(params, config, prompts, texts, cache_dtype=jnp.float32, split=False):
    """Logits [B, steps, V] while the texts are fed token by token after the prompts."""
    step_params = split_layers(params, config, jnp.float32, "cpu") if split else params
    cache = init_cache(config, len(LENGTHS), NUM_PROMPT + NUM_NEW, cache_dtype)
    state = prefill(params, config, prompts, jnp.asarray(LENGTHS), cache)

    def step(state, index):
        hidden, cache = state
        logits_BV = project_logits(step_params, config, hidden)
        return decode_step(step_params, config, texts[ROWS, LENGTHS + index], cache), logits_BV

    return jax.lax.scan(step, state, jnp.arange(NUM_NEW))[1].swapaxes(0, 1)


@pytest.mark.parametrize("name", PRESETS)
def test_cached_logits_equal_the_full_forward_pass(name):
    config = preset(name)
    params, texts = init_params(config, 0), _texts(config.vocab_size)
    T = texts.shape[1]
    full = FORWARD(params, config, texts, np.tile(np.arange(T), (3, 1)), np.full((3, T), T))
    expected = np.asarray(full)[ROWS[:, None], LENGTHS[:, None] - 1 + np.arange(NUM_NEW)]
    forced = _forced_logits(params, config, _left_padded(texts, 0), texts)
    np.testing.assert_allclose(forced, expected, atol=1e-5)


@pytest.mark.parametrize(
    "name", ["tiny-llama", "tiny-qwen2", "tiny-gemma2"]
)  # untied or tied, with biases, with soft-caps
def test_kernels_in_parts_give_the_same_logits(name, monkeypatch):
    monkeypatch.setattr(kv_cache, "_num_parts", lambda num_outputs: 3)  # of lengths that differ
    config = preset(name)
    params, texts = init_params(config, 0), _texts(config.vocab_size)
    split = split_layers(params, config, jnp.float32, "cpu")
    assert len(split["output_parts"]) == len(split["layers"][0]["mlp"]["down"]["parts"]) == 3
    whole, in_parts = (_forced_logits(params, config, _left_padded(texts, 0), texts, split=s) for s in (False, True))
    np.testing.assert_allclose(in_parts, whole, atol=1e-5)


def test_only_float32_kernels_are_split():
    config = preset("tiny-llama")
    split = split_layers(init_params(config, 0), config, jnp.bfloat16, "cpu")
    assert "output_parts" not in split
    assert "kernel" in split["layers"][0]["mlp"]["down"]


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gemma3"])
def test_padding_is_never_seen(name):
    config = preset(name)
    params, texts = init_params(config, 0), _texts(config.vocab_size)
    one, other = (_forced_logits(params, config, _left_padded(texts, padding_id), texts) for padding_id in (0, 300))
    np.testing.assert_array_equal(one, other)


def test_decoding_runs_in_a_while_loop_and_keeps_its_shapes():
    config = preset("tiny-gemma2")
    params, texts = init_params(config, 0), _texts(config.vocab_size)

    @jax.jit
    def generate(params):
        cache = init_cache(config, len(LENGTHS), NUM_PROMPT + NUM_NEW)
        hidden, cache = prefill(params, config, _left_padded(texts, 0), LENGTHS, cache)
        ids = jnp.zeros((len(LENGTHS), NUM_NEW), jnp.int32)

        def body(state):
            index, hidden, cache, ids = state
            next_id = jnp.argmax(project_logits(params, config, hidden), axis=-1).astype(jnp.int32)
            hidden, cache = decode_step(params, config, next_id, cache)
            return index + 1, hidden, cache, ids.at[:, index].set(next_id)

        return jax.lax.while_loop(lambda state: state[0] < NUM_NEW, body, (0, hidden, cache, ids))[2:]

    cache, ids = generate(params)
    assert int(cache.num_filled) == NUM_PROMPT + NUM_NEW
    np.testing.assert_array_equal(cache.next_position_B, LENGTHS + NUM_NEW)
    for row, length in enumerate(LENGTHS):  # greedy by full forward passes
        text = list(texts[row, :length])
        for _ in range(NUM_NEW):
            text.append(_greedy_next(params, config, text))
        assert list(ids[row]) == text[length:]


def test_a_bfloat16_cache_is_close():
    config = preset("tiny-gemma3")
    params, texts = init_params(config, 0), _texts(config.vocab_size)
    assert init_cache(config, 1, 4, jnp.bfloat16).values[0].dtype == jnp.bfloat16
    exact = _forced_logits(params, config, _left_padded(texts, 0), texts)
    rounded = _forced_logits(params, config, _left_padded(texts, 0), texts, cache_dtype=jnp.bfloat16)
    assert 0 < float(jnp.abs(exact - rounded).max()) < 0.1


def test_prompts_longer_than_the_cache():
    config = preset("tiny-llama")
    with pytest.raises(ValueError, match="12 tokens but the cache 5 slots"):
        prefill(init_params(config, 0), config, np.zeros((3, 12), int), LENGTHS, init_cache(config, 3, 5))

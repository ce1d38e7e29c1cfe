"""Cached decoding against the full forward pass."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathax.evaluation.generation.prompt_tree import lay_out_prompts, prefill_tree
from empathax.models import kv_cache
from empathax.models.architecture.presets import PRESETS, preset
from empathax.models.kv_cache import decode_step, split_layers
from empathax.models.transformer import ComputeOptions, init_params, logits, project_logits

NUM_PROMPT, NUM_NEW = 12, 7
LENGTHS = np.array([12, 3, 7])
FORWARD = jax.jit(logits, static_argnums=1)
ROWS = np.arange(len(LENGTHS))


def _texts(vocab_size):
    return np.random.default_rng(0).integers(0, vocab_size, (len(LENGTHS), NUM_PROMPT + NUM_NEW))


def _prompts(texts):
    return lay_out_prompts([text[:length] for text, length in zip(texts, LENGTHS, strict=True)])


def _greedy_next(params, config, text):
    T = NUM_PROMPT + NUM_NEW
    padded = np.pad(text, (0, T - len(text)))[None]
    out = FORWARD(params, config, padded, np.arange(T)[None], np.full((1, T), T))
    return int(out[0, len(text) - 1].argmax())


@partial(jax.jit, static_argnums=1, static_argnames=("dtype", "split"))
def _forced_logits(params, config, prompts, texts, *, dtype=jnp.float32, split=False, padding=0.0):
    """Logits [B, steps, V] while the texts are fed token by token after the prompts; `padding` fills unseen slots."""
    step_params = split_layers(params, config, dtype, "cpu") if split else params
    hidden, cache = prefill_tree(params, config, prompts, NUM_NEW, ComputeOptions(dtype))
    assert cache.values[0].dtype == dtype
    is_filled_B11S = (cache.position_BS >= 0)[:, None, None]
    keys = tuple(jnp.where(is_filled_B11S, keys, padding) for keys in cache.keys)
    values = tuple(jnp.where(is_filled_B11S.swapaxes(2, 3), values, padding) for values in cache.values)
    state = hidden, dataclasses.replace(cache, keys=keys, values=values)

    def step(state, index):
        hidden, cache = state
        logits_BV = project_logits(step_params, config, hidden)
        return decode_step(step_params, config, texts[ROWS, LENGTHS + index], cache, compute_dtype=dtype), logits_BV

    return jax.lax.scan(step, state, jnp.arange(NUM_NEW))[1].swapaxes(0, 1)


@pytest.mark.parametrize("name", PRESETS)
def test_cached_logits_equal_the_full_forward_pass(name):
    config = preset(name)
    params, texts = init_params(config, 0), _texts(config.vocab_size)
    T = texts.shape[1]
    full = FORWARD(params, config, texts, np.tile(np.arange(T), (3, 1)), np.full((3, T), T))
    expected = np.asarray(full)[ROWS[:, None], LENGTHS[:, None] - 1 + np.arange(NUM_NEW)]
    forced = _forced_logits(params, config, _prompts(texts), texts)
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
    whole, in_parts = (_forced_logits(params, config, _prompts(texts), texts, split=s) for s in (False, True))
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
    one, other = (_forced_logits(params, config, _prompts(texts), texts, padding=padding) for padding in (0.0, 300.0))
    np.testing.assert_array_equal(one, other)


def test_decoding_runs_in_a_while_loop_and_keeps_its_shapes():
    config = preset("tiny-gemma2")
    params, texts = init_params(config, 0), _texts(config.vocab_size)

    @jax.jit
    def generate(params, prompts):
        hidden, cache = prefill_tree(params, config, prompts, NUM_NEW)
        ids = jnp.zeros((len(LENGTHS), NUM_NEW), jnp.int32)

        def body(state):
            index, hidden, cache, ids = state
            next_id = jnp.argmax(project_logits(params, config, hidden), axis=-1).astype(jnp.int32)
            hidden, cache = decode_step(params, config, next_id, cache)
            return index + 1, hidden, cache, ids.at[:, index].set(next_id)

        return jax.lax.while_loop(lambda state: state[0] < NUM_NEW, body, (0, hidden, cache, ids))[2:]

    prompts = _prompts(texts)
    cache, ids = generate(params, prompts)
    assert int(cache.num_filled) == prompts.path_BS.shape[1] + NUM_NEW == cache.position_BS.shape[1]
    np.testing.assert_array_equal(cache.next_position_B, LENGTHS + NUM_NEW)
    for row, length in enumerate(LENGTHS):  # greedy by full forward passes
        text = list(texts[row, :length])
        for _ in range(NUM_NEW):
            text.append(_greedy_next(params, config, text))
        assert list(ids[row]) == text[length:]


def test_decoding_in_bfloat16_is_close():
    config = preset("tiny-gemma3")
    params, texts = init_params(config, 0), _texts(config.vocab_size)
    exact = _forced_logits(params, config, _prompts(texts), texts)
    rounded = _forced_logits(params, config, _prompts(texts), texts, dtype=jnp.bfloat16)
    assert 0 < float(jnp.abs(exact - rounded).max()) < 0.1

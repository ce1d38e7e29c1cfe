"""Generation against recomputing everything for every token; stopping; seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from empathax.evaluation.generation.decoding import DecodeOptions, generate
from empathax.evaluation.generation.prompt_tree import lay_out_prompts
from empathax.evaluation.generation.sampling import Sampling
from empathax.models.architecture.presets import preset
from empathax.models.transformer import init_params, logits

NUM_NEW = 10


@pytest.fixture(scope="module")
def model():
    config = preset("tiny-llama")
    return init_params(config, 0), config


def prompts(count=4):
    random = np.random.default_rng(0)
    trunk = random.integers(3, 500, 30).tolist()
    return [trunk[: 7 * (row % 3) + 2] + random.integers(3, 500, row).tolist() for row in range(count)]


def run(model, prompts, row_ids=None, seed=0, sample_ids=None, **changes):
    params, config = model
    row_ids = jnp.arange(len(prompts)) if row_ids is None else jnp.asarray(row_ids)
    options = DecodeOptions(**{"max_new_tokens": NUM_NEW, "stop_ids": (), "platform": "cpu"} | changes)
    layout = lay_out_prompts(prompts)
    return jax.device_get(generate(params, config, layout, row_ids, seed, sample_ids, options=options))


@pytest.mark.parametrize(
    ("name", "penalty"),
    [("tiny-llama", 1.0), ("tiny-llama", 1.3), ("tiny-mistral", 1.0), ("tiny-gemma2", 1.3), ("tiny-gemma3", 1.0)],
)
def test_greedy_equals_recomputing_the_whole_sequence(name, penalty):
    config = preset(name)
    params = init_params(config, 1)
    forward = jax.jit(logits, static_argnums=1)
    out = run((params, config), prompts(), sampling=Sampling(repetition_penalty=penalty))
    for row, prompt in enumerate(prompts()):
        padded = np.zeros((1, 64), np.int32)  # one shape: a token sees no later one
        ids = list(prompt)
        for _ in range(NUM_NEW):
            padded[0, : len(ids)] = ids
            ends = np.full((1, 64), 64)
            scores_BTV = forward(params, config, padded, np.arange(64)[None], ends)
            scores = np.array(scores_BTV[0, len(ids) - 1])
            scores[ids] = np.where(scores[ids] < 0, scores[ids] * penalty, scores[ids] / penalty)
            ids.append(int(scores.argmax()))
        assert out.token_ids_BM[row].tolist() == ids[len(prompt) :]


def test_rows_end_at_their_own_stop_token(model):
    free = run(model, prompts()).token_ids_BM
    stop_ids = (int(free[0, 2]), int(free[1, 5]))
    out = run(model, prompts(), stop_ids=stop_ids)
    for row in range(4):
        hits = np.flatnonzero(np.isin(free[row], stop_ids))
        length = hits[0] + 1 if len(hits) else NUM_NEW
        assert out.lengths_B[row] == length
        assert out.stopped_B[row] == bool(len(hits))
        assert out.token_ids_BM[row].tolist() == [*free[row, :length], *[0] * (NUM_NEW - length)]


def test_one_new_token(model):
    first = run(model, prompts()).token_ids_BM[:, :1]
    np.testing.assert_array_equal(run(model, prompts(), max_new_tokens=1).token_ids_BM, first)


def test_places_that_are_padding_generate_nothing_and_delay_nobody(model):
    out = run(model, prompts(), row_ids=[0, 1, -1, -1])
    assert out.lengths_B.tolist() == [NUM_NEW, NUM_NEW, 0, 0]
    assert not out.token_ids_BM[2:].any()
    stop = int(run(model, prompts()).token_ids_BM[2, 0])
    assert run(model, prompts(), row_ids=[0, 1, -1, -1], stop_ids=(stop,)).lengths_B[2] == 0


def test_sampled_rows_depend_on_seed_and_row_id_only(model):
    sampling = Sampling(temperature=1.0, top_k=40, top_p=0.95)
    out = run(model, prompts(), row_ids=[3, 1, 4, 2], seed=7, sampling=sampling).token_ids_BM
    order = [2, 0, 3, 1]
    shuffled = run(model, [prompts()[i] for i in order], row_ids=[4, 3, 2, 1], seed=7, sampling=sampling)
    np.testing.assert_array_equal(shuffled.token_ids_BM, out[order])
    alone = run(model, prompts()[2:3], row_ids=[4], seed=7, sampling=sampling)
    np.testing.assert_array_equal(alone.token_ids_BM, out[2:3])
    other_seed = run(model, prompts(), row_ids=[3, 1, 4, 2], seed=8, sampling=sampling).token_ids_BM
    assert (other_seed != out).any()


def test_the_same_prompt_is_answered_differently_by_row(model):
    out = run(model, [prompts()[1]] * 4, sampling=Sampling(temperature=1.0)).token_ids_BM
    assert len({tuple(row) for row in out.tolist()}) == 4


def test_samples_depend_on_their_number_only(model):
    sampling = Sampling(temperature=1.0, min_p=0.02, repetition_penalty=1.1)
    same = [prompts()[1]] * 4
    samples = np.array([0, 1, 2, 3], np.int32)
    out = run(model, same, row_ids=[5] * 4, sample_ids=samples, sampling=sampling).token_ids_BM
    assert len({tuple(row) for row in out.tolist()}) == 4
    swapped = run(model, same, row_ids=[5] * 4, sample_ids=samples[::-1], sampling=sampling).token_ids_BM
    np.testing.assert_array_equal(swapped, out[::-1])
    np.testing.assert_array_equal(run(model, same[:1], row_ids=[5], sampling=sampling).token_ids_BM, out[:1])


def test_no_repetition_penalty_leaves_no_trace_in_the_program(model):
    """The mask of seen tokens, [B, V] booleans, is in the program with a penalty only."""
    params, config = model
    layout, rows = lay_out_prompts(prompts()), jnp.arange(4)

    def program(penalty):
        sampling = Sampling(temperature=1.0, repetition_penalty=penalty)
        options = DecodeOptions(NUM_NEW, (), "cpu", sampling)
        return generate.lower(params, config, layout, rows, 0, options=options).as_text()

    mask = f"tensor<4x{config.vocab_size}xi1>"
    scatter = "stablehlo.scatter"
    plain, penalised = program(1.0), program(1.2)
    # the draw itself compares and the cache fills by slices, neither of which scatters
    assert mask in penalised
    assert mask not in plain
    assert penalised.count(scatter) > plain.count(scatter)


def test_another_seed_compiles_nothing(model):
    sampling = Sampling(temperature=0.9, top_k=30, top_p=0.9, min_p=0.05, repetition_penalty=1.2)
    run(model, prompts(), seed=np.int32(0), sampling=sampling)
    before = generate._cache_size()
    run(model, prompts(), seed=np.int32(1), sampling=sampling)
    run(model, prompts()[::-1], row_ids=[7, 8, 9, 10], seed=np.int32(2), sampling=sampling)
    assert generate._cache_size() == before

"""What a token is drawn from, and penalised greedy replies, against transformers' own processors and `generate`."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from empathax.config import Config, EvalOptions
from empathax.evaluation.generation.replies import generate_ids
from empathax.evaluation.generation.sampling import Sampling, candidates, penalise_seen
from empathax.models.weights.export import export_model
from empathax.models.weights.source import resolve_model

ROWS, VOCAB, SEEN = 16, 503, 40
CASES = [
    Sampling(0.7),
    Sampling(1.6),
    Sampling(1.0, top_k=1),
    Sampling(1.0, top_k=40),
    Sampling(1.0, top_p=0.3),
    Sampling(1.0, top_p=0.95),
    Sampling(1.0, min_p=0.02),
    Sampling(1.0, min_p=0.3),
    Sampling(1.0, min_p=1.0),
    Sampling(1.0, repetition_penalty=1.3),
    Sampling(1.0, repetition_penalty=0.8),
    Sampling(0.7, min_p=0.1),
    Sampling(1.5, top_k=60, top_p=0.9),
    Sampling(1.5, top_p=0.9, min_p=0.05),
    Sampling(1.3, top_k=80, min_p=0.05, repetition_penalty=1.2),
    Sampling(1.3, top_k=80, top_p=0.97, min_p=0.03, repetition_penalty=1.2),
    Sampling(0.6, top_k=7, top_p=0.6, min_p=0.4, repetition_penalty=0.7),
]


def random_inputs(seed):
    """(logits, ids of earlier tokens, the same as a mask); logits spread as a language model's do."""
    random = np.random.default_rng(seed)
    logits_BV = (random.normal(size=(ROWS, VOCAB)) * random.uniform(0.5, 4.0, (ROWS, 1))).astype(np.float32)
    ids_BT = random.integers(0, VOCAB, (ROWS, SEEN))
    seen_BV = np.zeros((ROWS, VOCAB), bool)
    np.put_along_axis(seen_BV, ids_BT, True, axis=1)
    return logits_BV, ids_BT, seen_BV


def transformers_probs(sampling, logits_BV, ids_BT):
    """Through the list of processors that `generate` itself builds, in its order."""
    settings = transformers.GenerationConfig(
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p or None,
        repetition_penalty=sampling.repetition_penalty,
    )
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1
        )
    )
    processors = model._get_logits_processor(settings, input_ids_seq_length=SEEN)
    wanted = [sampling.repetition_penalty != 1, sampling.temperature != 1, sampling.top_k > 0, sampling.top_p < 1]
    assert len(processors) == sum([*wanted, sampling.min_p > 0])
    return torch.softmax(processors(torch.tensor(ids_BT), torch.tensor(logits_BV)), dim=-1).numpy()


def our_probs(sampling, logits_BV, seen_BV):
    probs_BK, ids_BK = (None if part is None else np.asarray(part) for part in candidates(logits_BV, sampling, seen_BV))
    probs_BV = probs_BK
    if ids_BK is not None:
        probs_BV = np.zeros_like(logits_BV)
        np.put_along_axis(probs_BV, ids_BK, probs_BK, axis=1)
    return probs_BV / probs_BV.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("sampling", CASES, ids=str)
def test_the_same_tokens_with_the_same_probabilities(sampling):
    for seed in range(3):
        logits_BV, ids_BT, seen_BV = random_inputs(seed)
        expected = transformers_probs(sampling, logits_BV, ids_BT)
        ours = our_probs(sampling, jnp.asarray(logits_BV), jnp.asarray(seen_BV))
        np.testing.assert_array_equal(ours > 0, expected > 0)
        np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=1e-12)


@pytest.mark.parametrize("penalty", [0.7, 1.05, 1.3, 5.0])
def test_the_penalty_is_transformers_own(penalty):
    logits_BV, ids_BT, seen_BV = random_inputs(7)
    logits_BV[:, ::17] = -np.inf  # what an earlier processor has ruled out
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor(ids_BT), torch.tensor(logits_BV)).numpy()
    np.testing.assert_allclose(penalise_seen(logits_BV, seen_BV, penalty), expected, rtol=1e-6)


@pytest.mark.parametrize("penalty", [0.9, 1.2, 2.0])
def test_penalised_greedy_replies_are_those_of_generate(tmp_path, penalty):
    """On a tiny random Llama, prompts of several lengths in one batch, with stop tokens of both sides the same."""
    source = resolve_model("random:tiny-llama")
    params = source.load_params()
    directory = export_model(params, source.config, source.tokenizer(), tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    random = np.random.default_rng(3)
    trunk = random.integers(3, 500, 40).tolist()
    prompts = [trunk[:length] + random.integers(3, 500, length % 4).tolist() for length in (1, 3, 10, 18, 31, 40)]

    def theirs(stop_ids):
        model.generation_config.eos_token_id = stop_ids or None
        return [
            model.generate(
                torch.tensor([prompt]),
                max_new_tokens=40,
                do_sample=False,
                repetition_penalty=penalty,
                pad_token_id=0,
            )[0, len(prompt) :].tolist()
            for prompt in prompts
        ]

    def ours(stop_ids):
        settings = Config(eval=EvalOptions(max_new_tokens=40, generation_batch=4, repetition_penalty=penalty))
        return [ids for _, ids in sorted(generate_ids(params, source.config, stop_ids, prompts, settings))]

    free = theirs([])
    assert ours(()) == free
    stop_ids = [free[0][7], free[2][3], free[4][20]]
    stopped = [ids[:-1] if ids[-1] in stop_ids else ids for ids in theirs(stop_ids)]
    assert ours(tuple(stop_ids)) == stopped
    assert stopped != free

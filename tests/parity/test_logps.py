"""Token and sequence log-probs, DPO numbers, optimizers and schedules against TRL, torch and transformers."""

from __future__ import annotations

import dataclasses
import math

import datasets
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from trl import DPOConfig, DPOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import entropy_from_logits, selective_log_softmax

from empathax.config import Config, DpoOptions, StageOptions
from empathax.data.loader import eval_batches
from empathax.data.packing import pack
from empathax.data.prefix_tree import ScoredSequence
from empathax.models.architecture.hf_config import to_hf_config
from empathax.models.architecture.presets import preset
from empathax.models.transformer import init_params
from empathax.models.weights.names import hf_naming, stored_parameters
from empathax.objectives.logprobs import token_logps
from empathax.objectives.pairs import Pairs
from empathax.objectives.preference import preference_loss
from empathax.training import metrics
from empathax.training.optimizer import make_optimizer, make_schedule
from empathax.training.stages.stage import find_stage

MODEL = dataclasses.replace(preset("tiny-llama"), initializer_range=0.3)
BETA = 0.2


def test_token_log_probs_entropy_and_argmax_equal_trl():
    rng = np.random.default_rng(0)
    hidden, kernel = rng.normal(size=(3, 7, 16)).astype(np.float32), rng.normal(size=(1003, 16)).astype(np.float32)
    target = rng.integers(0, 1003, (3, 7))
    table = torch.from_numpy(hidden) @ torch.from_numpy(kernel).T
    target[0] = table[0].argmax(-1)
    ours = token_logps(hidden, kernel, target.astype(np.int32), vocab_chunk=128)
    np.testing.assert_allclose(
        ours.logps_BM, selective_log_softmax(table, torch.from_numpy(target)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(ours.entropy_BM, entropy_from_logits(table), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(ours.correct_BM, table.argmax(-1).numpy() == target)
    assert ours.log_sum_squares_BM is None
    with_squares = token_logps(hidden, kernel, target.astype(np.int32), vocab_chunk=128, sum_squares=True)
    squares = (2 * table.log_softmax(-1)).logsumexp(-1)
    np.testing.assert_allclose(with_squares.log_sum_squares_BM, squares, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(with_squares.logps_BM, ours.logps_BM)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_equals_trl(label_smoothing):
    rng = np.random.default_rng(1)
    logps = [rng.normal(size=50).astype(np.float32) * 20 for _ in range(4)]
    options = DpoOptions(beta=BETA, label_smoothing=label_smoothing)
    loss_sum, pairs, sums = preference_loss(Pairs(*logps, weight=jnp.ones(50)), options)
    # CPO's loss on the log-ratios is DPO's; TRL's DPOTrainer has no smoothed sigmoid loss any more
    stub = type("Trainer", (), {"alpha": 0.0, "beta": BETA, "label_smoothing": label_smoothing, "loss_type": "sigmoid"})
    stub.accelerator = type("Accelerator", (), {"device": "cpu"})
    chosen, rejected = (torch.from_numpy(logps[i] - logps[i + 2]) for i in (0, 1))
    losses, chosen_rewards, rejected_rewards = CPOTrainer.cpo_loss(stub, chosen, rejected)
    assert float(loss_sum / pairs) == pytest.approx(losses.mean().item(), rel=1e-5)
    assert float(sums["reward_chosen"]) == pytest.approx(chosen_rewards.sum().item(), rel=1e-4)
    assert float(sums["reward_rejected"]) == pytest.approx(rejected_rewards.sum().item(), rel=1e-4)


def _pairs(num_pairs=4):
    rng = np.random.default_rng(2)
    tokens = lambda: rng.integers(3, MODEL.vocab_size, rng.integers(1, 20)).astype(np.int32)  # noqa: E731
    units = []
    for i in range(num_pairs):
        prompt = tokens()
        units.append(tuple(ScoredSequence(prompt, tokens(), 2 * i + j) for j in (0, 1)))
    return units


def _torch_model(params):
    config = transformers.AutoConfig.for_model(**to_hf_config(MODEL))
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
    weights = dict(model.named_parameters())
    with torch.no_grad():
        for stored in stored_parameters(MODEL, hf_naming(set(weights))):
            leaf = params
            for key in stored.path:
                leaf = leaf[key]
            for layer, name in enumerate(stored.names):
                value = np.array(leaf[layer] if stored.stacked else leaf)
                weights[name].copy_(torch.from_numpy(value.T.copy() if stored.transposed else value))
    return model


def _trainer(tmp_path, policy, reference):
    words = {f"t{i}": i for i in range(MODEL.vocab_size)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="t0"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="t2", pad_token="t0")
    options = DPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, beta=BETA, report_to="none", gradient_checkpointing=False
    )
    rows = datasets.Dataset.from_list([{"prompt": "t5 t6", "chosen": " t7", "rejected": " t8"}])
    return DPOTrainer(policy, reference, options, train_dataset=rows, processing_class=tokenizer)


@pytest.mark.filterwarnings("ignore")
def test_dpo_loss_and_every_metric_equal_the_dpo_trainer(tmp_path):
    params, reference = init_params(MODEL, 0), init_params(MODEL, 1)
    trainer = _trainer(tmp_path, _torch_model(params), _torch_model(reference))
    pairs = _pairs()
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    columns = [(pair[0].prompt_ids, pair[0].reply_ids, pair[1].reply_ids) for pair in pairs]
    examples = [{name: ids.tolist() for name, ids in zip(names, column, strict=True)} for column in columns]
    inputs = DataCollatorForPreference(pad_token_id=0)(examples)
    loss = trainer._compute_loss(trainer.model, inputs, return_outputs=False)
    theirs = {name: values[-1] for name, values in trainer._metrics["train"].items()}

    config = Config(dpo=DpoOptions(beta=BETA))
    batch = next(iter(eval_batches(pack([pairs], "tree"), 1)))
    loss_fn = jax.jit(find_stage("dpo").make_loss(MODEL, config))
    ours = metrics.finalize(jax.device_get(loss_fn(params, reference, batch)[2]))
    wanted = {
        "loss": loss.item(),
        "reward_chosen": theirs["rewards/chosen"],
        "reward_rejected": theirs["rewards/rejected"],
        "reward_accuracy": theirs["rewards/accuracies"],
        "reward_margin": theirs["rewards/margins"],
        "logp_chosen": theirs["logps/chosen"],
        "logp_rejected": theirs["logps/rejected"],
        "token_accuracy": theirs["mean_token_accuracy"],
    }
    assert 0 < wanted["reward_accuracy"] < 1
    assert {name: ours[name] for name in wanted} == pytest.approx(wanted, rel=1e-4)
    num_tokens = sum(len(pair[0].reply_ids) for pair in pairs)
    assert ours["perplexity"] == pytest.approx(math.exp(-theirs["logps/chosen"] * len(pairs) / num_tokens), rel=1e-4)


def _torch_updates(optimizer_class, options, value, grads):
    weight = torch.nn.Parameter(torch.from_numpy(value.copy()))
    optimizer = optimizer_class([weight], **options)
    for grad in grads:
        weight.grad = torch.from_numpy(grad.copy())
        optimizer.step()
    return weight.detach().numpy()


@pytest.mark.parametrize("shape", [(130, 140), (40,)])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_optimizers_equal_torch_and_transformers(optimizer, shape):
    rng = np.random.default_rng(3)
    value = rng.normal(size=shape).astype(np.float32)
    grads = [rng.normal(size=shape).astype(np.float32) for _ in range(4)]
    decay = 0.1 if optimizer == "adamw" else 0.0
    options = StageOptions(optimizer=optimizer, learning_rate=0.02, b2=0.95, weight_decay=decay)
    tx, _ = make_optimizer(options, 4)
    params = {"kernel": jnp.asarray(value)}
    state = tx.init(params)
    for grad in grads:
        direction, state = tx.update({"kernel": jnp.asarray(grad)}, state, params)
        params = jax.tree.map(lambda p, d: p - 0.02 * d, params, direction)
    if optimizer == "adamw":
        wanted = _torch_updates(
            torch.optim.AdamW, {"lr": 0.02, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": decay}, value, grads
        )
    else:  # as the Trainer builds it
        kwargs = {"lr": 0.02, "scale_parameter": False, "relative_step": False}
        wanted = _torch_updates(transformers.Adafactor, kwargs, value, grads)
    np.testing.assert_allclose(params["kernel"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("warmup_ratio", [0.0, 0.11, 0.5])
@pytest.mark.parametrize(
    ("schedule", "name", "kwargs", "final"),
    [
        ("constant", "constant_with_warmup", {}, 0.0),
        ("linear", "linear", {}, 0.0),
        ("cosine", "cosine", {}, 0.0),
        ("cosine", "cosine_with_min_lr", {"min_lr_rate": 0.1}, 0.1),
    ],
)
def test_schedules_equal_transformers(schedule, name, kwargs, final, warmup_ratio):
    num_steps, warmup = 20, math.ceil(20 * warmup_ratio)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    theirs = transformers.get_scheduler(name, optimizer, warmup, num_steps, scheduler_specific_kwargs=kwargs)
    options = StageOptions(learning_rate=3e-4, schedule=schedule, warmup_ratio=warmup_ratio, final_lr_ratio=final)
    ours = make_schedule(options, num_steps)
    for step in range(num_steps):
        assert float(ours(step)) == pytest.approx(theirs.get_last_lr()[0], rel=1e-5, abs=1e-10), step
        optimizer.step()
        theirs.step()

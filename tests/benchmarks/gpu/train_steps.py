"""Our train step on the GPU: ESConv DPO as trees, as pairs and reply by reply, bfloat16 compute, float32 master.

Weights are random in the shapes of SmolLM2-135M and Llama-3.2-1B; the reference's log-probs come with the batch. A step
takes the same number of tokens in every packing; what differs is how many pairs they hold. Memory is the compiler's
plan: the step's arguments and its temporaries.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from empathax.config import Config, DpoOptions, ModelOptions
from empathax.data.batch import Batch
from empathax.models.architecture.model_config import ModelConfig
from empathax.models.architecture.presets import preset
from empathax.models.transformer import abstract_params, init_params, logical_axes
from empathax.models.weights.source import resolve_model
from empathax.parallel.mesh import make_mesh
from empathax.parallel.rules import batch_sharding, param_shardings
from empathax.planning.costs import Counts, train_flops
from empathax.training.forward import make_score_step
from empathax.training.optimizer import make_optimizer
from empathax.training.state import TrainState, abstract_state, init_state, state_shardings
from empathax.training.step import make_train_step
from tests.benchmarks.gpu.kernel_profile import kernel_seconds
from tests.benchmarks.gpu.models import llama_1b
from tests.benchmarks.gpu.part import Part, choice_from_argv, compiled_together, guarded
from tests.benchmarks.gpu.prepare import PACKINGS, WORK, read_batches
from tests.benchmarks.results import OURS, measured

EQUAL = "packing_equality"
NUM_STEPS = 1000  # of the schedule
PROFILED_KERNELS = 30


@dataclass(frozen=True)
class Case:
    """One model, packing and way to compute."""

    model: str
    packing: str
    remat: str = "none"
    attention: str = "auto"
    vocab_chunk: int = 8192

    def __str__(self) -> str:
        defaults = {"attention": "auto", "vocab_chunk": 8192}
        extra = [f"{name}={getattr(self, name)}" for name, value in defaults.items() if getattr(self, name) != value]
        return ", ".join([self.model, self.packing, f"remat={self.remat}", *extra])

    @property
    def config(self) -> Config:
        """The run's settings."""
        model = ModelOptions(remat=self.remat, attention=self.attention, vocab_chunk=self.vocab_chunk)
        stage = DpoOptions(learning_rate=1e-6, schedule="constant", warmup_ratio=0.0, reference="precomputed")
        return Config(model=model, dpo=stage)


def cases(quick: bool) -> list[Case]:
    """What is measured."""
    if quick:
        return [Case("tiny", packing) for packing in PACKINGS]
    smol, llama = "SmolLM2-135M", "Llama-3.2-1B"
    return [
        *(Case(smol, packing) for packing in PACKINGS),
        *(Case(llama, packing, "attention") for packing in ("tree", "none")),
    ]


def model_configs(part: Part) -> dict[str, ModelConfig]:
    """The architectures by name."""
    smol = resolve_model(part.folder / "model").config
    tiny = dataclasses.replace(preset("tiny-llama"), vocab_size=smol.vocab_size, max_positions=smol.max_positions)
    return {"SmolLM2-135M": smol, "Llama-3.2-1B": llama_1b(), "tiny": tiny}


class Lab:
    """Models and batches of the part, on a mesh of one device, as empathax.train makes it."""

    def __init__(self, part: Part):
        self.part = part
        self.models = model_configs(part)
        self.mesh = make_mesh(Config().mesh, jax.devices()[:1])
        self.data = {packing: read_batches(part.folder, packing) for packing in PACKINGS}

    def shardings(self, model: ModelConfig) -> TrainState:
        """Where the state lies."""
        params = abstract_params(model)
        tx, _ = make_optimizer(Case("", "").config.dpo, NUM_STEPS)
        return state_shardings(abstract_state(params, tx), param_shardings(self.mesh, params, logical_axes(model)))

    def lower_step(self, case: Case) -> Any:
        """The case's train step, on shapes."""
        model, config = self.models[case.model], case.config
        tx, schedule = make_optimizer(config.dpo, NUM_STEPS)
        shardings = self.shardings(model)
        step = make_train_step("dpo", model, config, tx, schedule, shardings=shardings)
        state = _placed_shapes(abstract_state(abstract_params(model), tx), shardings)
        return step.lower(state, self.abstract_batch(case.packing, num_leading=1))

    def lower_score(self, case: Case) -> Any:
        """The case's score step, on shapes."""
        model = self.models[case.model]
        params = _placed_shapes(abstract_params(model), self.shardings(model).params)
        step = make_score_step(model, case.config.model, mesh=self.mesh)
        return step.lower(params, self.abstract_batch(case.packing, num_leading=0))

    def abstract_batch(self, packing: str, num_leading: int) -> Batch:
        """Shapes of a batch; without its leading dim of micro-batches if `num_leading` is 0."""
        where = batch_sharding(self.mesh, num_leading)
        first = self.data[packing][0][0]
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1 - num_leading :], leaf.dtype, sharding=where), first
        )

    def params(self, case: Case) -> Any:
        """Random weights."""
        model = self.models[case.model]
        return init_params(model, 0, shardings=self.shardings(model).params)

    def batches(self, packing: str, num_leading: int = 1) -> Iterator[Batch]:
        """The batches on the device."""
        where = batch_sharding(self.mesh, num_leading)
        for batch in self.data[packing][0]:
            yield jax.device_put(batch if num_leading else jax.tree.map(lambda leaf: leaf[0], batch), where)


def run(part: Part, which: str) -> None:
    """Compiles the cases together, then measures them one by one; `which` is "all" or "first"."""
    lab, found = Lab(part), cases(part.quick)[: 1 if which == "first" else None]
    scored = [case for case in found if case in found[: len(PACKINGS)]]
    lowerings: dict[Any, Any] = {("step", case): partial(lab.lower_step, case) for case in found}
    if len(scored) > 1:
        lowerings |= {("score", case): partial(lab.lower_score, case) for case in scored}
    programs = compiled_together(lowerings)
    logps = {}
    if len(scored) > 1 and all(("score", case) in programs for case in scored):
        guarded(EQUAL, partial(_compare_packings, lab, scored, programs, logps))
    for case in found:
        if ("step", case) in programs:
            guarded(str(case), partial(_measure, lab, case, programs["step", case], logps.get(case.packing)))


def _compare_packings(lab: Lab, scored: list[Case], programs: dict[Any, Any], logps: dict[str, np.ndarray]) -> None:
    """Log-probs of the replies that several packings scored, against those of the trees; fills `logps`."""
    params = lab.params(scored[0])
    for case in scored:
        values: dict[int, float] = {}
        for batch in lab.batches(case.packing, num_leading=0):
            scores = jax.device_get(programs["score", case](params, batch))
            used = scores.sequence_id_BS >= 0
            values |= dict(zip(scores.sequence_id_BS[used].tolist(), scores.logps_BS[used].tolist(), strict=True))
        logps[case.packing] = np.full(1 + max(values), np.nan, np.float32)
        logps[case.packing][list(values)] = list(values.values())
    trees = logps["tree"]
    for packing in PACKINGS[1:]:
        size = min(len(trees), len(logps[packing]))
        differences = np.abs(trees[:size] - logps[packing][:size])
        differences = differences[~np.isnan(differences)]
        lengths = f"{len(differences)} replies, log-prob {np.nanmean(trees):.1f} on average"
        lab.part.say(EQUAL, f"trees against {packing}: largest difference of {lengths}", differences.max(), "nats")


def _measure(lab: Lab, case: Case, step: Any, ref_logps: np.ndarray | None) -> None:
    part, amounts = lab.part, lab.data[case.packing][1]
    tx, _ = make_optimizer(case.config.dpo, NUM_STEPS)
    model = lab.models[case.model]
    state = init_state(lab.params(case), tx, lab.shardings(model))
    batches = [_with_reference(batch, ref_logps) for batch in lab.batches(case.packing)]
    seconds, losses = [], []
    for batch in batches:
        jax.block_until_ready(batch)
        started = time.perf_counter()
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
        seconds.append(time.perf_counter() - started)
    print(f"{case}: losses {losses}", flush=True)
    _report(part, case, step, seconds, amounts, model)
    if case.packing == "tree" and jax.default_backend() == "gpu":
        _profile(part, case, step, state, batches[-1])


def _report(
    part: Part, case: Case, step: Any, seconds: list[float], amounts: dict[str, np.ndarray], model: ModelConfig
) -> None:
    times = np.array(seconds[1:])
    rates = {
        "pairs per second": ("pairs/s", amounts["pairs"][1:] / times),
        "tokens per second": ("tokens/s", amounts["tokens"][1:] / times),
        "useful arithmetic": ("TFLOP/s", np.array([_flops(model, amounts, n) for n in range(1, len(seconds))]) / times),
    }
    part.add(measured(WORK, OURS, f"{case}: step", "s", times.tolist()))
    for metric, (unit, samples) in rates.items():
        samples = samples / 1e12 if unit == "TFLOP/s" else samples
        part.add(measured(WORK, OURS, f"{case}: {metric}", unit, samples.tolist()))
    part.say(WORK, f"{case}: pairs a step", statistics.median(amounts["pairs"][1:].tolist()), "pairs")
    memory = step.memory_analysis()
    planned = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    part.say(WORK, f"{case}: memory, planned", planned / 1e9, "GB")


def _flops(model: ModelConfig, amounts: dict[str, np.ndarray], step: int) -> float:
    names = ("tokens", "trained", "visible_pairs")
    return float(train_flops(model, Counts(**{name: int(amounts[name][step]) for name in names})))


def _profile(part: Part, case: Case, step: Any, state: TrainState, batch: Batch) -> None:
    """Prints the kernels of one step that take longest."""

    def once() -> None:
        jax.block_until_ready(step(state, batch))

    kernels = kernel_seconds(once)
    total = sum(seconds for _, seconds, _ in kernels)
    print(f"PROFILE {case}: {1e3 * total:.1f} ms on the device in {len(kernels)} kernels")
    for name, seconds, count in kernels[:PROFILED_KERNELS]:
        print(f"  {1e3 * seconds:8.2f} ms {count:6d} x {name[:110]}")


def _with_reference(batch: Batch, ref_logps: np.ndarray | None) -> Batch:
    if ref_logps is None:
        return batch
    ids = np.asarray(batch.sequence_id_BS)
    values = np.where(ids >= 0, ref_logps[ids], 0.0).astype(np.float32)
    return dataclasses.replace(batch, ref_logps_BS=jax.device_put(values, batch.ref_logps_BS.sharding))


def _placed_shapes(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings)


if __name__ == "__main__":
    run(*choice_from_argv(__doc__, ("all", "first")))

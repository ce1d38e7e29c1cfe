"""A stage that is not in the package: preference training on replies that the model writes during the run.

Two replies to each prompt are sampled from the model as it is before the step; the one with more different tokens is
chosen. The batches depend on the state, the loss and the reference are those of stage dpo.
"""

import dataclasses

import jax
import numpy as np

from empathax.data.loader import eval_batches
from empathax.data.packing import RowSizes, pack
from empathax.data.prefix_tree import ScoredSequence
from empathax.evaluation.generation.replies import generate_ids
from empathax.parallel.processes import put_batch
from empathax.parallel.rules import batch_sharding
from empathax.training.stages.dpo import Dpo

PROMPTS_A_STEP = 2
SIZES = RowSizes(tokens=1280, trained=64, sequences=8, pairs=8)


class OnPolicy(Dpo):
    name = "on_policy"
    label = "on-policy"

    def batches(self, experiment, reference, start, stop, state):
        examples = experiment.datasets[self.name].train_examples
        for step in range(start, stop):
            places = np.arange(PROMPTS_A_STEP * step, PROMPTS_A_STEP * (step + 1)) % len(examples)
            pairs = self._sampled_pairs(experiment, state().params, [examples[place] for place in places], step)
            rows = dataclasses.replace(pack([[pair] for pair in pairs], "tree", SIZES.tokens), sizes=SIZES)
            (batch,) = eval_batches(rows, 1)
            batch = jax.tree.map(lambda leaf: leaf[None], batch)
            yield put_batch(batch, batch_sharding(experiment.model.mesh, num_leading=1))

    def _sampled_pairs(self, experiment, params, examples, step):
        sampling = dataclasses.replace(experiment.config.eval, num_samples=2, temperature=1.0, max_new_tokens=8)
        config = dataclasses.replace(experiment.config, eval=sampling, seed=step)
        model, stop_ids = experiment.model, experiment.datasets[self.name].stop_token_ids
        prompts = [example.prompt_ids.tolist() for example in examples]
        replies = dict(generate_ids(params, model.source.config, stop_ids, prompts, config, mesh=model.mesh))
        pairs = []
        for number, example in enumerate(examples):
            ranked = sorted((replies[2 * number], replies[2 * number + 1]), key=lambda ids: -len(set(ids)))
            pairs.append(
                tuple(
                    ScoredSequence(example.prompt_ids, np.array([*ids, stop_ids[0]], np.int32), 2 * number + place)
                    for place, ids in enumerate(ranked)
                )
            )
        return pairs


STAGE = OnPolicy()

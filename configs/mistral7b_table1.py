"""Mistral-7B's column of the DBT paper's Table 1 on ESConv: base, +SFT, +DPO, +SFT+DPO on the test split.

Command:  python -m empathax.train --config=configs/mistral7b_table1.py --workdir=runs/mistral7b_table1
              --config.eval.levels_path=LEVELS (one line)
          LEVELS: python -m empathax.train_classifier --task=levels --data=ESCONV --out=LEVELS
Hardware: 8 x H100 80 GB, or a TPU v5p-16 and larger (fsdp takes every device there is).
Expected: not reproduced here yet. The paper's +SFT+DPO, B-4 / R-L / Dist / DBT metric: 0.12 / 14.25 / 33.65 / 0.0508.
"""

import ml_collections

from empathax.config.recipes import TABLE_1, as_table_1, dbt_paper


def get_config() -> ml_collections.ConfigDict:
    recipe = dbt_paper("Mistral-7B on ESConv", "mistralai/Mistral-7B-Instruct-v0.2", stages=("sft", "dpo"))
    config = as_table_1(recipe, "mistral7b")
    config.sft.num_epochs = 1.0  # the paper's one epoch for Mistral on ESConv
    return config


def get_sweep() -> dict[str, dict[str, object]]:
    return TABLE_1

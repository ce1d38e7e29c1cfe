"""Llama-3-8B's column of the DBT paper's Table 1 on ESConv: base, +SFT, +DPO, +SFT+DPO on the test split.

Command:  python -m empathax.train --config=configs/llama8b_table1.py --workdir=runs/llama8b_table1
              --config.eval.levels_path=LEVELS (one line)
          LEVELS: python -m empathax.train_classifier --task=levels --data=ESCONV --out=LEVELS
Hardware: 8 x H100 80 GB, or a TPU v5p-16 and larger (fsdp takes every device there is).
Expected: not reproduced here yet. The paper's +SFT+DPO, B-4 / R-L / Dist / DBT metric: 0.38 / 13.62 / 33.70 / 0.0205.
"""

import ml_collections

from empathax.config.recipes import TABLE_1, as_table_1, dbt_paper


def get_config() -> ml_collections.ConfigDict:
    recipe = dbt_paper("Llama-3-8B on ESConv", "meta-llama/Meta-Llama-3-8B-Instruct", stages=("sft", "dpo"))
    return as_table_1(recipe, "llama8b")


def get_sweep() -> dict[str, dict[str, object]]:
    return TABLE_1

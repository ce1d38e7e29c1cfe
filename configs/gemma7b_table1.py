"""Gemma-7B's column of the DBT paper's Table 1 on ESConv: base, +SFT, +DPO, +SFT+DPO on the test split.

Command:  python -m empathax.train --config=configs/gemma7b_table1.py --workdir=runs/gemma7b_table1
              --config.eval.levels_path=LEVELS (one line)
          LEVELS: python -m empathax.train_classifier --task=levels --data=ESCONV --out=LEVELS
Hardware: 8 x H100 80 GB, or a TPU v5p-16 and larger (fsdp takes every device there is).
Expected: not reproduced here yet. The paper's +SFT+DPO, B-4 / R-L / Dist / DBT metric: 0.40 / 5.85 / 12.80 / 0.0175.
"""

import ml_collections

from empathax.config.recipes import TABLE_1, as_table_1, dbt_paper


def get_config() -> ml_collections.ConfigDict:
    return as_table_1(dbt_paper("Gemma-7B on ESConv", "google/gemma-7b-it", stages=("sft", "dpo")), "gemma7b")


def get_sweep() -> dict[str, dict[str, object]]:
    return TABLE_1

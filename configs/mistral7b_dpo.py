"""Mistral-7B on ESConv: DPO, the recipe of the DBT paper.

Command:  python -m empathax.train --config=configs/mistral7b_dpo.py --workdir=runs/mistral7b_dpo
Hardware: 8 x H100 80 GB, or a TPU v5p-16 and larger (fsdp takes every device there is).
Expected: not reproduced here yet. The paper's Table 1:
          B-4 / R-L / Dist / DBT metric 0.06 / 8.10 / 6.75 / 0.2735 for this row.
"""

import ml_collections

from empathax.config.recipes import dbt_paper


def get_config() -> ml_collections.ConfigDict:
    return dbt_paper("mistral7b_dpo", "mistralai/Mistral-7B-Instruct-v0.2", stages=("dpo",))

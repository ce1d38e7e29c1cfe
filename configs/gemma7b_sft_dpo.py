"""Gemma-7B on ESConv: SFT, then DPO, the recipe of the DBT paper.

Command:  python -m empathax.train --config=configs/gemma7b_sft_dpo.py --workdir=runs/gemma7b_sft_dpo
Hardware: 8 x H100 80 GB, or a TPU v5p-16 and larger (fsdp takes every device there is).
Expected: not reproduced here yet. The paper's Table 1:
          B-4 / R-L / Dist / DBT metric 0.40 / 5.85 / 12.80 / 0.0175 for this row.
"""

import ml_collections

from empathax.config.recipes import dbt_paper


def get_config() -> ml_collections.ConfigDict:
    return dbt_paper("gemma7b_sft_dpo", "google/gemma-7b-it", stages=("sft", "dpo"))

"""Llama-3-8B on ESConv: SFT, the recipe of the DBT paper.

Command:  python -m empathax.train --config=configs/llama8b_sft.py --workdir=runs/llama8b_sft
Hardware: 8 x H100 80 GB, or a TPU v5p-16 and larger (fsdp takes every device there is).
Expected: not reproduced here yet. The paper's Table 1:
          B-4 / R-L / Dist / DBT metric 0.29 / 13.40 / 33.40 / 0.0255 for this row.
"""

import ml_collections

from empathax.config.recipes import dbt_paper


def get_config() -> ml_collections.ConfigDict:
    return dbt_paper("llama8b_sft", "meta-llama/Meta-Llama-3-8B-Instruct", stages=("sft",))

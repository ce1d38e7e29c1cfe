"""Mistral-7B on ESConv: SFT, the recipe of the DBT paper.

Command:  python -m empathax.train --config=configs/mistral7b_sft.py --workdir=runs/mistral7b_sft
Hardware: 8 x H100 80 GB, or a TPU v5p-16 and larger (fsdp takes every device there is).
Expected: not reproduced here yet. The paper's Table 1:
          B-4 / R-L / Dist / DBT metric 0.11 / 14.30 / 33.40 / 0.0672 for this row.
"""

import ml_collections

from empathax.config.recipes import dbt_paper


def get_config() -> ml_collections.ConfigDict:
    config = dbt_paper("mistral7b_sft", "mistralai/Mistral-7B-Instruct-v0.2", stages=("sft",))
    config.sft.num_epochs = 1.0  # the paper's one epoch for Mistral on ESConv
    return config

"""Llama-3-8B on ESConv: DPO, the recipe of the DBT paper in steps of 32 rows of 2,048 tokens.

Command:  python -m empathax.train --config=configs/llama8b_dpo.py --workdir=runs/llama8b_dpo
Hardware: TPU v5e-16 (v5e:4x4) and larger, 8 x H100 80 GB (fsdp takes every device there is); bytes a device for these
          and others, compiled without them: docs/plan.md.
Expected: not reproduced here yet. The paper's Table 1:
          B-4 / R-L / Dist / DBT metric 0.07 / 10.55 / 12.85 / 0.2087 for this row.
"""

import ml_collections

from empathax.config.recipes import dbt_paper, on_a_slice


def get_config() -> ml_collections.ConfigDict:
    config = dbt_paper("llama8b_dpo", "meta-llama/Meta-Llama-3-8B-Instruct", stages=("dpo",))
    config.dpo.first_moment_dtype = "bfloat16"  # leaves a v5e:4x4 room: 0.9 GiB a chip (docs/scale.md, Memory)
    return on_a_slice(config, rows_per_batch=32)

"""Llama-3-70B on ESConv: DPO by the DBT paper's recipe, which the paper has for 7B and 8B models only.

Command:  python -m empathax.train --config=configs/llama70b_dpo.py --workdir=runs/llama70b_dpo
Hardware: TPU v5p-128 (v5p:4x4x4, 64 chips) or more; bytes a chip, compiled without them: docs/plan.md.
Expected: not run yet.
"""

import ml_collections

from empathax.config.recipes import dbt_paper, on_a_slice


def get_config() -> ml_collections.ConfigDict:
    config = dbt_paper("llama70b_dpo", "meta-llama/Meta-Llama-3-70B-Instruct", stages=("dpo",))
    config.mesh.tensor = 2  # XLA gathers over all 64 chips of a cube by sums: 3.5 times the traffic (docs/plan.md)
    return on_a_slice(config, rows_per_batch=64)

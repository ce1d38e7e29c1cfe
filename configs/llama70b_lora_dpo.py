"""Llama-3-70B on ESConv: DPO of a LoRA adapter, as the DBT paper trains its 7B and 8B models.

Command:  python -m empathax.train --config=configs/llama70b_lora_dpo.py --workdir=runs/llama70b_lora_dpo
Hardware: the frozen weights are 141 GB in bfloat16, split over all devices; what a device holds of a step:
          python -m empathax.plan --config=configs/llama70b_lora_dpo.py --topology=h100:8
          64 rows of 2,048 tokens on v5p:4x4x4 take 9.5 GiB a chip, compiled without them (docs/plan.md).
Expected: not run yet.
"""

import ml_collections

from empathax.config.recipes import dbt_paper, with_lora


def get_config() -> ml_collections.ConfigDict:
    config = dbt_paper("llama70b_lora_dpo", "meta-llama/Meta-Llama-3-70B-Instruct", stages=("dpo",))
    config.model.param_dtype = "bfloat16"  # of the frozen base; adapters are float32
    config.mesh.tensor = 2  # as llama70b_dpo
    return with_lora(config)

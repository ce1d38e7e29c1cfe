"""Llama-3-70B on ESConv: DPO of a LoRA adapter, as the DBT paper trains its 7B and 8B models.

Command:  python -m empathax.train --config=configs/llama70b_lora_dpo.py --workdir=runs/llama70b_lora_dpo
Hardware: one node of 8 GPUs with 80 GB, or a TPU v5p-16 (v5p:2x2x2); bytes a device, compiled without them:
          docs/adapters.md.
Expected: not run yet.
"""

import ml_collections

from empathax.recipes import dbt_paper, with_lora


def get_config() -> ml_collections.ConfigDict:
    config = dbt_paper("llama70b_lora_dpo", "meta-llama/Meta-Llama-3-70B-Instruct", stages=("dpo",))
    config.model.param_dtype = "bfloat16"  # of the frozen base; adapters are float32
    return with_lora(config)

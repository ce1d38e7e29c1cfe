"""SmolLM2-135M-Instruct on ESConv: DPO of a LoRA adapter.

Command:  python -m empathax.train --config=configs/smollm2_lora_dpo.py --workdir=runs/lora_dpo
              --config.data.path=PATH (one line)
          PATH: a folder with ESConv's train, valid and test .jsonl, or upstream's ESConv.json; left out, the hub copy.
Hardware: 2 CPU cores and 4 GB of memory.
Expected: memory beside full training: docs/adapters.md; not run to its end.
"""

import ml_collections

from empathax.config.recipes import smollm2_esconv, with_lora


def get_config() -> ml_collections.ConfigDict:
    return with_lora(smollm2_esconv("smollm2_lora_dpo", stages=("dpo",)))

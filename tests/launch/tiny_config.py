"""Two SFT steps of the tiny run, a row for each of two processes: the smallest real run."""

import ml_collections

from tests.training.tiny import tiny_settings


def get_config() -> ml_collections.ConfigDict:
    config = tiny_settings()
    config.stages = ("sft",)
    config.eval.num_replies = 0
    config.eval.rows_per_batch = 2
    config.tracking.tensorboard = False
    config.sft.max_steps = 2
    config.sft.rows_per_batch = 2
    return config

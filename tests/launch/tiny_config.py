"""Two SFT steps of a random model of a few thousand parameters on packaged dialogues: the smallest real run."""

import ml_collections

from empathax.config import default_config


def get_config() -> ml_collections.ConfigDict:
    config = default_config()
    config.name = "tiny"
    config.stages = ("sft",)
    config.model.path = "random:tiny-llama"
    config.data.path = "samples"
    config.data.max_train_dialogues = 4
    config.data.max_eval_dialogues = 2
    config.data.max_length = 4096
    config.data.max_dropped_fraction = 0.5
    config.mesh.fsdp = 1
    config.mesh.data = -1
    config.eval.num_replies = 0
    config.eval.max_new_tokens = 2
    config.tracking.progress = False
    config.tracking.tensorboard = False
    config.sft.max_steps = 2
    config.sft.rows_per_batch = 2  # one for each of two processes
    config.eval.rows_per_batch = 2
    return config

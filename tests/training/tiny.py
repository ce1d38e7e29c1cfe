"""A run small enough for a test: a random model of a few thousand parameters on four packaged dialogues."""

from ml_collections import ConfigDict

from empathax.config import Config, default_config, from_config_dict

OPTIMIZED = {"XLA_FLAGS": ""}  # environment of longer runs: `make test` leaves LLVM's optimizations out


def tiny_settings() -> ConfigDict:
    """The model, the data and nothing that takes time."""
    config = default_config()
    config.name = "tiny"
    config.model.path = "random:tiny-llama"
    config.data.path = "samples"
    config.data.max_train_dialogues = 4
    config.data.max_eval_dialogues = 2
    config.data.max_length = 4096
    config.data.max_dropped_fraction = 0.5
    config.mesh.fsdp = 1
    config.mesh.data = -1
    config.eval.num_replies = 1
    config.eval.max_new_tokens = 4
    config.tracking.progress = False
    return config


def tiny_config(**changes: object) -> Config:
    """SFT, then DPO, three epochs each, a checkpoint every other step; `changes` are dotted names with __ for dots."""
    config = tiny_settings()
    config.checkpoint.every_steps = 2
    for stage in (config.sft, config.dpo):
        stage.num_epochs = 3.0
        stage.learning_rate = 1e-3
    for name, value in changes.items():
        target, keys = config, name.split("__")
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value
    return from_config_dict(config)

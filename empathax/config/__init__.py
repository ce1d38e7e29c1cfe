"""The settings of a run: what may be set, how it is read, and what does not fit together."""

from empathax.config.options import (
    CheckpointOptions,
    Config,
    DataOptions,
    DpoOptions,
    EvalOptions,
    LoraOptions,
    MeshOptions,
    ModelOptions,
    SftOptions,
    StageOptions,
    TrackingOptions,
)
from empathax.config.read import default_config, from_config_dict, to_dict

__all__ = [
    "CheckpointOptions",
    "Config",
    "DataOptions",
    "DpoOptions",
    "EvalOptions",
    "LoraOptions",
    "MeshOptions",
    "ModelOptions",
    "SftOptions",
    "StageOptions",
    "TrackingOptions",
    "default_config",
    "from_config_dict",
    "to_dict",
]

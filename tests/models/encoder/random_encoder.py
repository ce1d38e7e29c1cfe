"""Encoders with random parameters."""

import jax
from flax import nnx

from empathax.models.encoder.encoder import Encoder


def init_encoder(config, seed):
    """Parameters as `Encoder` declares them."""
    return nnx.to_pure_dict(nnx.state(Encoder(config, rngs=nnx.Rngs(jax.random.key(seed))), nnx.Param))

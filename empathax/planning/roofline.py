"""The least time a step can take: its arithmetic, memory traffic and network traffic at the hardware's rates."""

from __future__ import annotations

from dataclasses import dataclass

from empathax.hardware import Topology
from empathax.models.model_config import ModelConfig
from empathax.planning.flops import Counts, forward_parts


@dataclass(frozen=True)
class Roofline:
    """Seconds of one run of a function."""

    compute: float
    memory: float
    network: float

    @property
    def shortest(self) -> float:
        """If all three overlap."""
        return max(self.compute, self.memory, self.network)

    @property
    def longest(self) -> float:
        """If they do not overlap at all."""
        return self.compute + self.memory + self.network


def roofline(
    topology: Topology,
    hardware_flops: float,
    kept_bytes: int,
    temporary_bytes: int,
    sent_bytes: int,
    between_bytes: int = 0,
    read_again_bytes: int = 0,
) -> Roofline | None:
    """The estimate of a function by the bytes of one device (report.ASSUMPTIONS); None where rates are not known.

    `kept_bytes`, arguments and results, are moved once, temporaries and what collectives bring are written and read;
    `read_again_bytes` are read once more. `between_bytes` go from TPU slice to slice, or from GPU node to node,
    `sent_bytes` all other ways.
    """
    kind = topology.kind
    if not kind.peak_flops or (between_bytes and not kind.network_bandwidth):
        return None
    traffic = kept_bytes + 2 * (temporary_bytes + sent_bytes + between_bytes) + read_again_bytes
    network = sent_bytes / kind.link_bandwidth
    if between_bytes:
        network = max(network, between_bytes / kind.network_bandwidth)  # cables of their own
    return Roofline(
        compute=hardware_flops / topology.num_devices / kind.peak_flops,
        memory=traffic / kind.memory_bandwidth,
        network=network,
    )


def train_hardware_flops(config: ModelConfig, counts: Counts, remat: str, with_reference: bool) -> float:
    """What a training step computes over `counts`, recomputation included.

    The vocabulary's logits and attention's scores are always computed again in the backward pass; with remat "full" and
    "offload" so is every layer, with "attention" all of it but attention. A resident reference is one more forward
    pass.
    """
    layers, attention, vocabulary = forward_parts(config, counts)
    layers_again = remat in ("full", "offload", "attention")
    attention_again = remat in ("full", "offload")
    return (
        layers * (3 + layers_again)
        + attention * (3.5 + attention_again)
        + vocabulary * 4
        + (layers + attention + vocabulary) * with_reference
    )

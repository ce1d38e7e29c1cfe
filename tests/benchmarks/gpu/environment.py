"""The card, the versions, and the rate of dense matrix products: what everything else is measured by."""

from __future__ import annotations

import importlib.metadata
import subprocess

import jax
import jax.numpy as jnp

from tests.benchmarks.gpu.part import Part, part_from_argv, seconds_per_call
from tests.benchmarks.results import measured

PACKAGES = ("jax", "jaxlib", "flax", "optax", "torch", "transformers", "trl", "accelerate")
DENSE_BF16 = "dense matrix product, bfloat16"


def run(part: Part) -> None:
    """Prints versions; measures products of n x n random matrices."""
    versions = {name: _version(name) for name in PACKAGES}
    print(f"device: {part.device}; {', '.join(f'{name} {version}' for name, version in versions.items())}")
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm", "--format=csv,noheader"]
    if jax.default_backend() == "gpu":
        print(subprocess.run(query, capture_output=True, text=True).stdout.strip())
    n = 256 if part.quick else 8192
    for title, dtype, precision in (
        (DENSE_BF16, jnp.bfloat16, "default"),
        ("dense matrix product, float32 (TF32)", jnp.float32, "default"),
        ("dense matrix product, float32 (all bits)", jnp.float32, "highest"),
    ):
        a, b = (jax.random.normal(key, (n, n), dtype) for key in jax.random.split(jax.random.key(0)))
        product = jax.jit(lambda a, b, precision=precision: jnp.matmul(a, b, precision=precision))
        seconds = seconds_per_call(product, a, b)
        rates = [2 * n**3 / value / 1e12 for value in seconds]
        part.add(measured("dense_rate", "jax", f"{title}, {n} x {n}", "TFLOP/s", rates))


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


if __name__ == "__main__":
    run(part_from_argv(__doc__))

"""Sums of float32 values without rounding: no order, batch or mesh shows in the result."""

from __future__ import annotations

import operator
from fractions import Fraction

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

_LOWEST = -1100  # exponents below vanish: the smallest float64 is 2**-1074
_NUM_EXPONENTS = 1164
_MANTISSA_BITS = 24
_LIMB_BITS = 8  # three limbs a mantissa: 2**23 values of one exponent fit into an int32


@flax.struct.dataclass
class ExactSum:
    """Integer mantissas added up by exponent, as in Kulisch's accumulator. Holds up to 8 million values."""

    limbs_EL: Int[Array, "E L"]
    num_values: Int[Array, ""]

    def merge(self, other: ExactSum) -> ExactSum:
        """The sum of both."""
        return jax.tree.map(operator.add, self, other)

    def total(self) -> Fraction:
        """The sum itself. On the host."""
        limbs_EL = np.asarray(jax.device_get(self.limbs_EL))
        used = [axis.tolist() for axis in np.nonzero(limbs_EL)]
        shifted = sum(int(limbs_EL[row, limb]) << (row + _LIMB_BITS * limb) for row, limb in zip(*used, strict=True))
        return Fraction(shifted, 1 << (_MANTISSA_BITS - _LOWEST))

    def mean(self) -> float:
        """The total over the number of values, rounded once; 0 of no values. On the host."""
        return float(self.total() / max(int(self.num_values), 1))

    def percent(self) -> float:
        """The mean, x100."""
        return 100.0 * self.mean()


def exact_sum(
    values_B: Float[Array, " B"], counted_B: Bool[Array, " B"], exponents_B: Int[Array, " B"] | int = 0
) -> ExactSum:
    """Sums values_B * 2**exponents_B where `counted_B`; the values are >= 0 and below 2**63."""
    mantissas_B, own_B = jnp.frexp(jnp.where(counted_B, values_B, 0.0).astype(jnp.float32))
    whole_B = (mantissas_B * (1 << _MANTISSA_BITS)).astype(jnp.int32)
    places_B = own_B + exponents_B - _LOWEST
    whole_B = jnp.where(places_B >= 0, whole_B, 0)
    shifts_L = jnp.arange(0, _MANTISSA_BITS, _LIMB_BITS)
    limbs_BL = (whole_B[:, None] >> shifts_L) & ((1 << _LIMB_BITS) - 1)
    empty_EL = jnp.zeros((_NUM_EXPONENTS, shifts_L.size), jnp.int32)
    limbs_EL = empty_EL.at[jnp.clip(places_B, 0, _NUM_EXPONENTS - 1)].add(limbs_BL)
    return ExactSum(limbs_EL, jnp.sum(counted_B, dtype=jnp.int32))

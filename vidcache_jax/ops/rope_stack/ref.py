"""The definition."""

import jax
from jaxtyping import Array, Float, Int

from vidcache_jax.ops.rope import rotate


def rotate_stack(
    x: Float[Array, "L B N S H"], positions: Int[Array, "*L #B G S 3"]
) -> Float[Array, "L B N S H"]:
    """`rope.rotate` of each layer."""
    # One after the other, so that the angles of one layer are all that there is beside the result.
    return jax.lax.map(lambda layer: rotate(*layer), (x, positions))

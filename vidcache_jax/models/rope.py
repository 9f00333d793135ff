"""3-D rotary position embedding from integer positions: no table, no length limit.

Wan rotates adjacent channel pairs. Of the c = H/2 pairs, c - 2 (c // 3) turn with the frame
number, c // 3 with the row, c // 3 with the column (22, 21, 21 at H = 128); pair i of an axis
with n pairs turns by ``position * 10000^(-i/n)`` radians (Wan ``model.py``: ``rope_params``).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_SPLIT_BITS = 10


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Rotated pairs of the frame, row and column axis."""
    pairs = head_dim // 2
    return pairs - 2 * (pairs // 3), pairs // 3, pairs // 3


def integer_angles(
    index: Int[Array, "*shape"], frequencies: Float[np.ndarray, " n"]
) -> Float[Array, "*shape n"]:
    """``index * frequency`` radians modulo 2 pi, exact to about 1e-6 for any int32 index.

    A float32 product is already wrong in the third digit at frame 60,000. Turns modulo 1 are
    what unsigned 32-bit integers wrap to, so the product is taken there:
    ``index * f = (index >> 10) * (1024 f) + (index & 1023) * f``, both factors prepared as
    fixed-point fractions of a turn in float64. The split keeps the factors' rounding
    (2^-33 turns each) from being multiplied by more than the larger part.
    """
    turns = np.asarray(frequencies, np.float64) / (2 * np.pi)

    def fixed_point(fraction):
        return np.round((fraction % 1.0) * 2.0**32).astype(np.uint64).astype(np.uint32)

    index = jnp.asarray(index, jnp.int32)[..., None]
    low = (index & (2**_SPLIT_BITS - 1)).astype(jnp.uint32)
    high = (index >> _SPLIT_BITS).astype(jnp.uint32)
    axes = (1,) * (index.ndim - 1) + (-1,)
    fine = jnp.asarray(fixed_point(turns)).reshape(axes)
    coarse = jnp.asarray(fixed_point(turns * 2**_SPLIT_BITS)).reshape(axes)
    phase = jax.lax.bitcast_convert_type(low * fine + high * coarse, jnp.int32)
    return phase.astype(jnp.float32) * jnp.float32(2 * np.pi / 2**32)


def rope_angles(
    positions: Int[Array, "B G T 3"], head_dim: int, theta: float = 10000.0
) -> Float[Array, "B G T pairs"]:
    """Angle of every channel pair of a token at (frame, row, column)."""
    return jnp.concatenate(
        [
            integer_angles(positions[..., axis], theta ** -(np.arange(pairs) / max(pairs, 1)))
            for axis, pairs in enumerate(axis_pairs(head_dim))
        ],
        axis=-1,
    )


def rotate(
    x: Float[Array, "B N T H"], positions: Int[Array, "#B G T 3"]
) -> Float[Array, "B N T H"]:
    """Turns each pair (x[2i], x[2i+1]) by its angle, in float32; returns x's dtype."""
    angles = rope_angles(positions, x.shape[-1])
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)

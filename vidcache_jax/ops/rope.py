"""3-D rotary position embedding from integer positions: no table, no length limit.

Wan rotates adjacent channel pairs. Of the c = H/2 pairs, c - 2 (c // 3) turn with the frame
number, c // 3 with the row, c // 3 with the column (22, 21, 21 at H = 128); pair i of an axis
with n pairs turns by ``position * 10000^(-i/n)`` radians (Wan ``model.py``: ``rope_params``).
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def axis_pairs(head_dim: int) -> tuple[int, int, int]:
    """Rotated pairs of the frame, row and column axis."""
    pairs = head_dim // 2
    return pairs - 2 * (pairs // 3), pairs // 3, pairs // 3


def integer_angles(
    index: Int[Array, "*shape"], frequencies: Float[np.ndarray, " n"]
) -> Float[Array, "*shape n"]:
    """``index * frequency`` radians modulo 2 pi, to within 1e-5 for any int32 index.

    A float32 product is already wrong in the third digit at frame 60,000. Turns modulo 1 are
    what unsigned 32-bit integers wrap to, so the product is taken there, on an index split as
    ``index = a 2^20 + b 2^10 + c``: ``index f = a (2^20 f) + b (2^10 f) + c f``, the factors
    prepared as fixed-point fractions of a turn in float64. Each is rounded by at most 2^-33
    turns, and no part multiplies that by more than 2^11.
    """
    index = jnp.asarray(index, jnp.int32)[..., None]
    phase = jnp.zeros((), jnp.uint32)
    parts = index & (2**10 - 1), (index >> 10) & (2**10 - 1), index >> 20
    for part, factor in zip(parts, _fixed_point(frequencies), strict=True):
        factor = jnp.asarray(factor).reshape((1,) * (index.ndim - 1) + (-1,))
        phase = phase + part.astype(jnp.uint32) * factor
    signed = jax.lax.bitcast_convert_type(phase, jnp.int32)
    return signed.astype(jnp.float32) * jnp.float32(2 * np.pi / 2**32)


def _fixed_point(frequencies: Float[np.ndarray, " n"]) -> np.ndarray:
    """Turns [3, n] that 1, 2^10 and 2^20 make of an index, modulo 1, in units of 2^-32."""
    turns = np.asarray(frequencies, np.float64) / (2 * np.pi) * 2.0 ** np.array([[0], [10], [20]])
    return np.round(turns % 1.0 * 2.0**32).astype(np.uint64).astype(np.uint32)


def _frequencies(head_dim: int, theta: float) -> list[Float[np.ndarray, " n"]]:
    """Of the pairs of each axis, in radians a position."""
    return [theta ** -(np.arange(pairs) / max(pairs, 1)) for pairs in axis_pairs(head_dim)]


def fixed_point_turns(head_dim: int, theta: float = 10000.0) -> list[np.ndarray]:
    """The factors [3, pairs] of `integer_angles` for each axis."""
    return [_fixed_point(frequencies) for frequencies in _frequencies(head_dim, theta)]


def rope_angles(
    positions: Int[Array, "B G T 3"], head_dim: int, theta: float = 10000.0
) -> Float[Array, "B G T pairs"]:
    """Angle of every channel pair of a token at (frame, row, column)."""
    return jnp.concatenate(
        [
            integer_angles(positions[..., axis], frequencies)
            for axis, frequencies in enumerate(_frequencies(head_dim, theta))
        ],
        axis=-1,
    )


def rotate(
    x: Float[Array, "B N T H"], positions: Int[Array, "#B G T 3"]
) -> Float[Array, "B N T H"]:
    """Turns each pair (x[2i], x[2i+1]) by its angle, in float32; returns x's dtype."""
    angles = rope_angles(positions, x.shape[-1])
    # Which device this will run on is known when it is lowered, not here.
    turned = jax.lax.platform_dependent(
        x, jnp.cos(angles), jnp.sin(angles), tpu=turn_by_products, default=turn_pairs
    )
    return turned.astype(x.dtype)


def turn_pairs(
    x: Float[Array, "B N T H"], cos: Float[Array, "#B G T pairs"], sin: Float[Array, "#B G T pairs"]
) -> Float[Array, "B N T H"]:
    """(x[2i] cos - x[2i+1] sin, x[2i] sin + x[2i+1] cos), in float32."""
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    return turned.reshape(x.shape)


def turn_by_products(
    x: Float[Array, "B N T H"], cos: Float[Array, "#B G T pairs"], sin: Float[Array, "#B G T pairs"]
) -> Float[Array, "B N T H"]:
    """`turn_pairs` for TPUs, which have lanes for 128 numbers where an axis of two would lie.

    (x[2i], x[2i+1]) cos + (x[2i+1], x[2i]) (-sin, sin): neighbours change places, and both get the
    angle of their pair, by products with matrices of -1, 0 and 1. They are exact, as no sum has two
    terms. On a CPU XLA would copy the cache for them.
    """
    channel = np.arange(x.shape[-1])
    neighbour = np.equal(channel ^ 1, channel[:, None])
    both = np.equal(channel // 2, np.arange(cos.shape[-1])[:, None])
    sign = np.where(channel % 2, 1, -1)
    swapped, cos, sin = _product(x, neighbour), _product(cos, both), _product(sin, both * sign)
    return x.astype(jnp.float32) * cos + swapped.astype(jnp.float32) * sin


def _product(x: Float[Array, "*rows m"], matrix: np.ndarray) -> Float[Array, "*rows n"]:
    return jnp.matmul(x, jnp.asarray(matrix, x.dtype), precision=jax.lax.Precision.HIGHEST)

"""What Pallas kernels for TPUs (Mosaic) go by: registers, memory on the chip, powers of two."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

LANES, SUBLANES = 128, 8
"""Of a vector register."""
LOG2_E = math.log2(math.e)
LOWEST = float(jnp.finfo(jnp.float32).min)
"""Below every logit, and finite, so that no difference of infinities arises."""
VMEM_LIMIT = 48 * 2**20
"""Bytes that a kernel may take of the chip's own memory."""


def reason_against_heads(q: Float[Array, "*axes H"]) -> str | None:
    """Why queries and keys like these do not suit a kernel, None if they do."""
    if q.dtype not in (jnp.bfloat16, jnp.float32):
        return f"bfloat16 or float32 is needed, not {q.dtype}"
    if q.shape[-1] % LANES != 0:
        # XLA keeps such keys in a layout of its own and would copy the whole stack into ours.
        return f"head_dim={q.shape[-1]} is no multiple of {LANES}, the lanes of a vector register"
    return None


def size_of_a_token(head_dim: int, dtype: jnp.dtype) -> int:
    """Memory on the chip that a token takes, in registers' rows of bfloat16."""
    # float32, and more than one register of head_dim, take as much more; a v4 has 16 MiB.
    return max(1, dtype.itemsize // 2) * max(1, head_dim // LANES)


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple

"""Whether a kernel computes on this very device what it should."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidcache_jax.ops import soundness
from vidcache_jax.ops.implementations import Implementation
from vidcache_jax.ops.rope_stack import ref


def is_sound(name: str, implementation: Implementation, head_dim: int, dtype: Any) -> bool:
    """Whether a kernel may be chosen; see `soundness.is_sound`.

    It turns a small example with positions of all signs and sizes, and agrees with "xla" to 4 units
    of ``dtype``'s precision or 1e-5, relative to the largest number.
    """
    return soundness.is_sound(
        "rotate_stack", name, implementation.platform,
        _disagreement, implementation, head_dim, jnp.dtype(dtype),
    )  # fmt: skip


def _disagreement(chosen: Implementation, head_dim: int, dtype: Any) -> str | None:
    """Two layers, two heads, 300 tokens; positions of both heads, and of each."""
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=(2, 1, 2, 300, head_dim)), dtype)
    for groups in (1, 2):
        positions = random.integers(-(2**31), 2**31, (2, 1, groups, 300, 3)).astype(np.int32)
        given = x, jnp.asarray(positions)
        actual, expected = (jax.jit(each)(*given) for each in (chosen.call, ref.rotate_stack))
        if reason := soundness.disagreement("keys", actual, expected, dtype):
            return reason
    return None

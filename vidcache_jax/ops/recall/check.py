"""Whether a recall kernel computes on this very device what it should."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidcache_jax.ops import soundness
from vidcache_jax.ops.implementations import Implementation
from vidcache_jax.ops.recall import ref
from vidcache_jax.ops.recall.moments import frame_moments


def is_sound(name: str, implementation: Implementation, head_dim: int, dtype: Any) -> bool:
    """Whether a kernel may be chosen; see `soundness.is_sound`.

    It edits two of three frames of a small example, an empty slot of which is NaN, and agrees with
    "xla" to 4 units of ``dtype``'s precision or 1e-5, relative to the largest number.
    """
    return soundness.is_sound(
        "recall", name, implementation.platform,
        _reason_against, implementation, head_dim, jnp.dtype(dtype),
    )  # fmt: skip


def _reason_against(chosen: Implementation, head_dim: int, dtype: Any) -> str | None:
    return soundness.attempt(lambda: _disagreement(chosen, head_dim, dtype))


def _disagreement(chosen: Implementation, head_dim: int, dtype: Any) -> str | None:
    """Two videos, two heads, six slots of 200 tokens."""
    random = np.random.default_rng(0)
    x = random.normal(size=(2, 2, 6, 200, head_dim)) + random.normal(size=(2, 2, 6, 1, head_dim))
    x[:, :, 5] = np.nan
    x = jnp.asarray(x.reshape(2, 2, 1200, head_dim), dtype)
    places = jnp.array([[3, 0, 2], [1, 4, 3]], jnp.int32)
    admitted = jnp.array([[True, False, True], [False, True, True]])
    trusted = jnp.array([[0, 1, 0, 0, 1, 0], [1, 0, 1, 0, 0, 0]]) > 0
    given = x, frame_moments(x, 6), places, admitted, trusted
    actual, expected = (
        jax.jit(functools.partial(each, tau=0.6))(*given) for each in (chosen.call, ref.recall)
    )
    limit = max(4 * float(jnp.finfo(x.dtype).eps), 1e-5)
    held = np.arange(6) < 5
    for what, one, two in (
        ("frames", actual[0][:, :, :1000], expected[0][:, :, :1000]),
        ("means", actual[1].mean[:, :, held], expected[1].mean[:, :, held]),
        ("variances", actual[1].variance[:, :, held], expected[1].variance[:, :, held]),
    ):
        one, two = one.astype(jnp.float32), two.astype(jnp.float32)
        error = float(jnp.max(jnp.abs(one - two)) / jnp.max(jnp.abs(two)))
        if not error <= limit:  # NaN is not
            return f"it disagrees in {what} by {error:.2g}, more than {limit:.2g}"
    return None

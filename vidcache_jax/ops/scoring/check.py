"""Whether a scoring kernel computes on this very device what it should."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidcache_jax.ops import soundness
from vidcache_jax.ops.attention import AttentionPart
from vidcache_jax.ops.implementations import Implementation
from vidcache_jax.ops.scoring import ref


def is_sound(name: str, implementation: Implementation, head_dim: int, dtype: Any) -> bool:
    """Whether a kernel may be chosen; see `soundness.is_sound`.

    It scores a small example, some of whose keys are hidden and NaN, two steps ahead and with
    known residuals, and agrees with "xla" to 4 units of ``dtype``'s precision or 1e-5, relative to
    the largest mean.
    """
    return soundness.is_sound(
        "scoring", name, implementation.platform,
        _disagreement, implementation, head_dim, jnp.dtype(dtype),
    )  # fmt: skip


def _disagreement(chosen: Implementation, head_dim: int, dtype: Any) -> str | None:
    """Two heads, 200 queries, 320 keys."""
    random = np.random.default_rng(0)
    normal = lambda tokens: random.normal(size=(1, 2, tokens, head_dim)).astype(np.float32)
    places = lambda tokens: jnp.asarray(random.integers(0, 30, (1, 2, tokens, 3)), jnp.int32)
    visible = random.random((1, 2, 320)) < 0.7
    q, k = (jnp.asarray(x, dtype) for x in (normal(200), normal(320)))
    k = jnp.where(visible[..., None], k, jnp.nan)
    given = q, places(200), k, places(320), jnp.asarray(visible)
    # Any residuals will do: both sides go by the same.
    statistic = jnp.full(q.shape[:3], 2.0, jnp.float32)
    known = AttentionPart(jnp.zeros_like(q, jnp.float32), statistic, 100 * statistic)
    for ahead, attended in (((1, 3), None), ((0,), known)):
        actual = jax.jit(functools.partial(chosen.call, ahead=ahead))(*given, attended)
        with jax.default_matmul_precision("highest"):
            expected = ref.column_means(*given, attended, ahead=ahead)
        for what in ("weight", "logit"):
            one, two = getattr(actual, what), getattr(expected, what)
            if reason := soundness.disagreement(f"mean {what}", one, two, dtype):
                return reason
    return None

"""Whether a kernel computes on this very device what it should; asked once, at start-up."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidcache_jax.ops import soundness
from vidcache_jax.ops.attention import xla
from vidcache_jax.ops.attention.keys import Keys
from vidcache_jax.ops.attention.table import IMPLEMENTATIONS
from vidcache_jax.ops.implementations import Implementation


def check_implementation(
    name: str | None = None,
    *,
    head_dim: int,
    dtype: Any,
    implementations: Mapping[str, Implementation] = IMPLEMENTATIONS,
) -> str:
    """Name of an attention implementation that agrees with "xla" on the default device.

    Runs `name` on a small stack of keys, some of whose slots are hidden and hold NaN, given as
    slots and as single tokens, and compares out and log-sum-exp, to 4 units of ``dtype``'s
    precision or 1e-5.

    Args:
      name: an implementation; None for the one preferred on the default device.

    Returns:
      ``name``, or "xla" with a RuntimeWarning that says why, if it fails or disagrees.
    """
    if name is None:
        platform = soundness.platform_here()
        here = (key for key, each in implementations.items() if each.platform == platform)
        name = next(here, "xla")
    reason = reason_against_here(implementations[name], head_dim, dtype)
    if reason is None:
        return name
    soundness.warn("attention", name, reason)
    return "xla"


def is_sound(name: str, implementation: Implementation, head_dim: int, dtype: Any) -> bool:
    """Whether a kernel may be chosen; see `soundness.is_sound`."""
    return soundness.is_sound(
        "attention", name, implementation.platform,
        reason_against_here, implementation, head_dim, jnp.dtype(dtype),
    )  # fmt: skip


def reason_against_here(chosen: Implementation, head_dim: int, dtype: Any) -> str | None:
    """What is wrong with an implementation on the default device; None if nothing is."""
    q, (of_slots, of_tokens) = _samples(head_dim, dtype)
    if reason := chosen.reason_against(q, of_slots):
        return reason
    takes_tokens = chosen.reason_against(q, of_tokens) is None
    for keys in (of_slots, of_tokens) if takes_tokens else (of_slots,):
        reason = soundness.attempt(lambda keys=keys: _disagreement(chosen, q, keys))
        if reason is not None:
            return reason
    return None


def _samples(head_dim: int, dtype: Any) -> tuple[jax.Array, list[Keys]]:
    """Two heads, 200 queries, five slots of 128 keys in the second of two layers.

    And the same keys as slots of single tokens, which kernels have a way of their own for, or none.
    """
    random = np.random.default_rng(0)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)
    q, k, v = (
        normal(1, 2, 200, head_dim),
        *(normal(2, 1, 2, 640, head_dim) for _ in range(2)),
    )
    slots = np.array([[[True, False, True, True, False], [False, True, False, False, True]]])
    tokens = np.repeat(slots, 128, axis=-1)
    for stored in (k, v):
        stored[:, ~tokens] = np.nan
    q, k, v = (jnp.asarray(x, dtype) for x in (q, k, v))
    layer = jnp.asarray(1, jnp.int32)
    return q, [Keys(k, v, layer, slots=jnp.asarray(table)) for table in (slots, tokens)]


def _disagreement(chosen: Implementation, q: jax.Array, keys: Keys) -> str | None:
    part = jax.jit(chosen.call)(q, keys)
    with jax.default_matmul_precision("highest"):
        expected = jax.jit(xla.attention)(q, keys)
    limit = max(4 * float(jnp.finfo(q.dtype).eps), 1e-5)
    log_sum = lambda part: part.max + jnp.log(part.denominator)
    for what, one, two in (
        ("out", part.out, expected.out),
        ("log-sum-exp", log_sum(part), log_sum(expected)),
    ):
        error = float(jnp.max(jnp.abs(one - two)))
        if not error <= limit:  # NaN is not
            return f"it disagrees in {what} by {error:.2g}, more than {limit:.2g}"
    return None

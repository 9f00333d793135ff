"""The implementations of attention that there are."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from vidcache_jax.array_typing import Heads
from vidcache_jax.ops.attention import gpu, tpu, xla
from vidcache_jax.ops.attention.keys import Keys
from vidcache_jax.ops.attention.ref import AttentionPart


class Implementation(NamedTuple):
    """One way to compute `attention`."""

    attend: Callable[[Heads, Keys], AttentionPart]
    reason_against: Callable[[Heads, Keys], str | None]
    """Why it cannot do this, None if it can."""
    platform: str | None = None
    """Where it is preferred to "xla", in JAX's words."""


IMPLEMENTATIONS: Mapping[str, Implementation] = {
    "xla": Implementation(xla.attention, lambda q, keys: None),
    "tpu": Implementation(xla.with_gradient(tpu.attention), tpu.reason_against, "tpu"),
    "gpu": Implementation(xla.with_gradient(gpu.attention), gpu.reason_against, "cuda"),
}

"""The implementations of scoring that there are."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from vidcache_jax.array_typing import Heads
from vidcache_jax.ops.scoring import ref, tpu


class Implementation(NamedTuple):
    """One way to compute `column_means`."""

    score: Callable[..., ref.ColumnMeans]
    reason_against: Callable[[Heads], str | None]
    """Why it cannot do this for such queries, None if it can."""
    platform: str | None = None
    """Where it is preferred to "xla", in JAX's words."""


IMPLEMENTATIONS: Mapping[str, Implementation] = {
    "xla": Implementation(ref.column_means, lambda q: None),
    "tpu": Implementation(tpu.column_means, tpu.reason_against, "tpu"),
}

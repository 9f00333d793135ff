"""The one public attention call and the choice of its implementation."""

from collections.abc import Callable, Mapping

from jaxtyping import Array, Bool, Float

from vidcache_jax.ops.attention import ref

IMPLEMENTATIONS: Mapping[str, Callable[..., ref.AttentionPart]] = {"xla": ref.attention}


def attention(
    q: Float[Array, "B N T H"],
    k: Float[Array, "B N S H"],
    v: Float[Array, "B N S H"],
    visible: Bool[Array, "#B G #T S"] | None = None,
    *,
    implementation: str | None = None,
) -> ref.AttentionPart:
    """Attention of T queries over S keys, with softmax residuals; see `ref.attention`.

    Args:
      q, k, v: already rotated by RoPE.
      visible: which keys count, per head (G = N) or for all (G = 1), per query (T) or for all
        (1); None means every key.
      implementation: a name in `IMPLEMENTATIONS`, or None for the best one supported.

    Raises:
      ValueError: no implementation has that name.
    """
    name = implementation or "xla"
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"no attention implementation {name!r}; there are {[*IMPLEMENTATIONS]}")
    return IMPLEMENTATIONS[name](q, k, v, visible)

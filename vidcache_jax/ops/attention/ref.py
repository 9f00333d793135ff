"""The definition of attention with residuals, and the exact merge of attention over parts."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AttentionPart:
    """Softmax attention over some of the keys.

    With logits z over this part's visible keys: ``max = max z``,
    ``denominator = sum exp(z - max)``, ``out = sum exp(z - max) v / denominator``.
    A part in which a query sees no key has denominator 0 and out 0. Only
    ``denominator exp(max)`` means anything to `merge`, and an implementation that knows no more
    than the log-sum-exp of z gives that as ``max``, with denominator 1.
    """

    out: Float[Array, "B N T H"]
    max: Float[Array, "B N T"]
    denominator: Float[Array, "B N T"]


def attention(
    q: Float[Array, "B N T H"],
    k: Float[Array, "B N S H"],
    v: Float[Array, "B N S H"],
    visible: Bool[Array, "#B #N #T S"] | None = None,
    bias: Float[Array, "#B #N #T S"] | None = None,
) -> AttentionPart:
    """``softmax(q k^T / sqrt(H) + bias) v`` over visible keys, logits and softmax in float32.

    What lies in an invisible key or value, NaN included, changes no bit of the result.
    """
    logits = jnp.einsum("bnth,bnsh->bnts", q, k, preferred_element_type=jnp.float32)
    logits = logits * jnp.float32(q.shape[-1] ** -0.5)
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    if visible is not None:
        # finfo.min, not -inf: a row that sees nothing must give 0, not inf - inf.
        logits = jnp.where(visible, logits, jnp.finfo(jnp.float32).min)
        # 0 * NaN is NaN: a value that no query sees must not be multiplied at all.
        seen = jnp.any(visible, axis=2)[..., None]
        v = jnp.where(seen, v, jnp.zeros((), v.dtype))
    # out and what `merge` makes of it do not change with the maximum, so no gradient is due to it.
    maximum = jax.lax.stop_gradient(jnp.max(logits, axis=-1))
    weights = jnp.exp(logits - maximum[..., None])
    if visible is not None:
        weights = jnp.where(visible, weights, jnp.float32(0))
    denominator = jnp.sum(weights, axis=-1)
    out = jnp.einsum(
        "bnts,bnsh->bnth", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    out = out / jnp.maximum(denominator, jnp.finfo(jnp.float32).tiny)[..., None]
    return AttentionPart(out, maximum, denominator)


def merge(first: AttentionPart, second: AttentionPart) -> AttentionPart:
    """Attention over the union of two disjoint parts, exactly (log-sum-exp weights)."""
    maximum = jnp.maximum(first.max, second.max)
    weight_1 = first.denominator * jnp.exp(first.max - maximum)
    weight_2 = second.denominator * jnp.exp(second.max - maximum)
    denominator = weight_1 + weight_2
    safe = jnp.maximum(denominator, jnp.finfo(jnp.float32).tiny)
    out = first.out * (weight_1 / safe)[..., None] + second.out * (weight_2 / safe)[..., None]
    return AttentionPart(out, maximum, denominator)

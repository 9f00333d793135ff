"""GRAB, gated recall: which frames stay in memory (TetherCache, arXiv 2606.13035, Eqs. 6 to 9).

    l(c)       = mean over heads, queries and keys of <q, k> / sqrt(H)
    phi_imp    = softmax over candidates of l / temperature
    sigma      = max(1, (max g - min g + 1) / 2)                g: frame numbers of the candidates
    r(c)       = max over c' != c of exp(-|g_c - g_c'| / sigma) phi_imp(c')
    phi        = phi_imp + alpha max(0, 1 - r)

The M candidates of highest phi stay. Queries and keys are un-rotated, as in the released
``grab.py``. A mean of dot products is the dot product of the means, so l(c) needs one mean query
and one mean key a frame; the released code forms every logit.

The released code averages phi over the batch and decides once for all; here each video decides
for itself. Every array has a row of K slots per video; ``candidate`` says which of them count.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def attention_mass(
    mean_query: Float[Array, "B N H"],
    mean_key: Float[Array, "B N K H"],
    candidate: Bool[Array, "B K"],
    temperature: float,
) -> Float[Array, "B K"]:
    """phi_imp (Eq. 6): sums to 1 over the candidates, 0 elsewhere."""
    num_heads, head_dim = mean_query.shape[1:]
    # `where` on the keys too: an empty slot may hold NaN.
    mean_key = jnp.where(candidate[:, None, :, None], mean_key, 0.0)
    logits = jnp.einsum("bnh,bnkh->bk", mean_query, mean_key) / (num_heads * head_dim**0.5)
    return jax.nn.softmax(logits / temperature, axis=-1, where=candidate)


def temporal_diversity(
    importance: Float[Array, "B K"],
    frame_index: Int[Array, "B K"],
    candidate: Bool[Array, "B K"],
) -> Float[Array, "B K"]:
    """phi_div (Eqs. 7 to 9): 1 for a frame far from every important one."""
    latest = jnp.max(frame_index, axis=-1, where=candidate, initial=-1)
    first = jnp.min(frame_index, axis=-1, where=candidate, initial=jnp.iinfo(jnp.int32).max)
    span = jnp.maximum(latest - first, 0).astype(jnp.float32)
    sigma = jnp.maximum(1.0, 0.5 * (span + 1.0))[:, None, None]
    distance = jnp.abs(frame_index[:, :, None] - frame_index[:, None, :]).astype(jnp.float32)
    others = candidate[:, None, :] & ~jnp.eye(candidate.shape[1], dtype=bool)[None]
    similarity = jnp.where(others, jnp.exp(-distance / sigma), 0.0)
    return jnp.maximum(0.0, 1.0 - jnp.max(similarity * importance[:, None, :], axis=-1))


def select(
    score: Float[Array, "B K"],
    frame_index: Int[Array, "B K"],
    candidate: Bool[Array, "B K"],
    size: int,
) -> Bool[Array, "B K"]:
    """The ``size`` best candidates, or all if there are no more; of equals, the earliest."""
    # A sort, not comparisons of all pairs: XLA may compute both sides of those separately, with
    # other roundings, and a score can come out greater than itself.
    worst_last = jnp.where(candidate, -score, jnp.inf)
    slot = jnp.broadcast_to(jnp.arange(score.shape[1], dtype=jnp.int32)[None], score.shape)
    _, _, order = jax.lax.sort((worst_last, frame_index, slot), num_keys=2)
    chosen = jnp.any(order[:, :size, None] == slot[:, None, :], axis=1)
    return candidate & chosen

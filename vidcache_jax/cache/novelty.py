"""What is new enough for episodic memory, and what there is alike (Head Forcing, section 1.4).

    kbar_j   = mean over the tokens of frame j's keys                    per layer and head
    sim(i,j) = mean over all memory heads of all layers of cos(kbar_i, kbar_j)
    novelty  : a candidate c is admitted iff max_j sim(c, j) < tau       arXiv 2605.14487, Eq. 4

One decision per video, for the whole model. Full memory makes room by merging two entries: the
most alike when nothing has been merged yet, then the summary S and the entry most like its
neighbours in time. Entries are given by slot; their order in time is data.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int


def pooled_keys(k: Float[Array, "B N T H"], num_frames: int) -> Float[Array, "B N F H"]:
    """Mean key of each of the frames that k holds one after the other, float32."""
    k = rearrange(k.astype(jnp.float32), "b n (f t) h -> b n f t h", f=num_frames)
    return jnp.mean(k, axis=3)


def unit(x: Float[Array, "*shape H"]) -> Float[Array, "*shape H"]:
    """x / |x|, and 0 for 0, so that the cosine with a zero vector is 0."""
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.where(norm > 0, norm, 1.0)


def similarity(
    pooled: Float[Array, "L B N K H"], is_memory: Bool[Array, "L N"]
) -> Float[Array, "B K K"]:
    """Cosine of each pair of frames, a flat mean over the memory heads of all layers."""
    pooled = unit(pooled)
    cosine = jnp.einsum("lbnih,lbnjh->lbnij", pooled, pooled, precision=jax.lax.Precision.HIGHEST)
    # `where`, not a product: other heads may hold anything.
    counted = jnp.where(is_memory[:, None, :, None, None], cosine, 0.0)
    count = jnp.maximum(jnp.sum(is_memory), 1).astype(jnp.float32)
    return jnp.sum(counted, axis=(0, 2)) / count


def is_novel(
    to_entries: Float[Array, "B E"], held: Bool[Array, "B E"], tau: float
) -> Bool[Array, " B"]:
    """Whether a candidate is below tau to every held entry; so it is if none is held."""
    return jnp.max(jnp.where(held, to_entries, -jnp.inf), axis=-1) < tau


def in_time(entry: Int[Array, "B E"], summary: Int[Array, " B"]) -> Int[Array, "B E"]:
    """Slots of a full memory in episodic order: the summary first, then by frame number."""
    slot = jnp.arange(entry.shape[1], dtype=summary.dtype)[None]
    return jnp.argsort(jnp.where(slot == summary[:, None], -1, entry), axis=-1)


def closest_pair(similar: Float[Array, "B E E"]) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """(i, j) with i < j of the highest similarity; of equals, the lowest."""
    size = similar.shape[-1]
    later = jnp.triu(jnp.ones((size, size), bool), k=1)[None]
    best = jnp.argmax(jnp.where(later, similar, -jnp.inf).reshape(-1, size * size), axis=-1)
    return best // size, best % size


def most_redundant(similar: Float[Array, "B E E"]) -> Int[Array, " B"]:
    """j >= 1 most alike, on average, to the entries j - 1 and j + 1 that exist; 0 is the summary.

    Example: with entries S, a, b, c and similarities ab = 0.2, bc = 0.8 the averages are 0.2, 0.5
    and 0.8, and c is the one.
    """
    size = similar.shape[-1]
    neighbour = jnp.abs(jnp.arange(size)[:, None] - jnp.arange(size)[None]) == 1
    neighbour = neighbour.at[:, 0].set(False)[None]
    total = jnp.sum(jnp.where(neighbour, similar, 0.0), axis=-1)
    count = jnp.maximum(jnp.sum(neighbour, axis=-1), 1).astype(jnp.float32)
    return 1 + jnp.argmax((total / count)[:, 1:], axis=-1)

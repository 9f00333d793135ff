"""A small policy of all the kinds that the contract must admit beside those of the package.

Lengths and positions per head, decisions per video that depend on queries, tokens instead of
frames, edits of stored values, and decisions over all layers.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.cache import CachePolicy, CacheSpec, CacheView, Chunk
from vidcache_jax.ops.attention import AttentionPart


def only_chunks_of(spec: CacheSpec, frames: int) -> None:
    if spec.frames_per_chunk != frames:
        raise ValueError(f"chunks of {frames} frames only")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenCache:
    """Every head holds its own set of tokens."""

    k: Float[Array, "*stack B N S H"]
    v: Float[Array, "*stack B N S H"]
    frame: Int[Array, "*stack B N S"]
    """Frame a token is from; -1 = empty."""
    place: Int[Array, "*stack B N S"]
    """Number of the token in its frame."""
    score: Float[Array, "*stack B N S"]
    """Log of the weight that the last chunk's mean query gives."""
    grid: tuple[int, int] = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class TokenSets(CachePolicy):
    """Evicts, after each commit, the tokens of lowest score and merges their values into the best.

    Survivors take contiguous pseudo-frames, so that tokens may share a position. Once full, head
    n holds ``budgets[n]`` frames of tokens between chunks.
    """

    budgets: tuple[int, ...] = (2, 5)

    def init(self, spec: CacheSpec) -> TokenCache:
        only_chunks_of(spec, 3)
        slots = (max(self.budgets) + spec.frames_per_chunk) * spec.tokens_per_frame
        shape = (spec.batch, spec.num_heads, slots)
        return TokenCache(
            k=jnp.zeros((*shape, spec.head_dim), spec.dtype),
            v=jnp.zeros((*shape, spec.head_dim), spec.dtype),
            frame=jnp.full(shape, -1, jnp.int32),
            place=jnp.zeros(shape, jnp.int32),
            score=jnp.zeros(shape, jnp.float32),
            grid=spec.grid,
        )

    def read(self, cache: TokenCache, start_frame, num_frames: int) -> CacheView:
        columns, tokens = cache.grid[1], cache.grid[0] * cache.grid[1]
        visible, place = cache.frame >= 0, cache.place
        last = jnp.where(visible, cache.frame, jnp.iinfo(jnp.int32).max)
        rank = _rank(jnp.lexsort((place, last), axis=-1))
        past = jnp.sum(visible & (cache.frame < start_frame), axis=-1, dtype=jnp.int32)
        new = jnp.arange(num_frames * tokens, dtype=jnp.int32)
        new = jnp.broadcast_to(new, (*past.shape, *new.shape))
        frame, new = past[..., None] // tokens + new // tokens, new % tokens
        return CacheView(
            k=cache.k,
            v=cache.v,
            position=jnp.stack([rank // tokens, place // columns, place % columns], axis=-1),
            visible=visible,
            query_position=jnp.stack([frame, new // columns, new % columns], axis=-1),
        )

    def commit(self, cache: TokenCache, chunk: Chunk) -> TokenCache:
        grid_tokens = cache.grid[0] * cache.grid[1]
        # The first empty slots of each head, found by a stable sort.
        slots = jnp.argsort(cache.frame >= 0, axis=-1, stable=True)[..., : chunk.k.shape[2]]
        put = jax.vmap(jax.vmap(lambda old, index, new: old.at[index].set(new)))
        token = jnp.broadcast_to(jnp.arange(slots.shape[-1], dtype=jnp.int32), slots.shape)
        return dataclasses.replace(
            cache,
            k=put(cache.k, slots, chunk.k),
            v=put(cache.v, slots, chunk.v),
            frame=put(cache.frame, slots, chunk.start_frame + token // grid_tokens),
            place=put(cache.place, slots, token % grid_tokens),
        )

    def evict(self, cache: TokenCache, chunk: Chunk, attended: AttentionPart) -> TokenCache:
        query = jnp.mean(chunk.q.astype(jnp.float32), axis=2)
        logits = jnp.einsum("bnh,bnsh->bns", query, cache.k.astype(jnp.float32))
        total = jnp.mean(attended.max + jnp.log(attended.denominator), axis=-1, keepdims=True)
        return dataclasses.replace(cache, score=logits - total)

    def settle(self, cache: TokenCache, start_frame) -> TokenCache:
        """Scores are shared by the layers; the lowest go until the budget is met."""
        held = cache.frame >= 0
        score = jnp.where(held, cache.score, jnp.inf)
        score = jnp.broadcast_to(jnp.mean(score, axis=0, keepdims=True), score.shape)
        excess = jnp.sum(held, axis=-1, keepdims=True, dtype=jnp.int32)
        budgets = jnp.asarray(self.budgets, jnp.int32) * (cache.grid[0] * cache.grid[1])
        excess = excess - budgets[None, None, :, None]
        gone = held & (_rank(jnp.argsort(score, axis=-1, stable=True)) < excess)
        best = jnp.argmax(jnp.where(held, score, -jnp.inf), axis=-1, keepdims=True)
        frame = jnp.where(gone, jnp.int32(-1), cache.frame)
        return dataclasses.replace(cache, v=_merge(cache.v, gone, best), frame=frame)


def _rank(order: Int[Array, "*rest S"]) -> Int[Array, "*rest S"]:
    """The place of each entry in an order that an argsort gave."""
    return jnp.argsort(order, axis=-1).astype(jnp.int32)


def _merge(
    v: Float[Array, "L B N S H"], gone: Bool[Array, "L B N S"], best: Int[Array, "L B N 1"]
) -> Float[Array, "L B N S H"]:
    """The mean of the evicted values and the best token's own replaces the latter."""
    slots = jnp.arange(v.shape[-2], dtype=best.dtype)
    is_best = jnp.broadcast_to(slots, gone.shape) == best
    part = (gone | is_best)[..., None]
    values = jnp.where(part, v.astype(jnp.float32), jnp.float32(0))
    count = jnp.sum(part, axis=-2, keepdims=True, dtype=jnp.float32)
    mean = jnp.sum(values, axis=-2, keepdims=True) / jnp.maximum(count, jnp.float32(1))
    return jnp.where(
        is_best[..., None] & jnp.any(gone, -1)[..., None, None], mean.astype(v.dtype), v
    ).astype(v.dtype)

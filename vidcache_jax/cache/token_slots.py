"""Storage of token-level policies: every head holds a set of tokens of its own.

Slot order means nothing. An evicted token leaves its slot empty and a later one is written over
it, so that nothing is ever shifted.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vidcache_jax.array_typing import Heads
from vidcache_jax.cache.state import CacheSpec
from vidcache_jax.ops.blocks import block_size
from vidcache_jax.ops.selection import where_true

MOST_ROWS = 512


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TokenSlots:
    """S slots of one token each, for every head."""

    k: Float[Array, "*stack B N S H"]
    """Un-rotated keys."""
    v: Float[Array, "*stack B N S H"]
    frame: Int[Array, "*stack B N S"]
    """Latent frame number that a token is from, -1 = empty."""
    place: Int[Array, "*stack B N S"]
    """Number of the token in its frame, row by row; eviction does not change it."""
    position: Int[Array, "*stack B N S"]
    """Frame position at which its key is rotated."""
    grid: tuple[int, int] = dataclasses.field(metadata={"static": True})

    @property
    def tokens_per_frame(self) -> int:
        return self.grid[0] * self.grid[1]


def empty_tokens(spec: CacheSpec, num_frames: int) -> TokenSlots:
    """Room for ``num_frames`` frames' worth of tokens a head."""
    shape = (spec.batch, spec.num_heads, num_frames * spec.tokens_per_frame)
    zeros = jnp.zeros(shape, jnp.int32)
    kv = jnp.zeros((*shape, spec.head_dim), spec.dtype)
    return TokenSlots(k=kv, v=kv, frame=zeros - 1, place=zeros, position=zeros, grid=spec.grid)


def write_frames(
    tokens: TokenSlots,
    k: Heads,
    v: Heads,
    frame: Int[Array, "1 1 F"],
    position: Int[Array, "B N F"],
) -> TokenSlots:
    """Writes whole frames into empty slots, of which every head must have enough."""
    batch, heads, count, _ = k.shape
    per_frame = tokens.tokens_per_frame
    slots = where_true(tokens.frame < 0, count)
    place = jnp.arange(count, dtype=jnp.int32) % per_frame
    to_heads = lambda x: jnp.broadcast_to(x, (batch, heads, count))
    return dataclasses.replace(
        tokens,
        k=put_rows(tokens.k, slots, k.astype(tokens.k.dtype)),
        v=put_rows(tokens.v, slots, v.astype(tokens.v.dtype)),
        frame=put(tokens.frame, slots, to_heads(jnp.repeat(frame, per_frame, axis=-1))),
        place=put(tokens.place, slots, to_heads(place)),
        position=put(tokens.position, slots, jnp.repeat(position, per_frame, axis=-1)),
    )


def put_rows(
    stored: Float[Array, "B N S H"], slots: Int[Array, "B N X"], new: Float[Array, "B N X H"]
) -> Float[Array, "B N S H"]:
    """As `put`, in blocks: a TPU program of one large scatter takes long to compile."""
    size = block_size(slots.shape[-1], MOST_ROWS)

    def next_block(index: Int[Array, ""], stored: Float[Array, "B N S H"]):
        of = lambda x: jax.lax.dynamic_slice_in_dim(x, index * size, size, axis=2)
        return put(stored, of(slots), of(new))

    return jax.lax.fori_loop(0, slots.shape[-1] // size, next_block, stored)


def put(stored: Array, slots: Int[Array, "B N X"], new: Array) -> Array:
    """``stored[b, n, slots[b, n]] = new[b, n]``, in place on a donated buffer."""
    per_head = lambda stored, slots, new: stored.at[slots].set(new, unique_indices=True)
    return jax.vmap(jax.vmap(per_head))(stored, slots, new)


def take(stored: Array, slots: Int[Array, "B N X"]) -> Array:
    """``stored[b, n, slots[b, n]]``."""
    return jnp.take_along_axis(stored, slots, axis=2)


def token_positions(
    frame: Int[Array, "B N X"], place: Int[Array, "B N X"], columns: int
) -> Int[Array, "B N X 3"]:
    """(frame, row, column) of tokens; rows and columns are those of their own frames for ever."""
    return jnp.stack([frame, place // columns, place % columns], axis=-1)

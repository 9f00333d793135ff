"""Choosing entries by rank without sorting them.

A sort of many keys is what TPU programs take longest to compile, and the longer the more operands
it has. Deciding bit by bit is one small loop.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

BITS = 32


def is_among_first(keys: Sequence[Int[Array, "B N S"]], count: int) -> Bool[Array, "B N S"]:
    """Which entries a sort by ``keys``, the first before the second, would put first.

    Radix selection, most significant bit first: of the entries that are tied so far, those with
    the bit 0 are in if there is room for all of them, and else those with the bit 1 are out.
    Entries that are equal in all keys and do not all fit are left out.
    """
    # As unsigned numbers in the same order.
    ordered = jnp.stack([key.astype(jnp.uint32) ^ jnp.uint32(1 << (BITS - 1)) for key in keys])

    def next_bit(i: Int[Array, ""], state):
        chosen, tied, room = state
        key = jax.lax.dynamic_index_in_dim(ordered, i // BITS, keepdims=False)
        has_bit = (key >> (BITS - 1 - i % BITS).astype(jnp.uint32)) & 1 == 1
        low = tied & ~has_bit
        number = jnp.sum(low, axis=-1, keepdims=True, dtype=jnp.int32)
        fits = number <= room
        return (
            chosen | (low & fits),
            jnp.where(fits, tied & has_bit, low),
            room - jnp.where(fits, number, 0),
        )

    shape = keys[0].shape
    nothing, everything = jnp.zeros(shape, bool), jnp.ones(shape, bool)
    room = jnp.full((*shape[:-1], 1), count, jnp.int32)
    chosen, tied, room = jax.lax.fori_loop(
        0, BITS * len(keys), next_bit, (nothing, everything, room)
    )
    left = jnp.sum(tied, axis=-1, keepdims=True, dtype=jnp.int32)
    return chosen | (tied & (left <= room))


def descending(score: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Integers that are smallest where float32 scores are greatest; -0 is less than 0."""
    bits = jax.lax.bitcast_convert_type(score, jnp.int32)
    return ~jnp.where(bits < 0, bits ^ jnp.int32(2**31 - 1), bits)


def where_true(mask: Bool[Array, "B N S"], count: int) -> Int[Array, "B N count"]:
    """The first ``count`` places: where a mask is true, then where it is not, each in order."""
    size = mask.shape[-1]
    place = jnp.arange(size, dtype=jnp.int32)
    # One operand and no ties: the least that can be sorted.
    first = jax.lax.sort(jnp.where(mask, place, place + size), is_stable=False)[..., :count]
    return first % size

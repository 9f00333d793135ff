"""Choosing entries by rank without sorting them.

A sort of many keys is what TPU programs take longest to compile, and the longer the more operands
it has. Deciding bit by bit is one small loop.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, UInt

BITS = 32


def is_among_first(keys: Sequence[Int[Array, "B N S"]], count: int) -> Bool[Array, "B N S"]:
    """Which entries a sort by ``keys``, the first before the second, would put first.

    Radix selection, most significant bit first: of the entries that are tied so far, those with
    the bit 0 are in if there is room for all of them, and else those with the bit 1 are out.
    Entries that are equal in all keys and do not all fit are left out.
    """
    shape = keys[0].shape
    room = jnp.full((*shape[:-1], 1), count, jnp.int32)
    state = _Selection(jnp.zeros(shape, bool), jnp.ones(shape, bool), room)
    # A loop for each key: one over all of them would take each out of a stack in every turn. And
    # all is decided in loops, by the same numbers: XLA might compute a score anew beside them,
    # with other roundings.
    for key in keys:
        # As an unsigned number in the same order.
        ordered = key.astype(jnp.uint32) ^ jnp.uint32(1 << (BITS - 1))
        state = jax.lax.fori_loop(0, BITS, functools.partial(_next_bit, ordered), state)
    return state.chosen | (state.tied & (_number(state.tied) <= state.room))


class _Selection(NamedTuple):
    """What is decided so far."""

    chosen: Bool[Array, "B N S"]
    tied: Bool[Array, "B N S"]
    room: Int[Array, "B N 1"]


def _next_bit(key: UInt[Array, "B N S"], i: Int[Array, ""], state: _Selection) -> _Selection:
    has_bit = (key >> (BITS - 1 - i).astype(jnp.uint32)) & 1 == 1
    low = state.tied & ~has_bit
    number = _number(low)
    fits = number <= state.room
    return _Selection(
        chosen=state.chosen | (low & fits),
        tied=jnp.where(fits, state.tied & has_bit, low),
        room=state.room - jnp.where(fits, number, 0),
    )


def _number(mask: Bool[Array, "B N S"]) -> Int[Array, "B N 1"]:
    return jnp.sum(mask, axis=-1, keepdims=True, dtype=jnp.int32)


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

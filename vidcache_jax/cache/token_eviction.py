"""Evicting tokens of `TokenSlots`: who stays, into whom the others are merged, and where they lie.

Each head by itself and in fixed shapes.
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.cache.token_slots import TokenSlots, put, take
from vidcache_jax.ops.merge import merge_values, route
from vidcache_jax.ops.selection import descending, is_among_first

RopeRemap = Literal["slot", "frame_rank", "none"]


class Split(NamedTuple):
    """Who stays, as a mask and as lists of slots."""

    stays: Bool[Array, "B N S"]
    kept: Int[Array, "B N kept"]
    """Slots that stay, in (frame, token) order; others after them while the cache is not full."""
    rank: Int[Array, "B N S"]
    """Of each slot that stays, its place in that order; -1 for the others."""
    evicted: Int[Array, "B N evicted"]
    """Slots that are given up; empty ones while the cache is not full."""


def split(
    tokens: TokenSlots,
    score: Float[Array, "B N S"],
    is_protected: Bool[Array, "B N S"],
    num_kept: int,
) -> Split:
    """The protected tokens and those of highest score stay; of equals the lowest (frame, token)."""
    is_empty = tokens.frame < 0
    rated = jnp.where(is_empty, -jnp.inf, jnp.where(is_protected, jnp.inf, score))
    chosen = is_among_first((descending(rated), tokens.frame, tokens.place), num_kept)
    stays = chosen & ~is_empty
    slot = jnp.broadcast_to(jnp.arange(score.shape[-1], dtype=jnp.int32), score.shape)
    last = jnp.iinfo(jnp.int32).max
    in_order = (jnp.where(stays, tokens.frame, last), tokens.place, slot)
    *_, order = jax.lax.sort(in_order, num_keys=2, is_stable=False)
    rank = jnp.where(stays, put(slot, order, slot), -1)
    return Split(stays, order[..., :num_kept], rank, order[..., num_kept:])


def merged(
    tokens: TokenSlots,
    split: Split,
    profile: Float[Array, "B N delta S"],
    weight: Float[Array, "B N delta S"],
    tau: float,
) -> tuple[TokenSlots, Int[Array, "B N"]]:
    """Each evicted value goes into the kept token of nearest profile, if its cosine reaches tau.

    Keys stay as they are. Of equally near tokens the lowest (frame, token) is taken.

    Returns:
      The tokens, and of how many the values were merged.
    """
    evicted = split.evicted
    evicted_profile = jnp.take_along_axis(profile, evicted[:, :, None], axis=3)
    nearest, cosine = route(evicted_profile, profile, split.rank)
    is_merged = take(tokens.frame, evicted) >= 0
    is_merged &= cosine >= tau
    v = merge_values(tokens.v, weight, evicted, take(split.kept, nearest), is_merged)
    return dataclasses.replace(tokens, v=v), jnp.sum(is_merged, axis=-1, dtype=jnp.int32)


def retained(tokens: TokenSlots, split: Split, rope_remap: RopeRemap) -> TokenSlots:
    """Empties the slots of the others and gives the kept tokens their new frame positions.

    Positions begin at 0, and the chunk to come follows the last: ``"slot"``: token p of the kept
    lies in pseudo-frame floor(p / N); ``"frame_rank"``: in the n-th of the frames that have a
    token left. ``"none"``: tokens stay where they are.
    """
    position = tokens.position
    if rope_remap == "slot":
        position = split.rank // tokens.tokens_per_frame
    elif rope_remap == "frame_rank":
        frame = take(tokens.frame, split.kept)
        is_next = frame[..., 1:] != frame[..., :-1]
        number = jnp.cumsum(is_next, axis=-1, dtype=jnp.int32)
        first = jnp.zeros_like(frame[..., :1])
        position = put(position, split.kept, jnp.concatenate([first, number], axis=-1))
    return dataclasses.replace(
        tokens,
        frame=jnp.where(split.stays, tokens.frame, -1),
        position=jnp.where(split.stays, position, tokens.position),
    )

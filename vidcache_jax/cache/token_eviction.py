"""Evicting tokens of `TokenSlots`: who stays, into whom the others are merged, and where they lie.

Each head by itself and in fixed shapes: ``kept`` and ``evicted`` are slots of a stated number,
empty ones among them while the cache is not full.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.cache.token_slots import TokenSlots, put, take
from vidcache_jax.ops.merge import merge_values, route

RopeRemap = Literal["slot", "frame_rank", "none"]


def split(
    tokens: TokenSlots,
    score: Float[Array, "B N S"],
    is_protected: Bool[Array, "B N S"],
    num_kept: int,
) -> tuple[Int[Array, "B N kept"], Int[Array, "B N evicted"]]:
    """Slots of the protected tokens and those of highest score, and of the others.

    Of equal scores the lowest (frame, token) stays. The kept come in that order, empty ones last.
    """
    # Sorts, not comparisons of all pairs: XLA may compute both sides of those separately, with
    # other roundings, and a score can come out greater than itself.
    is_empty = tokens.frame < 0
    group = jnp.where(is_empty, 2, jnp.where(is_protected, 0, 1))
    slot = jnp.broadcast_to(jnp.arange(score.shape[-1], dtype=jnp.int32), score.shape)
    *_, order = jax.lax.sort((group, -score, tokens.frame, tokens.place, slot), num_keys=4)
    kept, evicted = order[..., :num_kept], order[..., num_kept:]
    keys = (take(is_empty, kept), take(tokens.frame, kept), take(tokens.place, kept), kept)
    *_, kept = jax.lax.sort(keys, num_keys=3)
    return kept, evicted


def merged(
    tokens: TokenSlots,
    kept: Int[Array, "B N kept"],
    evicted: Int[Array, "B N evicted"],
    profile: Float[Array, "delta B N S"],
    weight: Float[Array, "delta B N S"],
    tau: float,
) -> TokenSlots:
    """Each evicted value goes into the kept token of nearest profile, if its cosine reaches tau.

    Keys stay as they are. Of equally near tokens the lowest (frame, token) is taken.
    """
    profile_of = lambda slots: jnp.take_along_axis(profile, slots[None], axis=3)
    is_kept, is_evicted = take(tokens.frame, kept) >= 0, take(tokens.frame, evicted) >= 0
    nearest, cosine = route(profile_of(evicted), profile_of(kept), is_kept)
    is_merged = is_evicted & (cosine >= tau)
    target = take(kept, nearest)
    v = merge_values(tokens.v, weight, evicted, target, is_merged)
    return dataclasses.replace(tokens, v=v)


def retained(tokens: TokenSlots, kept: Int[Array, "B N kept"], rope_remap: RopeRemap) -> TokenSlots:
    """Empties every other slot and gives the kept tokens their new frame positions.

    Positions begin at 0, and the chunk to come follows the last: ``"slot"``: token p of the kept
    lies in pseudo-frame floor(p / N); ``"frame_rank"``: in the n-th of the frames that have a
    token left. ``"none"``: tokens stay where they are.
    """
    frame = take(tokens.frame, kept)
    if rope_remap == "slot":
        order = jnp.arange(kept.shape[-1], dtype=jnp.int32) // tokens.tokens_per_frame
        position = jnp.broadcast_to(order, kept.shape)
    elif rope_remap == "frame_rank":
        is_next = frame[..., 1:] != frame[..., :-1]
        rank = jnp.cumsum(is_next, axis=-1, dtype=jnp.int32)
        position = jnp.concatenate([jnp.zeros_like(frame[..., :1]), rank], axis=-1)
    else:
        position = take(tokens.position, kept)
    stays = is_among(kept, tokens)
    return dataclasses.replace(
        tokens,
        frame=jnp.where(stays, tokens.frame, -1),
        position=put(tokens.position, kept, position),
    )


def is_among(kept: Int[Array, "B N kept"], tokens: TokenSlots) -> Bool[Array, "B N S"]:
    """Of each slot, whether it holds one of the kept tokens."""
    return put(jnp.zeros(tokens.frame.shape, bool), kept, take(tokens.frame, kept) >= 0)

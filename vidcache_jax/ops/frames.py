"""Latent frames in slots: arrays [B, N, S, H] of K slots of S / K tokens each."""

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


def put_frames(
    stored: Shaped[Array, "B N S H"],
    slots: Int[Array, "#B F"],
    frames: Shaped[Array, "B N T H"],
) -> Shaped[Array, "B N S H"]:
    """Writes frame i of F into ``slots[:, i]``; every other slot keeps its bits.

    One contiguous update per frame, and per video where each has slots of its own: XLA does these
    in place on a donated buffer.
    """
    tokens = frames.shape[2] // slots.shape[1]
    videos_each = stored.shape[0] // slots.shape[0]
    zero = jnp.zeros((), slots.dtype)
    for row, i in itertools.product(range(slots.shape[0]), range(slots.shape[1])):
        videos = slice(row * videos_each, (row + 1) * videos_each)
        own = frames[videos, :, i * tokens : (i + 1) * tokens]
        corner = (zero + videos.start, zero, slots[row, i] * tokens, zero)
        stored = jax.lax.dynamic_update_slice(stored, own, corner)
    return stored


def take_frames(
    stored: Float[Array, "B N S H"], slots: Int[Array, "B F"], tokens: int
) -> Float[Array, "B N T H"]:
    """The frames of ``tokens`` tokens in each video's ``slots``, in that order."""

    def take(stored: Float[Array, "N S H"], slots: Int[Array, " F"]):
        part = lambda slot: jax.lax.dynamic_slice_in_dim(stored, slot * tokens, tokens, axis=1)
        return jnp.concatenate([part(slots[i]) for i in range(slots.shape[0])], axis=1)

    return jax.vmap(take)(stored, slots)

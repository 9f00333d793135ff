"""Slots of one layer, read and written in buffers that are stacked over layers.

For decisions over all layers (`CachePolicy.settle`): only the slots concerned move, and XLA writes
them in place on a donated buffer.
"""

import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def take_slots(
    stored: Float[Array, "L B N S H"], layer: Int[Array, ""], slots: Int[Array, "B F"], size: int
) -> Float[Array, "B N T H"]:
    """What lies in each video's ``slots``, in that order; ``size`` rows a slot, T = F size."""
    _, _, heads, _, width = stored.shape

    def part(video: int, i: int) -> Float[Array, "N size H"]:
        corner = (layer, video, 0, slots[video, i] * size, 0)
        return jax.lax.dynamic_slice(stored, corner, (1, 1, heads, size, width))[0, 0]

    videos, count = slots.shape
    row = lambda video: jnp.concatenate([part(video, i) for i in range(count)], axis=1)
    return jnp.stack([row(video) for video in range(videos)])


def put_slots(
    stored: Float[Array, "L B N S H"],
    layer: Int[Array, ""],
    slots: Int[Array, "B F"],
    new: Float[Array, "B N T H"],
) -> Float[Array, "L B N S H"]:
    """Writes into each video's ``slots`` what `take_slots` would take; one after the other."""
    size = new.shape[2] // slots.shape[1]
    for video, i in itertools.product(*map(range, slots.shape)):
        corner = (layer, video, 0, slots[video, i] * size, 0)
        part = new[None, video : video + 1, :, i * size : (i + 1) * size]
        stored = jax.lax.dynamic_update_slice(stored, part, corner)
    return stored

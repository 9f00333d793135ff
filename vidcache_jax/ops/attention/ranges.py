"""Blocks of keys that cover what counts, when blocks may begin anywhere.

Slots that count and lie side by side are one range of keys. A range is cut into blocks, the last
of which reaches back over keys that another has counted, so that it needs no keys from beyond the
range: those that are met twice are masked once, and what is hidden is never multiplied.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.ops.attention.keys import Keys


class Blocks(NamedTuple):
    """The blocks of a (video, head): whole ones first, then those with a mask, then nothing."""

    whole: Int[Array, "#B #N"]
    """How many count from the first key to the last."""
    count: Int[Array, "#B #N"]
    """How many count at all."""
    start: Int[Array, "#B #N steps"]
    """The first key."""
    low: Int[Array, "#B #N steps"]
    """Within the block, the first key that counts here,"""
    high: Int[Array, "#B #N steps"]
    """and the end of those that do."""
    bias: Float[Array, "#B #N steps"]
    """What is added to the logits."""
    is_short: Bool[Array, "#B #N steps"]
    """Whether the range is shorter than a block, which then holds hidden keys."""


def cover(keys: Keys, size: int) -> Blocks:
    """Blocks of ``size`` keys over the slots, or the first ``lengths`` keys, that count."""
    lengths = keys.run_lengths()
    bias = jnp.zeros((1, 1, keys.num_runs)) if keys.bias is None else keys.bias
    shape = jnp.broadcast_shapes(lengths.shape, bias.shape)
    of_head = functools.partial(_cover, keys=keys, size=size)
    over_all = jax.vmap(jax.vmap(of_head))
    return over_all(jnp.broadcast_to(lengths, shape), jnp.broadcast_to(bias, shape))


def _cover(lengths: Int[Array, " K"], bias: Float[Array, " K"], keys: Keys, size: int) -> Blocks:
    """Those of one head, without the axes B and N."""
    num_runs = keys.num_runs
    run = jnp.arange(num_runs, dtype=jnp.int32)
    begins = lengths > 0
    if keys.bias is None:
        begins &= ~jnp.pad(lengths[:-1] == keys.run_size, (1, 0))
    # Ranges in order, as many as there are runs at most; those that are not there have length 0.
    of_run = jnp.where(lengths > 0, jnp.cumsum(begins) - 1, num_runs)
    length = jnp.zeros(num_runs, jnp.int32).at[of_run].add(lengths, mode="drop")
    begin, added = (
        jnp.zeros(num_runs, x.dtype).at[jnp.where(begins, of_run, num_runs)].set(x, mode="drop")
        for x in (run * keys.run_size, bias.astype(jnp.float32))
    )

    until = jnp.cumsum(-(-length // size), dtype=jnp.int32)
    step = jnp.arange(num_runs * -(-keys.run_size // size), dtype=jnp.int32)
    own = jnp.searchsorted(until, step, side="right", method="compare_all")
    own = jnp.minimum(own, num_runs - 1)
    begin, length, added = begin[own], length[own], added[own]
    first_step = jnp.pad(until[:-1], (1, 0))[own]
    nominal, end = begin + (step - first_step) * size, begin + length
    start = jnp.maximum(jnp.minimum(nominal, end - size), 0)
    low, high = nominal - start, jnp.minimum(end - start, size)

    is_there = step < until[-1]
    is_whole = is_there & (low == 0) & (high == size)
    order = jnp.argsort(jnp.where(is_whole, 0, jnp.where(is_there, 1, 2)), stable=True)
    in_order = lambda table: jnp.where(is_there, table, jnp.zeros((), table.dtype))[order]
    return Blocks(
        whole=jnp.sum(is_whole, dtype=jnp.int32),
        count=until[-1],
        start=in_order(start),
        low=in_order(low),
        high=in_order(high),
        bias=in_order(added),
        is_short=in_order(length < size),
    )


def short_values(keys: Keys, blocks: Blocks, size: int) -> Float[Array, "B N size H"]:
    """The values of the block of each head that `is_short`, of which it has one at most.

    Hidden ones are 0, so that a weight of 0 times any of them is 0, whatever they hold.
    """
    stacked = keys.v if keys.layer is not None else keys.v[None]
    layer = jnp.zeros((), jnp.int32) if keys.layer is None else keys.layer.astype(jnp.int32)
    batch, num_heads = stacked.shape[1:3]

    def of_head(b, n, start, low, high, is_short) -> jax.Array:
        which = jnp.argmax(is_short)
        corner = (layer, b, n, start[which], jnp.zeros((), jnp.int32))
        values = jax.lax.dynamic_slice(stacked, corner, (1, 1, 1, size, stacked.shape[-1]))[0, 0, 0]
        number = jnp.arange(size, dtype=jnp.int32)
        counts = (number >= low[which]) & (number < high[which])
        return jnp.where(counts[:, None], values, jnp.zeros((), values.dtype))

    tables = (blocks.start, blocks.low, blocks.high, blocks.is_short)
    tables = (jnp.broadcast_to(x, (batch, num_heads, x.shape[-1])) for x in tables)
    over_heads = jax.vmap(of_head, in_axes=(None, 0, 0, 0, 0, 0))
    over_all = jax.vmap(over_heads, in_axes=(0, None, 0, 0, 0, 0))
    return over_all(
        jnp.arange(batch, dtype=jnp.int32), jnp.arange(num_heads, dtype=jnp.int32), *tables
    )

"""Routing and merging for NVIDIA GPUs in Triton; formulas in `ref`.

    route         grid  (video and head; block of evicted profiles)
    merge_values  grid  (video and head; pair)

Routing meets all retained profiles block by block and keeps the best of each evicted one; the
matrix of cosines is never stored. For merging, XLA sorts the pairs by target. The program of the
first pair of each run of equal targets goes through its run twice, to add up weights and then
values, and writes the one value; the others have nothing to do. No order is left to chance.

Nobody has timed them: they are chosen by name only. They need ``pip install -e ".[cuda,triton]"``.
"""

from typing import no_type_check

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl
from jaxtyping import Array, Bool, Float, Int

BLOCK_EVICTED, BLOCK_RETAINED = 32, 64


def route(
    evicted: Float[Array, "B N delta E"],
    retained: Float[Array, "B N delta R"],
    rank: Int[Array, "B N R"],
) -> tuple[Int[Array, "B N E"], Float[Array, "B N E"]]:
    """`ref.route`; it cannot be mapped."""
    batch, num_heads, steps, num_evicted = evicted.shape
    shape = (batch, num_heads, num_evicted)
    return jax_triton.triton_call(
        evicted, retained, rank.astype(jnp.int32),
        kernel=find_nearest,
        out_shape=(
            jax.ShapeDtypeStruct(shape, jnp.int32), jax.ShapeDtypeStruct(shape, jnp.float32)
        ),
        grid=(batch * num_heads, jax_triton.cdiv(num_evicted, BLOCK_EVICTED)),
        num_warps=4,
        steps=steps, num_evicted=num_evicted, num_retained=retained.shape[-1],
        block_evicted=BLOCK_EVICTED, block_retained=BLOCK_RETAINED,
    )  # fmt: skip


def merge_values(
    v: Float[Array, "B N S H"],
    weight: Float[Array, "B N delta S"],
    source: Int[Array, "B N E"],
    target: Int[Array, "B N E"],
    is_merged: Bool[Array, "B N E"],
) -> Float[Array, "B N S H"]:
    """`ref.merge_values`; it has no gradient and cannot be mapped."""
    batch, num_heads, num_slots, head_dim = v.shape
    num_pairs = source.shape[-1]
    # Pairs of one target become neighbours; those that do not count come last.
    pairs = (jnp.where(is_merged, target, num_slots).astype(jnp.int32), source.astype(jnp.int32))
    target, source = jax.lax.sort(pairs, num_keys=2, is_stable=False)
    return jax_triton.triton_call(
        v, weight, source, target,
        kernel=merge_run,
        out_shape=jax.ShapeDtypeStruct(v.shape, v.dtype),
        input_output_aliases={0: 0},
        grid=(batch * num_heads, num_pairs),
        num_warps=1,
        steps=weight.shape[2], num_slots=num_slots, num_pairs=num_pairs, head_dim=head_dim,
        block_steps=jax_triton.next_power_of_2(weight.shape[2]),
        block_channels=jax_triton.next_power_of_2(head_dim),
    )  # fmt: skip


# Triton reads the source: what checks types in tests must not wrap it.
@triton.jit
@no_type_check
def find_nearest(
    evicted, retained, rank,
    nearest, cosine,
    steps: tl.constexpr, num_evicted: tl.constexpr, num_retained: tl.constexpr,
    block_evicted: tl.constexpr, block_retained: tl.constexpr,
):  # fmt: skip
    """The best retained profile of each of one block of evicted ones."""
    head = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * block_evicted + tl.arange(0, block_evicted)
    evicted += head * steps * num_evicted
    retained += head * steps * num_retained
    nothing: tl.constexpr = 2**31 - 1
    best = tl.full((block_evicted,), -float("inf"), tl.float32)
    lowest = tl.full((block_evicted,), nothing, tl.int32)
    own_norm = norms(evicted, row, steps, num_evicted, block_evicted)
    for start in range(0, num_retained, block_retained):
        column = start + tl.arange(0, block_retained)
        other_norm = norms(retained, column, steps, num_retained, block_retained)
        cosines = tl.zeros((block_evicted, block_retained), tl.float32)
        for step in tl.static_range(steps):
            own = unit(evicted + step * num_evicted, row, own_norm, num_evicted)
            other = unit(retained + step * num_retained, column, other_norm, num_retained)
            cosines += own[:, None] * other[None, :]
        ranks = tl.load(rank + head * num_retained + column, mask=column < num_retained, other=-1)
        ranks = tl.where(ranks < 0, nothing, ranks)
        cosines = tl.where(ranks[None, :] < nothing, cosines, -float("inf"))
        highest = tl.max(cosines, axis=1)
        first = tl.min(tl.where(cosines == highest[:, None], ranks[None, :], nothing), axis=1)
        first = tl.where(highest < best, nothing, first)
        lowest = tl.where(highest > best, first, tl.minimum(lowest, first))
        best = tl.maximum(best, highest)
    at = head * num_evicted + row
    tl.store(nearest + at, tl.where(lowest == nothing, 0, lowest), mask=row < num_evicted)
    tl.store(cosine + at, best, mask=row < num_evicted)


@triton.jit
@no_type_check
def norms(profiles, index, steps: tl.constexpr, size: tl.constexpr, block: tl.constexpr):
    squares = tl.zeros((block,), tl.float32)
    for step in tl.static_range(steps):
        part = tl.load(profiles + step * size + index, mask=index < size, other=0.0)
        squares += part * part
    return tl.sqrt_rn(squares)


@triton.jit
@no_type_check
def unit(parts, index, norm, size: tl.constexpr):
    """One step of profiles of norm 1, or 0."""
    part = tl.load(parts + index, mask=index < size, other=0.0)
    return tl.div_rn(part, tl.where(norm > 0, norm, 1.0))


@triton.jit
@no_type_check
def merge_run(
    v, weight, source, target,
    v_out,
    steps: tl.constexpr, num_slots: tl.constexpr, num_pairs: tl.constexpr, head_dim: tl.constexpr,
    block_steps: tl.constexpr, block_channels: tl.constexpr,
):  # fmt: skip
    """All pairs of one target, if this one is the first. The output is v's memory."""
    head, first = tl.program_id(0).to(tl.int64), tl.program_id(1)
    source += head * num_pairs
    target += head * num_pairs
    into = tl.load(target + first)
    previous = tl.load(target + first - 1, mask=first > 0, other=-1)
    if (into == num_slots) | (into == previous):
        return
    step = tl.arange(0, block_steps)
    exists = step < steps
    weights = weight + (head * steps + step) * num_slots
    own = tl.load(weights + into, mask=exists, other=0.0)

    total = own
    end = first
    while tl.load(target + end, mask=end < num_pairs, other=num_slots) == into:
        total += tl.load(weights + tl.load(source + end), mask=exists, other=0.0)
        end += 1

    # Where no weight is given at all, the target keeps its value.
    has_weight = total > 0
    total = tl.where(has_weight, total, 1.0)
    channel = tl.arange(0, block_channels)
    within = channel < head_dim
    values = v + head * num_slots * head_dim + channel
    stays = tl.where(has_weight, tl.div_rn(own, total), 1.0)
    share = tl.sum(tl.where(exists, stays, 0.0)) / steps
    result = share * tl.load(values + into * head_dim, mask=within, other=0.0).to(tl.float32)
    pair = first
    while pair < end:
        giver = tl.load(source + pair)
        given = tl.load(weights + giver, mask=exists, other=0.0)
        share = tl.sum(tl.div_rn(given, total)) / steps
        part = tl.load(values + giver * head_dim, mask=within, other=0.0)
        result += share * part.to(tl.float32)
        pair += 1
    at = v_out + (head * num_slots + into) * head_dim + channel
    tl.store(at, result.to(v_out.dtype.element_ty), mask=within)

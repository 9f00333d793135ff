"""Attention column means for NVIDIA GPUs in Triton; formulas in `ref`.

    sum_exponentials  grid  (video, head and step ahead; block of queries)
    sum_columns       grid  (video, head and step ahead; block of keys)

The two passes of Future Forcing's scoring (arXiv 2605.30083, appendix B). In the first a program
meets all keys, block by block, and writes the log of each of its queries' denominators; in the
second it meets all queries and writes what its keys receive. Logits are formed in both and never
stored, and no order is left to chance. Where the residuals are known there is one pass.

Rotation before them, and the means of what they sum, are in `rotated`, for all heads at once: those
of one would leave part of a large GPU without work in the first pass.

Nobody has timed them: they are chosen by name only. Needs ``pip install -e ".[cuda,triton]"``.
"""

import math
from typing import Any, no_type_check

import jax
import jax.numpy as jnp
import jax_triton
import triton
import triton.language as tl
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.ops.attention import AttentionPart
from vidcache_jax.ops.scoring.ref import ColumnMeans
from vidcache_jax.ops.scoring.rotated import means_of, scored

BLOCKS = {2: (128, 64), 4: (32, 32)}
"""By a number's bytes: tokens of a program, and how many it meets at once. Products of float32 are
no tensor cores' work, and those of larger blocks spill registers."""
LOG2_E = math.log2(math.e)


def column_means(
    q: Float[Array, "B N T H"],
    q_position: Int[Array, "B G T 3"],
    k: Float[Array, "B N S H"],
    k_position: Int[Array, "B G S 3"],
    visible: Bool[Array, "B G S"],
    attended: AttentionPart | None = None,
    *,
    ahead: tuple[int, ...] = (0,),
) -> ColumnMeans:
    """`ref.column_means`; it has no gradient and cannot be mapped."""
    given = scored(q, q_position, k, k_position, visible, attended, ahead)
    return means_of(given, column_sums)


def column_sums(
    q: Float[Array, "B N delta T H"],
    k: Float[Array, "B N S H"],
    visible: Bool[Array, "B G S"],
    log_sum: Float[Array, "B N T"] | None,
) -> Float[Array, "B N delta S"]:
    """As `rotated.means_of` needs them."""
    batch, num_heads, steps, num_queries, head_dim = q.shape
    num_keys = k.shape[2]
    block_own, block_met = BLOCKS[q.dtype.itemsize]
    sizes: dict[str, Any] = dict(
        steps=steps, num_queries=num_queries, num_keys=num_keys, head_dim=head_dim,
        scale=head_dim**-0.5 * LOG2_E, block_own=block_own, block_met=block_met,
        block_channels=max(16, jax_triton.next_power_of_2(head_dim)),
    )  # fmt: skip
    if log_sum is None:
        seen = jnp.broadcast_to(visible, (batch, num_heads, num_keys)).astype(jnp.int32)
        log2_sum = jax_triton.triton_call(
            q, k, seen,
            kernel=sum_exponentials,
            out_shape=jax.ShapeDtypeStruct(q.shape[:-1], jnp.float32),
            grid=(batch * num_heads * steps, jax_triton.cdiv(num_queries, block_own)),
            num_warps=4,
            **sizes,
        )  # fmt: skip
    else:
        log2_sum = jnp.broadcast_to(log_sum[:, :, None] * LOG2_E, q.shape[:-1])
    return jax_triton.triton_call(
        q, k, log2_sum,
        kernel=sum_columns,
        out_shape=jax.ShapeDtypeStruct((batch, num_heads, steps, num_keys), jnp.float32),
        grid=(batch * num_heads * steps, jax_triton.cdiv(num_keys, block_own)),
        num_warps=4,
        **sizes,
    )  # fmt: skip


# Triton reads the source: what checks types in tests must not wrap it.
@triton.jit
@no_type_check
def sum_exponentials(
    q, k, visible,
    log2_sum,
    steps: tl.constexpr, num_queries: tl.constexpr, num_keys: tl.constexpr, head_dim: tl.constexpr,
    scale: tl.constexpr, block_own: tl.constexpr, block_met: tl.constexpr,
    block_channels: tl.constexpr,
):  # fmt: skip
    """Of one block of queries: log2 of the sum of exponentials over visible keys; inf for none."""
    which = tl.program_id(0).to(tl.int64)
    head = which // steps
    k += head * num_keys * head_dim
    visible += head * num_keys
    query = tl.program_id(1) * block_own + tl.arange(0, block_own)
    own = vectors(q + which * num_queries * head_dim, query, num_queries, head_dim, block_channels)
    # Finite from the start: never a difference of infinities.
    top = tl.full((block_own,), -1e38, tl.float32)
    total = tl.zeros((block_own,), tl.float32)
    for start in range(0, num_keys, block_met):
        key = start + tl.arange(0, block_met)
        sees = tl.load(visible + key, mask=key < num_keys, other=0) > 0
        met = vectors(k, key, num_keys, head_dim, block_channels)
        z = tl.dot(own, tl.trans(met), input_precision="ieee") * scale
        z = tl.where(sees[None, :], z, -float("inf"))
        higher = tl.maximum(top, tl.max(z, axis=1))
        total = total * tl.exp2(top - higher) + tl.sum(tl.exp2(z - higher[:, None]), axis=1)
        top = higher
    # Of what is seen, the largest adds 1.
    residual = tl.where(total > 0, top + tl.log2(tl.maximum(total, 1.0)), float("inf"))
    tl.store(log2_sum + which * num_queries + query, residual, mask=query < num_queries)


@triton.jit
@no_type_check
def sum_columns(
    q, k, log2_sum,
    sums,
    steps: tl.constexpr, num_queries: tl.constexpr, num_keys: tl.constexpr, head_dim: tl.constexpr,
    scale: tl.constexpr, block_own: tl.constexpr, block_met: tl.constexpr,
    block_channels: tl.constexpr,
):  # fmt: skip
    """The weight that one block of keys receives from all queries of a step."""
    which = tl.program_id(0).to(tl.int64)
    head = which // steps
    q += which * num_queries * head_dim
    log2_sum += which * num_queries
    key = tl.program_id(1) * block_own + tl.arange(0, block_own)
    own = vectors(k + head * num_keys * head_dim, key, num_keys, head_dim, block_channels)
    received = tl.zeros((block_own,), tl.float32)
    for start in range(0, num_queries, block_met):
        query = start + tl.arange(0, block_met)
        residual = tl.load(log2_sum + query, mask=query < num_queries, other=float("inf"))
        met = vectors(q, query, num_queries, head_dim, block_channels)
        z = tl.dot(own, tl.trans(met), input_precision="ieee") * scale
        received += tl.sum(tl.exp2(z - residual[None, :]), axis=1)
    tl.store(sums + which * num_keys + key, received, mask=key < num_keys)


@triton.jit
@no_type_check
def vectors(x, token, num_tokens: tl.constexpr, head_dim: tl.constexpr, block: tl.constexpr):
    """Of these tokens, [token, channel]; zeros beyond the last."""
    channel = tl.arange(0, block)
    exists = (token < num_tokens)[:, None] & (channel < head_dim)[None, :]
    return tl.load(x + token[:, None] * head_dim + channel[None, :], mask=exists, other=0.0)

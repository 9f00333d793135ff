"""Compiles what calls the Triton kernels for an H100; prints how much each writes in place."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import jax_triton

from vidcache_jax.ops.attention import AttentionPart
from vidcache_jax.ops.merge import triton as merging
from vidcache_jax.ops.recall import Moments, recall
from vidcache_jax.ops.scoring import column_means

COMPUTE_CAPABILITY = 90
HEADS, SLOTS, TOKENS, HEAD_DIM, STEPS = 12, 21, 1560, 128, 6


def edit(keys, mean, variance, *chosen):
    edited, moments = recall(
        keys, Moments(mean, variance), *chosen, tau=0.6, implementation="triton"
    )
    return edited, moments.mean, moments.variance


def receive(q, q_position, k, k_position, visible, *residuals, ahead=(0,)):
    attended = AttentionPart(q, *residuals) if residuals else None
    given = q, q_position, k, k_position, visible
    means = column_means(*given, attended, ahead=ahead, implementation="triton")
    return means.weight, means.logit


def programs() -> Iterator[tuple[Callable[..., Any], Any]]:
    """(function, shapes of its arguments) at Wan's 1.3B, 480 x 832."""
    array = lambda dtype, *shape: jax.ShapeDtypeStruct((1, *shape), dtype)
    moment = array(jnp.float32, HEADS, SLOTS, HEAD_DIM)
    keys = array(jnp.bfloat16, HEADS, SLOTS * TOKENS, HEAD_DIM)
    chosen = array(jnp.int32, 3), array(jnp.bool, 3), array(jnp.bool, SLOTS)
    yield edit, (keys, moment, moment, *chosen)
    evicted, retained = 3 * TOKENS, 15 * TOKENS
    profile = functools.partial(array, jnp.float32, HEADS, STEPS)
    yield merging.route, (profile(evicted), profile(retained), array(jnp.int32, HEADS, retained))
    pair = array(jnp.int32, HEADS, evicted)
    weight = profile(SLOTS * TOKENS)
    yield merging.merge_values, (keys, weight, pair, pair, array(jnp.bool, HEADS, evicted))

    def scored(num_queries, *residuals):
        size, place = SLOTS * TOKENS, functools.partial(array, jnp.int32)
        q = array(jnp.bfloat16, HEADS, num_queries, HEAD_DIM)
        seen = array(jnp.bool, HEADS, size)
        return q, place(1, num_queries, 3), keys, place(HEADS, size, 3), seen, *residuals

    residual = array(jnp.float32, HEADS, evicted)
    yield functools.partial(receive, ahead=tuple(range(1, STEPS + 1))), scored(TOKENS)
    yield receive, scored(evicted, residual, residual)


if __name__ == "__main__":
    # There is no GPU that jax-triton could ask.
    jax_triton.triton_call = functools.partial(
        jax_triton.triton_call, compute_capability=COMPUTE_CAPABILITY
    )
    for function, arguments in programs():
        traced = jax.jit(function).trace(*arguments)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        print(text.count("@triton_kernel_call("), text.count("#stablehlo.output_operand_alias<"))

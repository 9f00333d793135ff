"""The definition over chunks of keys, merged: the logits of all keys never exist at once."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vidcache_jax.array_typing import Heads
from vidcache_jax.ops.attention import ref
from vidcache_jax.ops.attention.keys import Keys

LOGITS_NBYTES = 64 * 2**20
"""Logits that are formed at once; more are formed chunk by chunk."""


def attention(q: Heads, keys: Keys, logits_nbytes: int = LOGITS_NBYTES) -> ref.AttentionPart:
    """`ref.attention` in chunks of keys whose float32 logits take ``logits_nbytes`` at most.

    A chunk is cut out of the layers' stack as it is needed, so that no layer is copied whole.
    Differentiated, a chunk's logits are computed anew instead of kept.
    """
    visible, bias = keys.mask(), keys.key_bias()
    most = max(1, logits_nbytes // (4 * math.prod(q.shape[:3])))
    num_chunks = -(-keys.num_keys // most)
    size = -(-keys.num_keys // num_chunks)

    @jax.checkpoint
    def chunk(index: jax.Array) -> ref.AttentionPart:
        # The last chunk reaches back over keys that have been counted, rather than be smaller.
        start = jnp.minimum(index * size, keys.num_keys - size)
        own = lambda x: None if x is None else jax.lax.dynamic_slice_in_dim(x, start, size, axis=-1)
        seen = own(visible)
        if num_chunks * size > keys.num_keys:
            is_new = (start + jnp.arange(size, dtype=jnp.int32) >= index * size)[None, None, None]
            seen = is_new if seen is None else seen & is_new
        return ref.attention(q, *keys.take(start, size), seen, own(bias))

    first = jnp.zeros((), jnp.int32)
    if num_chunks == 1:
        return ref.attention(q, *keys.take(first, size), visible, bias)
    add = lambda part, index: (ref.merge(part, chunk(index)), None)
    part, _ = jax.lax.scan(add, chunk(first), jnp.arange(1, num_chunks, dtype=jnp.int32))
    return part


def with_gradient(
    attend: Callable[[Heads, Keys], ref.AttentionPart],
) -> Callable[[Heads, Keys], ref.AttentionPart]:
    """A kernel that has no gradient of its own, with that of `attention` above."""

    def differentiable(q: Heads, keys: Keys) -> ref.AttentionPart:
        leaves, treedef = jax.tree.flatten(keys)
        on_leaves = lambda attend: lambda q, *leaves: attend(q, treedef.unflatten(leaves))
        kernel = jax.custom_vjp(on_leaves(attend))

        def backward(inputs, cotangents):
            _, pullback = jax.vjp(on_leaves(attention), *inputs)
            return pullback(cotangents)

        kernel.defvjp(lambda *inputs: (on_leaves(attend)(*inputs), inputs), backward)
        return kernel(q, *leaves)

    return differentiable

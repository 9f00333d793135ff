"""A chunk's attention to cached keys, by each implementation that the device has."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidcache_jax.benchmark.ceilings import Product
from vidcache_jax.benchmark.timing import medians
from vidcache_jax.cache.state import CacheSpec
from vidcache_jax.ops.attention import attention
from vidcache_jax.ops.attention.check import reason_against_here
from vidcache_jax.ops.attention.table import IMPLEMENTATIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionTime:
    """Attributes:
    frames: that count, of as many slots as the largest window has.
    flops: of the product of queries and keys and that of weights and values.
    ceiling: FLOP/s of a matrix product in the same turns.
    """

    implementation: str
    frames: str
    seconds: float
    flops: float
    ceiling: float


def measure_attention(
    spec: CacheSpec, windows: Sequence[int], product: Product, rounds: int
) -> tuple[list[AttentionTime], dict[str, str]]:
    """One layer of a stack of two: windows of all heads, and lengths that differ by head.

    Returns:
      The times, and why the implementations without one cannot do this here.
    """
    slots, tokens = max(windows), spec.tokens_per_frame
    num_queries = spec.frames_per_chunk * tokens
    make = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape, spec.dtype)
    heads = (spec.batch, spec.num_heads)
    q = make(0, *heads, num_queries, spec.head_dim)
    k, v = (make(seed, 2, *heads, slots * tokens, spec.head_dim) for seed in (1, 2))
    # Frames of each head, and how they are said.
    counts = {str(window): np.full(spec.num_heads, window) for window in windows}
    said = {text: {"slots": jnp.arange(slots)[None, None] < count[0]}
            for text, count in counts.items()}  # fmt: skip
    by_head = np.linspace(1, slots, spec.num_heads).round().astype(np.int32)
    counts[ragged := f"1 to {slots}"] = by_head
    said[ragged] = {"lengths": jnp.asarray(by_head)[None] * tokens}

    def call(name: str, text: str):
        attend = jax.jit(functools.partial(_attend, name))
        return lambda: attend(q, k, v, jnp.ones((), jnp.int32), said[text])

    calls, reasons = {}, {}
    for name, each in IMPLEMENTATIONS.items():
        if reason := reason_against_here(each, spec.head_dim, spec.dtype):
            reasons[name] = reason
            continue
        try:
            jax.block_until_ready(call(name, str(slots))())
        except (NotImplementedError, ValueError) as error:
            reasons[name] = str(error)
        else:
            calls |= {(name, text): call(name, text) for text in said}
    named = {str(key): each for key, each in calls.items()}
    seconds = medians({"product": product.call, **named}, rounds)
    pairs = spec.batch * num_queries * tokens
    return [
        AttentionTime(
            implementation=name,
            frames=text,
            seconds=seconds[str((name, text))],
            flops=4 * pairs * int(counts[text].sum()) * spec.head_dim,
            ceiling=product.rate(seconds["product"]),
        )
        for name, text in calls
    ], reasons


def _attend(name: str, q: Any, k: Any, v: Any, layer: Any, said: Any) -> Any:
    return attention(q, k, v, layer=layer, **said, implementation=name).out

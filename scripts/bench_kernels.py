"""Times what policies do when a chunk is committed, by each implementation that the device has.

    python scripts/bench_kernels.py                          # one layer of Wan's 1.3B, 480 x 832
    python scripts/bench_kernels.py --heads 2 --grid 6 10    # a small one, for a CPU

TetherCache's `recall` and `store` (`ops.recall`) and Future Forcing's `route` and `merge_values`
(`ops.merge`) and its two scorings (`ops.scoring`), keys or values alone, in bfloat16: medians of
calls in turns, each with the buffer that the call before it wrote. Every token of three evicted
frames is merged, half of them into few targets. Scored are a frame's proxies six steps ahead, and
the chunk's queries, whose residuals are known.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.console import Console
from rich.table import Table

from vidcache_jax.benchmark.timing import medians
from vidcache_jax.cache.slots import grid_positions
from vidcache_jax.ops.attention import AttentionPart
from vidcache_jax.ops.merge import merge_values, route
from vidcache_jax.ops.recall import recall, store
from vidcache_jax.ops.recall.moments import frame_moments
from vidcache_jax.ops.scoring import column_means

IMPLEMENTATIONS = ("xla", "tpu", "triton")
FRAMES, STEPS = 3, 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Sizes."""

    heads: int = 12
    head_dim: int = 128
    grid: tuple[int, int] = (30, 52)
    slots: int = 21
    rounds: int = 20


def main(args: Args) -> None:
    console = Console(width=100)
    table = Table("operation", "implementation", "time", title=jax.devices()[0].device_kind)
    for what, (function, written, given) in operations(args).items():
        calls = {}
        for name in IMPLEMENTATIONS:
            call = in_turn(functools.partial(function, implementation=name), written, given)
            try:
                jax.block_until_ready(call())
            except Exception as error:  # whatever a kernel lacks here
                reason = str(error).splitlines()[0]
                console.print(f"not {what} on {name!r}: {reason}", markup=False)
            else:
                calls[name] = call
        for name, seconds in medians(calls, args.rounds).items():
            table.add_row(what, name, f"{1e3 * seconds:.3f} ms")
    console.print(table)


def in_turn(function: Callable[..., Any], written: Any, given: Any) -> Callable[[], Any]:
    """A call that writes into what it wrote before, if it writes in place."""
    jitted = jax.jit(function, donate_argnums=0)
    held = [jax.tree.map(jnp.copy, written)]

    def call():
        result = jitted(held[0], *given)
        if written is not None:
            held[0] = result
        return result

    return call


def operations(args: Args) -> dict[str, tuple[Callable[..., Any], Any, Any]]:
    """(function, what it writes in place or None, its other arguments)."""
    tokens = args.grid[0] * args.grid[1]
    keys = iter(jax.random.split(jax.random.key(0), 9))
    normal = lambda *shape: jax.random.normal(next(keys), (1, args.heads, *shape), jnp.float32)
    uniform = lambda *shape: jax.random.uniform(next(keys), (1, args.heads, *shape))
    x = normal(args.slots * tokens, args.head_dim).astype(jnp.bfloat16)
    chunk = normal(FRAMES * tokens, args.head_dim).astype(jnp.bfloat16)
    places = jnp.arange(FRAMES, dtype=jnp.int32)[None]
    trusted = jnp.arange(args.slots)[None] >= FRAMES

    size, evicted = args.slots * tokens, FRAMES * tokens
    order = jax.random.permutation(next(keys), size).astype(jnp.int32)
    source, retained = order[:evicted], order[evicted:]
    # Half of them each into its own, the others into 97 targets.
    crowd = jnp.arange(evicted, dtype=jnp.int32)
    target = retained[jnp.where(crowd % 2 == 0, crowd, crowd % 97)]
    of_all = lambda row: jnp.broadcast_to(row, (1, args.heads, row.shape[0]))
    rank = of_all(jnp.arange(size - evicted, dtype=jnp.int32))

    def recalled(written, *given, implementation):
        return recall(*written, *given, tau=0.6, implementation=implementation)

    def stored(written, *given, implementation):
        return store(*written, *given, implementation=implementation)

    def routed(_, *given, implementation):
        return route(*given, implementation=implementation)

    def foreseen(_, *given, implementation):
        return column_means(*given, ahead=tuple(range(1, STEPS + 1)), implementation=implementation)

    def received(_, *given, implementation):
        return column_means(*given, implementation=implementation)

    at = lambda first, count: grid_positions(first + jnp.arange(count)[None], args.grid)
    cached = x, jnp.broadcast_to(at(0, args.slots), (1, args.heads, size, 3)), of_all(order >= 0)
    # As of logits of mean 0 and variance 1; any would do.
    log_sum = jnp.full(chunk.shape[:3], math.log(size) + 0.5, jnp.float32)
    attended = AttentionPart(chunk.astype(jnp.float32), log_sum, jnp.ones_like(log_sum))
    frames = x, frame_moments(x, args.slots)
    return {
        "recall": (recalled, frames, (places, jnp.full((1, FRAMES), True), trusted)),
        "store": (stored, frames, (chunk, places)),
        "route": (routed, None, (normal(STEPS, evicted), normal(STEPS, size - evicted), rank)),
        "merge_values": (
            merge_values, x,
            (uniform(STEPS, size), of_all(source), of_all(target), of_all(source >= 0)),
        ),
        "column_means": (foreseen, None, (chunk[:, :, :tokens], at(args.slots, 1), *cached)),
        "column_means, residuals known": (
            received, None, (chunk, at(args.slots, FRAMES), *cached, attended)
        ),
    }  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

"""What ISPA costs and what it frees; prints two tables.

    python scripts/bench_ispa.py                  # needs some GiB of memory and some minutes
    python scripts/bench_ispa.py --width 128      # in small

*Computed*, at the real shape of Wan 1.3B (1,560 tokens a frame, chunks of three frames, bfloat16):
FLOPs that the compiler's `cost_analysis` counts in a denoise pass of one layer over a full window.
After the transition the program has a branch for each layer and video; the kinds are counted with
the table of kinds known to the compiler, which then drops the other branch. *Chunk* is thirty
layers, four denoise passes and the commit pass counted as a fifth.

*Solve* is the whole solution for dW and its residuals, timed on this machine.

*Measured* on this machine, float32: a random model that is small but for its cache of thirty
layers. *Peak* is the largest resident size of the process while one chunk is made, or while the
transition is, less that of the process before there was a cache (Linux resets it on request).
"""

import ctypes
import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import vidcache_jax as vj
from vidcache_jax.cache import CacheSpec, absorption
from vidcache_jax.cache.absorbed import AbsorbedCache
from vidcache_jax.cache.slots import empty_slots
from vidcache_jax.models import wan_dit
from vidcache_jax.sampling.rollout import Rollout

LAYER = dataclasses.replace(vj.WanConfig.wan_1_3b(), num_layers=1)
WINDOW = vj.SlidingWindow(window_size=12, sink_size=3)
LAYERS, PASSES, FRAMES, WARM_CHUNKS, LATENTS = 30, 5, 3, 4, (60, 104)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Sizes of what is measured."""

    width: int = 1536
    """Model width D of the solve that is timed."""
    ratio: float = 0.5
    computed: bool = True
    """Compile the programs of the real shape; that takes some minutes."""


def main(args: Args) -> None:
    console = Console(width=100)
    if args.computed:
        console.print(computed(args.ratio))
    seconds = solve_seconds(args.width)
    console.print(f"solve, width {args.width}: {seconds:.2f} s a layer and video")
    console.print(measured(args.ratio))


def computed(ratio: float) -> Table:
    """FLOPs of a pass of one layer, and of a chunk."""
    ispa = vj.ISPA(WINDOW, ratio=ratio)
    spec = wan_dit.cache_spec(LAYER, 1, LATENTS, FRAMES, jnp.bfloat16)
    stacked = jax.eval_shape(lambda: WINDOW.init_layers(spec, 1))
    statistics = jax.eval_shape(lambda: ispa.init_statistics(spec, 1))
    base, warm = flops(WINDOW, stacked), flops(ispa, stacked, statistics)
    window, local = (flops(ispa.absorbed, absorbed(spec, kind)) for kind in (False, True))
    both = flops(ispa.absorbed, absorbed(spec, None))
    after = (1 - ratio) * window + ratio * local
    table = Table("layer", "FLOPs of a pass", "of a chunk", "of the base's", title="Wan 1.3B")
    for name, per_layer in (("base window of 12", base), ("warm-up", warm), ("F-layer", window),
                            ("L-layer", local), (f"all after, ratio {ratio}", after),
                            ("either, as one program is counted", both)):  # fmt: skip
        shown = (per_layer, per_layer * LAYERS * PASSES)
        table.add_row(name, *(f"{x:.4g}" for x in shown), f"{per_layer / base:.1%}")
    return table


def absorbed(spec: CacheSpec, is_local: bool | None) -> AbsorbedCache:
    """An abstract cache of one layer of a known kind; None: known when it runs."""

    def empty() -> AbsorbedCache:
        rows = lambda num_slots: jax.tree.map(lambda leaf: leaf[None], empty_slots(spec, num_slots))
        table = jnp.zeros((1, 1))
        return AbsorbedCache(
            windows=rows(WINDOW.window_size),
            sinks=rows(1),
            output_delta=jnp.zeros((1, 1, LAYER.dim, LAYER.dim), spec.dtype),
            is_local=table > 0,
            row=table.astype(jnp.int32),
            residual_before=table,
            residual_after=table,
        )

    cache = jax.eval_shape(empty)
    if is_local is None:
        return cache
    return dataclasses.replace(cache, is_local=jnp.full((1, 1), is_local))


def flops(policy, cache, statistics=None) -> float:
    """Of the optimised program of a denoise pass; concrete leaves of the cache are constants."""
    leaves, treedef = jax.tree.flatten(cache)
    is_known = [isinstance(leaf, jax.Array) for leaf in leaves]

    def denoise(params, latents, timestep, text, given, start, statistics):
        given = iter(given)
        own = [leaf if known else next(given) for leaf, known in zip(leaves, is_known, strict=True)]
        cache = jax.tree.unflatten(treedef, own)
        return wan_dit.denoise(
            params, LAYER, policy, latents, timestep, text, cache, start, statistics
        )

    compiled = (
        jax.jit(denoise)
        .lower(
            wan_dit.abstract_params(LAYER, jnp.bfloat16),
            jax.ShapeDtypeStruct((1, FRAMES, *LATENTS, LAYER.in_dim), jnp.bfloat16),
            jax.ShapeDtypeStruct((1, FRAMES), jnp.float32),
            wan_dit.abstract_text(LAYER, 1, jnp.bfloat16),
            [leaf for leaf, known in zip(leaves, is_known, strict=True) if not known],
            jax.ShapeDtypeStruct((), jnp.int32),
            statistics,
        )
        .compile()
    )
    analysis = compiled.cost_analysis()
    if analysis is None:
        raise RuntimeError("this backend has no cost analysis")
    return analysis["flops"]


def solve_seconds(width: int) -> float:
    """Of one layer and video, compiled before."""
    rng = np.random.default_rng(0)
    local = jnp.asarray(rng.standard_normal((1, 1, 2 * width, width)), jnp.float32)
    noise = jnp.asarray(rng.standard_normal(local.shape), jnp.float32)
    statistics = jax.tree.map(
        lambda x: x[None], absorption.stream_statistics(local, local + 0.1 * noise)
    )
    kernels = jnp.asarray(rng.standard_normal((1, width, width)), jnp.float32)
    solve = lambda: jax.block_until_ready(
        absorption.absorb(statistics, kernels, ridge="frobenius", mu0=1e-3, rank=None)
    )
    solve()
    start = time.perf_counter()
    solve()
    return time.perf_counter() - start


def measured(ratio: float) -> Table:
    """Peaks of a process whose cache is most of what it holds."""
    config = vj.WanConfig(
        dim=256, ffn_dim=64, num_heads=2, num_layers=LAYERS, freq_dim=16, text_len=4, text_dim=8,
        in_dim=4, out_dim=4,
    )  # fmt: skip
    sampler = vj.RolloutConfig(denoise_timesteps=(1000,))
    policy = vj.ISPA(WINDOW, ratio=ratio)
    rollout, size = Rollout(config, sampler, policy), (16, 32)
    params = jax.jit(wan_dit.init_params, static_argnums=0)(config, jax.random.key(0))
    text = wan_dit.encode_text(params, config, jnp.ones((1, 4, 8)))
    noise, fresh = jnp.ones((1, FRAMES, *size, 4)), jnp.ones((0, 1, FRAMES, *size, 4))
    step = jax.jit(Rollout.step, static_argnums=0, donate_argnums=2)
    table = Table("MiB", "cache", "statistics", "peak", title=f"{LAYERS} layers, ratio {ratio}")
    # The first video compiles everything, the second is looked at.
    for is_looked_at in (False, True):
        state = None
        reset_peak()
        current, floor = rollout, memory("VmRSS")
        state = current.init(1, size, jnp.float32)
        for index in range(WARM_CHUNKS + 2):
            reset_peak()
            current, state = current.advance(params, state, index * FRAMES)
            jax.block_until_ready(state)
            peaks = {"the transition": memory("VmHWM")}
            reset_peak()
            state, _ = jax.block_until_ready(step(current, params, state, text, noise, fresh))
            peaks[f"chunk {index + 1}"] = memory("VmHWM")
            held = (wan_dit.cache_nbytes(state.cache), wan_dit.cache_nbytes(state.statistics))
            for name, peak in peaks.items():
                if is_looked_at and index >= WARM_CHUNKS - (not name.startswith("the")):
                    shown = (*held, peak - floor)
                    table.add_row(name, *(f"{x / 2**20:.1f}" for x in shown))
    return table


def memory(field: str) -> int:
    """Bytes of the process by the kernel's account."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if field in line)


def reset_peak() -> None:
    # What was freed goes back first, or it would count as used.
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

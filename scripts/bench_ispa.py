"""What ISPA costs and what it frees; prints three tables.

    python scripts/bench_ispa.py
    python scripts/bench_ispa.py --width 128 --rounds 5      # in small

*Computed*, at the real shape of Wan 1.3B (1,560 tokens a frame, chunks of three frames, four
denoise passes and the commit pass): FLOPs by the formulas of `vidcache_jax.planning.counts`, and of
the three products that the warm-up adds. A query attends to twelve frames, in an L-layer to four.

*Solve* is the whole solution for dW and its residuals, timed on this machine.

*Measured* on this machine, float32: a random model that is small but for its cache of thirty
layers. *Peak* is the largest resident size of the process while one chunk is made, or while the
transition is, less that of the process before there was a cache (Linux resets it on request).

*Speed* is that of the built-in model on this machine: a chunk from its dispatch to its uint8 frames
on the host, medians, the three taking turns in one run; their windows are full.
"""

import ctypes
import dataclasses
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import vidcache_jax as vj
from vidcache_jax.cache import absorption
from vidcache_jax.models import wan_dit
from vidcache_jax.planning.counts import chunk_work
from vidcache_jax.sampling.rollout import Rollout

WINDOW = vj.SlidingWindow(window_size=12, sink_size=3)
LAYERS, FRAMES, WARM_CHUNKS, LATENTS = 30, 3, 4, (60, 104)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Sizes of what is measured."""

    width: int = 1536
    """Model width D of the solve that is timed."""
    ratio: float = 0.5
    rounds: int = 40
    """Chunks of each kind that are timed."""


def main(args: Args) -> None:
    console = Console(width=100)
    console.print(computed(args.ratio))
    seconds = solve_seconds(args.width)
    console.print(f"solve, width {args.width}: {seconds:.2f} s a layer and video")
    console.print(measured(args.ratio))
    console.print(speed(args.rounds))


def computed(ratio: float) -> Table:
    """FLOPs of a chunk, all layers of one kind and as they are mixed."""
    config, sampler = (
        vj.WanConfig.wan_1_3b(),
        vj.RolloutConfig(denoise_timesteps=(1000, 750, 500, 250)),
    )
    work = lambda frames: chunk_work(config, sampler, LATENTS, frames).total
    rows, columns = config.token_grid(*LATENTS)
    passes = len(sampler.denoise_timesteps) + 1
    # G, C and F of each layer and pass, which multiply two streams of the chunk's tokens.
    gathered = 3 * 2 * FRAMES * rows * columns * config.dim**2 * config.num_layers * passes
    base, local = work(WINDOW.window_size), work(vj.ISPA(WINDOW).sink_frames + FRAMES)
    table = Table("layers", "FLOPs of a chunk", "of the base's", title="Wan 1.3B")
    for name, flops in (
        ("base window of 12, and F-layers", base),
        ("warm-up", base + gathered),
        ("L-layers", local),
        (f"after the warm-up, ratio {ratio}", (1 - ratio) * base + ratio * local),
    ):
        table.add_row(name, f"{flops:.4g}", f"{flops / base:.1%}")
    return table


def solve_seconds(width: int) -> float:
    """Of one layer and video, compiled before."""
    rng = np.random.default_rng(0)
    local = jnp.asarray(rng.standard_normal((1, 1, 2 * width, width)), jnp.float32)
    noise = jnp.asarray(rng.standard_normal(local.shape), jnp.float32)
    gathered = jax.tree.map(
        lambda x: x[None], absorption.stream_statistics(local, local + 0.1 * noise)
    )
    kernels = jnp.asarray(rng.standard_normal((1, width, width)), jnp.float32)

    def solve():
        jax.block_until_ready(absorption.energies(gathered, kernels))
        gram, cross = gathered.local_local, gathered.local_full
        layers = np.zeros((1, 1), int)
        jax.block_until_ready(
            absorption.solve_layers(gram, cross, kernels, layers, "frobenius", 1e-3, rank=None)
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
    return_what_is_freed()
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


def speed(rounds: int) -> Table:
    """Of sessions that make their chunks side by side."""
    model, window = vj.load_model("tiny"), vj.SlidingWindow(window_size=21, sink_size=3)
    policies = {
        "base window of 21": window,
        "warm-up": vj.ISPA(window, warmup_frames=10**6 * FRAMES),
        "afterwards": vj.ISPA(window),
    }
    until_full = window.window_size // FRAMES + 2
    chunks_a_second = model.frames_per_second / FRAMES
    seconds = (until_full + rounds) / chunks_a_second
    videos = [
        vj.Session(model, policy, prompt="a red circle bounces").generate(seconds)
        for policy in policies.values()
    ]
    times: dict[str, list[float]] = {name: [] for name in policies}
    for _ in range(until_full + rounds):
        for name, video in zip(policies, videos, strict=True):
            start = time.perf_counter()
            frames = next(video)
            times[name].append((time.perf_counter() - start) / len(frames))
    medians = {name: statistics.median(own[until_full:]) for name, own in times.items()}
    table = Table("built-in model", "frames a second", "of the base's", title="speed")
    base = medians["base window of 21"]
    for name, median in medians.items():
        table.add_row(name, f"{1 / median:.0f}", f"{base / median:.2f}")
    return table


def return_what_is_freed() -> None:
    """Makes the C library give freed buffers back at once, as the allocator of a chip does.

    By default it keeps those of less than 32 MiB, and the largest size would be that of a heap
    with holes.
    """
    m_mmap_threshold, nbytes = -3, 64 * 1024
    ctypes.CDLL("libc.so.6").mallopt(m_mmap_threshold, nbytes)


def memory(field: str) -> int:
    """Bytes of the process by the kernel's account."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if field in line)


def reset_peak() -> None:
    # A program's results are there a moment before its threads have freed what it used; and what
    # was freed goes back first, or it would count as used.
    time.sleep(0.1)
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

"""What TetherCache costs over a sliding window of the same budget; prints two tables.

    python scripts/bench_tether.py                  # needs the extra: pip install -e ".[convert]"
    python scripts/bench_tether.py --grid 6 8       # in small
    JAX_PLATFORMS=cpu python scripts/bench_tether.py --topology v5e:2x2

Both tables are of one layer of Wan 1.3B (12 heads of 128 channels) with sink 3, memory 14, recent
4 and chunks of three frames.

*Computed*: the compiler's `cost_analysis` of programs that are compiled and never run, at the real
1,560 tokens a frame in bfloat16. A chunk is four denoise passes and one commit pass. *Update* is
the policy's `commit` by itself; what it costs more than the window's is the price of the policy.
The compiled attention stores its logits, which makes most of a chunk's bytes, so the chunk is also
counted by hand, for an attention that does not. With `--topology` the programs are compiled for one
chip of such a TPU, of which there need be none (extra `tpu`); what the compiler calls bytes then
includes those that never leave the chip.

*Timed*, float32 on this machine, at a smaller grid: medians, the three taking turns in one run.
The released operations are GRAB with every logit formed and TAME over the frames themselves, on
PyTorch, written for this script from the description in `cache/grab.py` and `ops/recall/ref.py`.
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from jax.sharding import SingleDeviceSharding
from rich.console import Console
from rich.table import Table

import vidcache_jax as vj
from vidcache_jax.cache import CacheSpec, Chunk
from vidcache_jax.models import wan_dit
from vidcache_jax.planning.topology import tpu_devices
from vidcache_jax.testing import chunk_of

TETHER = vj.TetherCache(sink_size=3, memory_size=14, recent_size=4)
WINDOW = vj.SlidingWindow(window_size=TETHER.budget, sink_size=3)
LAYER = dataclasses.replace(vj.WanConfig.wan_1_3b(), num_layers=1)
FRAMES, DENOISE_PASSES = 3, 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Sizes of what is timed."""

    grid: tuple[int, int] = (15, 26)
    """Rows and columns of tokens in a frame; the real model's are 30 and 52."""
    rounds: int = 7
    topology: str | None = None
    """A TPU to compile for; the default is the machine itself."""


def main(args: Args) -> None:
    console = Console(width=100)
    console.print(computed(chip_of(args.topology) if args.topology else None))
    console.print(timed(args))


def chip_of(topology: str) -> SingleDeviceSharding:
    """One chip of a TPU that need not be there."""
    return SingleDeviceSharding(tpu_devices(topology)[0])


def computed(chip: SingleDeviceSharding | None) -> Table:
    """FLOPs, bytes and buffers at the real shape, one layer, compiled for a chip."""
    latent_size = (60, 104)
    spec = wan_dit.cache_spec(LAYER, 1, latent_size, FRAMES, jnp.bfloat16)
    chunk = chunk_cost(WINDOW, spec, latent_size, chip)
    update = {policy: update_cost(policy, spec, chip) for policy in (WINDOW, TETHER)}
    nbytes = {policy: wan_dit.cache_nbytes(abstract_cache(policy, spec)) for policy in update}
    table = Table("computed, one layer of Wan 1.3B", "FLOPs", "bytes", title="chunk of 3 x 1560")
    table.add_row("chunk with the window", *(f"{x:.3g}" for x in chunk))
    for policy, cost in update.items():
        table.add_row(f"update, {type(policy).__name__}", *(f"{x:.3g}" for x in cost))
    more = [
        f"{(tether - window) / whole:.3%}"
        for tether, window, whole in zip(update[TETHER], update[WINDOW], chunk, strict=True)
    ]
    table.add_row("TetherCache's share of the chunk", *more)
    fused = fused_chunk_bytes(spec)
    share = (update[TETHER][1] - update[WINDOW][1]) / fused
    table.add_row("chunk, no logit stored (at least)", "", f"{fused:.3g}")
    table.add_row("TetherCache's share of that", "", f"{share:.3%}")
    extra = nbytes[TETHER] / nbytes[WINDOW] - 1
    table.add_row("more memory than the window", "", f"{extra:.3%}")
    return table


def abstract_cache(policy: vj.CachePolicy, spec: CacheSpec):
    return jax.eval_shape(lambda: policy.init(spec))


def abstract_chunk(spec: CacheSpec) -> Chunk:
    tokens = spec.frames_per_chunk * spec.tokens_per_frame
    shape = (spec.batch, spec.num_heads, tokens, spec.head_dim)
    zeros = lambda: jnp.zeros(shape, spec.dtype)
    start = jnp.zeros((), jnp.int32)
    return jax.eval_shape(lambda: chunk_of(spec, zeros(), zeros(), zeros(), start))


def cost(function: Callable, *abstract, chip, donate: tuple[int, ...] = ()) -> np.ndarray:
    """[FLOPs, bytes accessed] of the optimised program; a loop would be counted once."""
    on_chip = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip)
    abstract = jax.tree.map(on_chip, abstract)
    compiled = jax.jit(function, donate_argnums=donate).lower(*abstract).compile()
    analysis = compiled.cost_analysis()
    if analysis is None:
        raise RuntimeError("this backend has no cost analysis")
    return np.array([analysis["flops"], analysis["bytes accessed"]])


def update_cost(policy: vj.CachePolicy, spec: CacheSpec, chip) -> np.ndarray:
    inputs = (abstract_cache(policy, spec), abstract_chunk(spec))
    return cost(policy.commit, *inputs, chip=chip, donate=(0,))


def chunk_cost(
    policy: vj.CachePolicy, spec: CacheSpec, latent_size: tuple[int, int], chip
) -> np.ndarray:
    """Denoise passes and commit pass of one layer over a full cache."""
    cache = jax.eval_shape(lambda: policy.init_layers(spec, 1))
    inputs = (
        wan_dit.abstract_params(LAYER, spec.dtype),
        jax.ShapeDtypeStruct((1, FRAMES, *latent_size, LAYER.in_dim), spec.dtype),
        jax.ShapeDtypeStruct((1, FRAMES), jnp.float32),
        wan_dit.abstract_text(LAYER, 1, spec.dtype),
        cache,
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    denoise = lambda params, *rest: wan_dit.denoise(params, LAYER, policy, *rest)
    commit = lambda params, *rest: wan_dit.commit(params, LAYER, policy, *rest)
    passes = cost(denoise, *inputs, chip=chip), cost(commit, *inputs, chip=chip, donate=(4,))
    return DENOISE_PASSES * passes[0] + passes[1]


def fused_chunk_bytes(spec: CacheSpec) -> float:
    """What a chunk must move with an attention kernel that keeps its logits on the chip.

    A pass reads the layer's weights and cache once, and writes and reads what lies between its
    matrix products: twelve activations as wide as the model and two of the feed-forward's width.
    """
    item = jnp.dtype(spec.dtype).itemsize
    weights = wan_dit.abstract_params(LAYER, spec.dtype)["blocks"]
    cache = abstract_cache(WINDOW, spec)
    tokens = spec.frames_per_chunk * spec.tokens_per_frame
    activations = 2 * tokens * (12 * LAYER.dim + 2 * LAYER.ffn_dim) * item
    one_pass = wan_dit.cache_nbytes(weights) + wan_dit.cache_nbytes(cache) + activations
    return (DENOISE_PASSES + 1.0) * one_pass


def timed(args: Args) -> Table:
    """Milliseconds of one layer's update with a full cache."""
    spec = CacheSpec(
        batch=1, num_heads=12, head_dim=128, grid=args.grid, frames_per_chunk=FRAMES,
        dtype=jnp.float32,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    tokens = spec.tokens_per_frame
    draw = lambda frames: rng.standard_normal((1, 12, frames * tokens, 128)).astype(np.float32)
    times: dict[str, list[float]] = {}
    updates = {type(policy).__name__: updater(policy, spec, draw) for policy in (WINDOW, TETHER)}
    updates["released operations"] = released_updater(tokens, draw)
    for _ in range(args.rounds + 1):
        for name, update in updates.items():
            start = time.perf_counter()
            update()
            times.setdefault(name, []).append(time.perf_counter() - start)
    medians = {name: statistics.median(own[1:]) for name, own in times.items()}
    title = f"{args.grid[0]} x {args.grid[1]} tokens a frame, float32, {jax.devices()[0]}"
    table = Table("timed, update of one layer", "ms", "of the released", title=title)
    for name, median in medians.items():
        share = median / medians["released operations"]
        table.add_row(name, f"{1e3 * median:.1f}", f"{share:.2%}")
    return table


def updater(policy: vj.CachePolicy, spec: CacheSpec, draw: Callable) -> Callable[[], None]:
    """Commits chunk after chunk to a cache that is full already."""
    commit = jax.jit(policy.commit, donate_argnums=0)
    q, k, v = (jnp.asarray(draw(FRAMES)) for _ in range(3))
    state = {"cache": jax.tree.map(jnp.copy, policy.init(spec)), "start": 0}

    def update() -> None:
        chunk = chunk_of(spec, q, k, v, jnp.asarray(state["start"], jnp.int32))
        state["cache"] = jax.block_until_ready(commit(state["cache"], chunk))
        state["start"] += FRAMES

    for _ in range(TETHER.budget // FRAMES + 1):
        update()
    return update


def released_updater(tokens: int, draw: Callable) -> Callable[[], None]:
    """GRAB over all pairs of tokens, TAME over the trusted tokens, and the shift of the buffer."""
    memory, sink = TETHER.memory_size, TETHER.sink_size
    torch_of = lambda frames: torch.from_numpy(draw(frames))
    buffer = {name: torch_of(TETHER.budget) for name in "kv"}
    query, fresh = torch_of(FRAMES), {name: torch_of(FRAMES) for name in "kv"}
    numbers = torch.arange(memory + FRAMES)

    def frames(x: torch.Tensor, first: int, count: int) -> torch.Tensor:
        return x[:, :, first * tokens : (first + count) * tokens]

    @torch.no_grad()
    def update() -> None:
        candidates = {name: frames(x, sink, memory + FRAMES) for name, x in buffer.items()}
        logits = query @ candidates["k"].transpose(-1, -2) / math.sqrt(query.shape[-1])
        mass = logits.unflatten(-1, (-1, tokens)).mean(dim=(0, 1, 2, 4)).softmax(dim=0)
        span = (numbers.max() - numbers.min() + 1).item()
        distance = (numbers[:, None] - numbers[None]).abs() / max(1.0, 0.5 * span)
        near = torch.exp(-distance).fill_diagonal_(0) * mass
        score = mass + TETHER.alpha * (1 - near.max(dim=1).values).clamp(min=0)
        kept = score.topk(memory).indices.sort().values.tolist()
        for name, x in buffer.items():
            trusted = frames(x, 0, sink + memory)
            mean, std = trusted.mean(2, keepdim=True), trusted.std(2, keepdim=True, correction=0)
            new = []
            for index in kept:
                frame = frames(candidates[name], index, 1)
                if index >= memory:
                    own_std = frame.std(2, keepdim=True, correction=0).clamp(min=1e-6)
                    moved = std * (frame - frame.mean(2, keepdim=True)) / own_std + mean
                    frame = (1 - TETHER.tau) * frame + TETHER.tau * moved
                new.append(frame)
            last = frames(x, TETHER.budget - 1, 1)
            x.copy_(torch.cat([frames(x, 0, sink), *new, last, fresh[name]], dim=2))

    return update


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

"""Measures Wan's DiT on the CPU: a chunk of the full 1.3B, and a small one beside diffusers'.

    python scripts/bench_wan.py

Weights are random. *Chunk*: every denoise pass and the commit pass of one chunk of three latent
frames, as `vidcache generate` runs them, without text encoder and VAE, in a process of its own;
*peak memory* is the largest resident size of that process. *Pass*: one forward of a small model
over one clip of three latent frames, text embedding included, by diffusers'
``WanTransformer3DModel`` and by `wan_dit.denoise`, which besides attends to an empty cache of the
clip's size. Both have the same weights; they take turns, and the median counts.
"""

import dataclasses
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from rich.console import Console
from rich.table import Table

from checkpoints_convert import convert_dit
from vidcache_jax.array_typing import Params
from vidcache_jax.cache import FullCache, SlidingWindow
from vidcache_jax.config import RolloutConfig, WanConfig
from vidcache_jax.models import wan_dit
from vidcache_jax.sampling.rollout import Rollout, chunk_noise

SMALL = WanConfig(dim=384, ffn_dim=1536, num_heads=3, num_layers=4, text_dim=512)
FRAMES = 3
Seconds = tuple[float, ...]
"""Medians of wall time and of CPU time, all threads."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """What to measure."""

    grid: tuple[int, int] = (8, 8)
    """Latent rows and columns."""
    rounds: int = 15
    """Of the small models, each in turn."""
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """Of the small models."""
    layers: int = 30
    """Of the large model; 0 leaves it out."""
    chunk_only: bool = False
    """Measure the large model in this process, and print what was found."""


def main(args: Args) -> None:
    if args.chunk_only:
        measure_chunk(args)
        return
    table = Table("what", "dtype", "diffusers", "vidcache_jax", title=_machine())
    for dtype in args.dtypes:
        for what, theirs, ours in zip(
            ("pass", "CPU time of a pass"), *measure_pass(args, dtype), strict=True
        ):
            row = (f"{seconds * 1e3:.1f} ms" for seconds in (theirs, ours))
            table.add_row(f"{what}, small DiT", dtype, *row)
    if args.layers:
        command = [sys.executable, __file__, "--chunk-only", "--layers", str(args.layers),
                   "--grid", *map(str, args.grid)]  # fmt: skip
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        for line in printed.splitlines():
            what, value = line.split(": ")
            table.add_row(f"{args.layers} layers of 1.3B, {what}", "bfloat16", "", value)
    Console(width=100).print(table)


def measure_pass(args: Args, dtype: str) -> tuple[Seconds, Seconds]:
    """Of a pass by diffusers, of a pass by us."""
    torch.manual_seed(0)
    module = WanTransformer3DModel(
        num_attention_heads=SMALL.num_heads, attention_head_dim=SMALL.head_dim,
        in_channels=SMALL.in_dim, out_channels=SMALL.out_dim, text_dim=SMALL.text_dim,
        freq_dim=SMALL.freq_dim, ffn_dim=SMALL.ffn_dim, num_layers=SMALL.num_layers,
    ).eval()  # fmt: skip
    state = {name: x.detach().numpy() for name, x in module.state_dict().items()}
    params = convert_dit(state, SMALL, dtype=dtype)
    torch.nn.Module.to(module, getattr(torch, dtype))
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(1, SMALL.in_dim, FRAMES, *args.grid)).astype(np.float32)
    text = rng.normal(size=(1, SMALL.text_len, SMALL.text_dim)).astype(np.float32)
    inputs = [torch.tensor(x).to(getattr(torch, dtype)) for x in (latents, text)]

    def theirs() -> None:
        with torch.inference_mode():
            module(hidden_states=inputs[0], timestep=torch.tensor([500.0]),
                   encoder_hidden_states=inputs[1])  # fmt: skip

    policy = FullCache(FRAMES)
    spec = wan_dit.cache_spec(SMALL, 1, args.grid, FRAMES, jnp.dtype(dtype))
    cache = policy.init_layers(spec, SMALL.num_layers)

    @jax.jit
    def flow(params, latents, text, cache):
        text_kv = wan_dit.encode_text(params, SMALL, text)
        times = jnp.full((1, FRAMES), 500.0)
        start = jnp.int32(0)
        return wan_dit.denoise(params, SMALL, policy, latents, times, text_kv, cache, start)[0]

    own = jnp.asarray(np.moveaxis(latents, 1, -1)), jnp.asarray(text)

    def ours() -> None:
        flow(params, *own, cache).block_until_ready()

    return take_turns(args.rounds, theirs, ours)


def take_turns(
    rounds: int, one: Callable[[], None], other: Callable[[], None]
) -> tuple[Seconds, Seconds]:
    """Of each, after one call that does not count."""
    times: tuple[list[Seconds], list[Seconds]] = ([], [])
    for round_ in range(rounds + 1):
        for function, own in zip((one, other), times, strict=True):
            start, cpu = time.perf_counter(), time.process_time()
            function()
            if round_:
                own.append((time.perf_counter() - start, time.process_time() - cpu))
    median = lambda own: tuple(statistics.median(seconds) for seconds in zip(*own, strict=True))
    return median(times[0]), median(times[1])


def measure_chunk(args: Args) -> None:
    """One chunk of the 1.3B, or of fewer of its layers, in bfloat16."""
    config = dataclasses.replace(WanConfig.wan_1_3b(), num_layers=args.layers)
    params = random_params(config)
    rollout = Rollout(config, RolloutConfig(), SlidingWindow(window_size=6))
    state = rollout.init(1, args.grid, jnp.bfloat16)
    shape = (1, FRAMES, *args.grid, config.in_dim)
    noise = chunk_noise(jax.random.key(0), jnp.int32(0), 4, shape)
    text = jax.random.normal(jax.random.key(1), (1, config.text_len, config.text_dim))
    text_kv = jax.jit(wan_dit.encode_text, static_argnums=1)(params, config, text)
    start = time.perf_counter()
    step = jax.jit(rollout.step, donate_argnums=1)
    compiled = step.lower(params, state, text_kv, *noise).compile()
    compiled_at = time.perf_counter()
    state, chunk = compiled(params, state, text_kv, *noise)
    finite = bool(jnp.isfinite(jax.block_until_ready(chunk.latents)).all())
    seconds = time.perf_counter() - compiled_at
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert peak is not None
    print(f"weights: {weights / 2**30:.2f} GiB")
    print(f"compilation: {compiled_at - start:.1f} s")
    print(f"chunk of 4 denoise passes and a commit: {seconds:.1f} s, finite {finite}")
    print(f"peak memory: {int(peak[1]) / 2**20:.2f} GiB")


def random_params(config: WanConfig) -> Params:
    """Normal weights of standard deviation 1 / sqrt(fan in)."""
    rng = np.random.default_rng(0)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        value = np.empty(leaf.shape, jnp.bfloat16)
        # Row by row: a whole stack in float32 would count in the peak.
        for i in range(len(value)):
            row = rng.standard_normal(value[i].shape, np.float32)
            value[i] = row * leaf.shape[-2:][0] ** -0.5
        return jnp.asarray(value)

    return jax.tree.map(draw, wan_dit.abstract_params(config, jnp.bfloat16))


def _machine() -> str:
    return (
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python "
        f"{platform.python_version()}, jax {jax.__version__}, torch {torch.__version__}, "
        f"{time.strftime('%Y-%m-%d')}"
    )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

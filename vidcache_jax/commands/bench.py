"""How fast this machine is, and a model's attention, chunks and decoding on it."""

import dataclasses
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console
from rich.table import Table

import vidcache_jax
from vidcache_jax.benchmark.attention import AttentionTime, measure_attention
from vidcache_jax.benchmark.ceilings import Ceilings, matrix_product, measure_ceilings
from vidcache_jax.benchmark.chunks import (
    ChunkTime,
    OtherTimes,
    chunks_to_fill,
    measure_chunks,
    measure_others,
)
from vidcache_jax.benchmark.wan import random_wan
from vidcache_jax.commands.compilation_cache import enable_compilation_cache
from vidcache_jax.commands.plan import latents_of
from vidcache_jax.commands.policy_text import read_policy
from vidcache_jax.config import WAN
from vidcache_jax.loading import load_model
from vidcache_jax.models import wan_dit
from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.sampling.output_file import write_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchArgs:
    """Measure this machine with a model, and say what share of the machine the model gets.

    Every figure is a median of calls that take turns. A chunk is timed with its noise, its denoise
    passes and its commit pass, in the steady state; decoding is timed by itself.
    """

    model: str = "tiny"
    """The built-in model, the folder of a converted one, or wan-1.3b or wan-14b with random
    weights."""
    layers: int | None = None
    """Layers of wan-1.3b and wan-14b, fewer than they have for a small machine."""
    resolution: str = "480x832"
    """Height x width in pixels of wan-1.3b and wan-14b."""
    policies: tuple[str, ...] = (
        "sliding-window", "tethercache", "head-forcing", "future-forcing", "ispa",
    )  # fmt: skip
    """Each NAME or NAME:OPTION=VALUE,OPTION=VALUE."""
    windows: tuple[int, ...] = (3, 6, 12, 21)
    """Latent frames that a layer's attention is timed over."""
    videos: int = 1
    """Made at once in the chunks that are timed; the first chunk and decoding are of one."""
    rounds: int = 10
    """Calls that the medians are of."""
    json: Path | None = None
    """File for the figures."""
    compilation_cache: Path = Path("~/.cache/vidcache_jax")
    """Folder in which compiled programs are kept, so that the next run starts faster."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Benchmark:
    """All figures of a run: seconds, bytes, FLOP/s and bytes/s."""

    machine: str
    model: str
    ceilings: Ceilings
    attention: list[AttentionTime]
    left_out: dict[str, str]
    """Implementations of attention that were not timed, and why."""
    videos: int
    """Of the chunks."""
    chunks: list[ChunkTime]
    others: OtherTimes


def main(argv: list[str]) -> int:
    """Runs the command; 2 for a wrong argument."""
    console = Console(stderr=True)
    try:
        args = tyro.cli(BenchArgs, args=argv, prog="vidcache bench")
        benchmark = measured(args, console)
        if args.json is not None:
            text = json.dumps(dataclasses.asdict(benchmark), indent=1)
            write_text(args.json, text)
    except (ValueError, OSError) as error:
        message = f"vidcache bench: {error}"
        console.print(message, style="red", markup=False, highlight=False)
        return 2
    for table in tables(benchmark):
        Console(width=110).print(table)
    return 0


def measured(args: BenchArgs, console: Console) -> Benchmark:
    """Raises ValueError for an impossible argument, before anything is measured."""
    if min(args.rounds, args.videos, *args.windows) < 1 or not args.windows:
        raise ValueError(
            f"rounds={args.rounds}, videos={args.videos} and windows={args.windows} must be at "
            "least 1"
        )
    enable_compilation_cache(args.compilation_cache)
    model = model_of(args)
    # A full cache has to hold the chunks before those that are timed, and those.
    frames = model.rollout.frames_per_chunk * (chunks_to_fill(model, 0) + args.rounds + 8)
    policies = {text: read_policy(text, frames, model) for text in args.policies}
    dtype = wan_dit.param_dtype(model.params)
    spec = wan_dit.cache_spec(
        model.config, 1, model.latent_size, model.rollout.frames_per_chunk, dtype
    )
    say = lambda what: console.print(f"measuring {what}", highlight=False)
    say("matrix products and copies")
    product = matrix_product(dtype)
    ceilings = measure_ceilings(product, dtype, args.rounds)
    say("attention")
    times, left_out = measure_attention(spec, args.windows, product, args.rounds)
    say("first chunk and decoding")
    others = measure_others(model, next(iter(policies.values())), args.rounds)
    chunks = []
    for chunk in measure_chunks(model, policies, product, args.rounds, args.videos):
        chunks.append(chunk)
        say(f"chunks: {chunk.policy} done")
    height, width = model.frame_size
    return Benchmark(
        machine=_machine(),
        model=f"{model.name}, {model.config.num_layers} layers, {height} x {width}, {dtype.name}",
        ceilings=ceilings,
        attention=times,
        left_out=left_out,
        videos=args.videos,
        chunks=chunks,
        others=others,
    )


def model_of(args: BenchArgs) -> VideoModel:
    if args.model in WAN:
        return random_wan(args.model, latents_of(args.resolution), args.layers)
    if args.layers is not None:
        raise ValueError(f"--layers is for {' and '.join(WAN)}, not for {args.model}")
    return load_model(args.model)


def tables(benchmark: Benchmark) -> list[Table]:
    milliseconds = lambda seconds: f"{1e3 * seconds:.2f} ms"
    size = benchmark.ceilings.matmul_size
    first = Table("", "", title=f"{benchmark.machine}\n{benchmark.model}")
    first.add_row(
        f"matrix product, {size} x {size}", f"{benchmark.ceilings.matmul / 1e12:.2f} TFLOP/s"
    )
    first.add_row("copy, read and written", f"{benchmark.ceilings.copy / 1e9:.1f} GB/s")
    others = benchmark.others
    first.add_row("chunk program ready after", f"{others.compile_seconds:.1f} s")
    first.add_row("first chunk, to its pixels", milliseconds(others.first_chunk))
    first.add_row("decoding of a chunk", milliseconds(others.decode))
    second = Table(
        "attention", "frames", "time", "share",
        title="A layer's attention to cached frames; share of a matrix product's rate in turns",
    )  # fmt: skip
    for each in benchmark.attention:
        row = (each.frames, milliseconds(each.seconds), _share(each))
        second.add_row(each.implementation, *row)
    second.caption = "\n".join(f"not {name}: {why}" for name, why in benchmark.left_out.items())
    third = Table(
        "policy", "slots", "chunk", "frames/s", "share", "cache", "temporaries", "overhead",
        title=f"Chunks of {benchmark.videos} at once, without decoding; overhead over a sliding "
        "window of as many slots",
    )  # fmt: skip
    mib = lambda nbytes: "unknown" if nbytes is None else f"{nbytes / 2**20:.1f} MiB"
    for each in benchmark.chunks:
        third.add_row(
            each.policy, f"{each.attended:g}", milliseconds(each.seconds),
            f"{each.frames / each.seconds:.1f}", _share(each),
            mib(each.cache_nbytes), mib(each.temporaries), f"{each.overhead:+.1%}",
        )  # fmt: skip
    return [first, second, third]


def _share(each: AttentionTime | ChunkTime) -> str:
    return "-" if each.flops is None else f"{each.flops / each.seconds / each.ceiling:.0%}"


def _machine() -> str:
    device: Any = jax.devices()[0]
    return (
        f"{device.device_kind}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python "
        f"{platform.python_version()}, jax {jax.__version__}, vidcache_jax "
        f"{vidcache_jax.__version__}, {time.strftime('%Y-%m-%d')}"
    )

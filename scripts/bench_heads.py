"""What HeadForcing allocates, computes and remembers; prints three tables.

    python scripts/bench_heads.py
    python scripts/bench_heads.py --videos 1 --seconds 12     # in small

*Computed*, at the real shape of Wan 1.3B (30 layers of 12 heads, 1,560 tokens a frame, bfloat16,
chunks of three frames), against `SlidingWindow(21)`. *Frame-slots* are frames of one head; there
are the paper's 72 local, 90 anchor and 198 memory heads. *FLOPs* are the
compiler's `cost_analysis` of one layer's programs, compiled and never run: a chunk is four denoise
passes and one commit pass. Those of *attention over what is seen* are counted by hand, two
multiplications with T x S x H each, for a kernel that skips what a head does not see. The update
of episodic memory is one layer's share of it, and is due in every third chunk at most.

*Chunk times* are those of the built-in model, from the dispatch of a chunk to its frames on the
host; the two policies take turns, and medians count. *Compilations* after the first chunk are
counted by `scripts/bench.py`.

*Prompts that change*: one video a row of prompts, a new prompt every sixth of its length, all in
one place. A prompt's sprite is *found* in a frame as `scripts/bench_prompts.py` defines it; the
number is the share of the frames of a segment, mean over videos. *Admitted* and *merged* are the
events of a video's episodic memory.
"""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

import vidcache_jax as vj
from vidcache_jax.cache import CacheSpec
from vidcache_jax.models import wan_dit
from vidcache_jax.testing import chunk_of
from vidcache_jax.tiny import paint
from vidcache_jax.tiny.spotting import spot

WAN = vj.WanConfig.wan_1_3b()
LAYER = dataclasses.replace(WAN, num_layers=1)
FRAMES, DENOISE_PASSES, LATENT_SIZE = 3, 4, (60, 104)
ROLES = vj.HeadRoles.from_numbers(np.repeat(np.arange(3), (72, 90, 198)).reshape(30, 12))
WINDOW = 21
WARM_UP = 10
"""Chunks until the window is full."""
SEGMENTS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """What to measure."""

    videos: int = 8
    """With prompts that change."""
    seconds: float = 60.0
    """Length of each."""
    recache_frames: int = 0
    """Latent frames that are committed anew when the prompt changes."""
    rounds: int = 100
    """Chunks of each policy that are timed."""
    sheets: Path | None = None
    """A folder for a contact sheet of each policy's first video."""


def main(args: Args) -> None:
    console = Console(width=110)
    console.print(computed())
    console.print(timed(args))
    console.print(changing_prompts(args))


def computed() -> Table:
    forcing = vj.HeadForcing(ROLES)
    policies = {f"SlidingWindow({WINDOW})": vj.SlidingWindow(WINDOW), "HeadForcing": forcing}
    spec = wan_dit.cache_spec(WAN, 1, LATENT_SIZE, FRAMES, jnp.bfloat16)
    table = Table("Wan 1.3B", *policies, "ratio", title="computed, 3 x 1560 tokens a chunk")
    heads = WAN.num_layers * WAN.num_heads
    needed = [WINDOW * heads, forcing.frame_slots(FRAMES)]
    rows = {
        "frame-slots needed": needed,
        "frame-slots allocated": [allocated_slots(policy, spec) for policy in policies.values()],
        "cache, GiB": [nbytes(policy, spec) / 2**30 for policy in policies.values()],
        "chunk, one layer, FLOPs": [
            chunk_flops(one_layer(policy), spec) for policy in policies.values()
        ],
        "attention over what is seen, one layer, FLOPs": [
            attention_flops(spec, slots / heads) for slots in needed
        ],
        "update, one layer, FLOPs": [update(one_layer(p), spec)[0] for p in policies.values()],
        "update, one layer, bytes": [update(one_layer(p), spec)[1] for p in policies.values()],
    }
    for name, values in rows.items():
        table.add_row(name, *(f"{x:.4g}" for x in values), f"{values[1] / values[0]:.3f}")
    return table


def one_layer(policy: vj.CachePolicy) -> vj.CachePolicy:
    if not isinstance(policy, vj.HeadForcing) or policy.roles is None:
        return policy
    return dataclasses.replace(policy, roles=vj.HeadRoles(policy.roles.table[:1]))


def allocated_slots(policy: vj.CachePolicy, spec: CacheSpec) -> float:
    """Frames of single heads that all layers' key buffers hold."""
    cache = jax.eval_shape(lambda: policy.init_layers(spec, WAN.num_layers))
    k = (cache.slots if isinstance(policy, vj.HeadForcing) else cache).k
    return k.size / (spec.tokens_per_frame * spec.head_dim)


def nbytes(policy: vj.CachePolicy, spec: CacheSpec) -> int:
    return wan_dit.cache_nbytes(jax.eval_shape(lambda: policy.init_layers(spec, WAN.num_layers)))


def attention_flops(spec: CacheSpec, frames_seen: float) -> float:
    """Of one layer in a chunk, if every head saw that many frames, its own chunk included."""
    tokens = spec.tokens_per_frame
    one_pass = 4 * spec.num_heads * FRAMES * tokens * frames_seen * tokens * spec.head_dim
    return (DENOISE_PASSES + 1) * one_pass


def cost(function: Callable, *abstract: Any, donate: tuple[int, ...] = ()) -> np.ndarray:
    """[FLOPs, bytes accessed] of the optimised program; a loop is counted once."""
    compiled = jax.jit(function, donate_argnums=donate).lower(*abstract).compile()
    analysis = compiled.cost_analysis()
    if analysis is None:
        raise RuntimeError("this backend has no cost analysis")
    # A program that only hands its input back has no cost at all.
    return np.array([analysis.get(name, 0.0) for name in ("flops", "bytes accessed")])


def chunk_flops(policy: vj.CachePolicy, spec: CacheSpec) -> float:
    inputs = (
        wan_dit.abstract_params(LAYER, spec.dtype),
        jax.ShapeDtypeStruct((1, FRAMES, *LATENT_SIZE, LAYER.in_dim), spec.dtype),
        jax.ShapeDtypeStruct((1, FRAMES), jnp.float32),
        wan_dit.abstract_text(LAYER, 1, spec.dtype),
        jax.eval_shape(lambda: policy.init_layers(spec, 1)),
        jax.ShapeDtypeStruct((), jnp.int32),
    )
    denoise = lambda params, *rest: wan_dit.denoise(params, LAYER, policy, *rest)
    commit = lambda params, *rest: wan_dit.commit(params, LAYER, policy, *rest)
    return float((DENOISE_PASSES * cost(denoise, *inputs) + cost(commit, *inputs, donate=(4,)))[0])


@functools.cache
def update(policy: vj.CachePolicy, spec: CacheSpec) -> np.ndarray:
    """`commit` of one layer, and one layer of `settle`."""
    shape = (1, spec.num_heads, FRAMES * spec.tokens_per_frame, spec.head_dim)
    zeros, start = lambda: jnp.zeros(shape, spec.dtype), jnp.zeros((), jnp.int32)
    chunk = jax.eval_shape(lambda: chunk_of(spec, zeros(), zeros(), zeros(), start))
    layer = jax.eval_shape(lambda: policy.init(spec))
    stacked = jax.eval_shape(lambda: policy.init_layers(spec, 1))
    frame = jax.ShapeDtypeStruct((), jnp.int32)
    return cost(policy.commit, layer, chunk, donate=(0,)) + cost(
        lambda cache, frame: policy.settle(cache, frame), stacked, frame, donate=(0,)
    )


def timed(args: Args) -> Table:
    model = vj.load_model("tiny")
    policies = (vj.SlidingWindow(WINDOW), vj.HeadForcing(model.head_roles))
    videos = [endless(vj.Session(model, policy, prompt=told(0)[0][1])) for policy in policies]
    times: list[list[float]] = [[], []]
    for _ in range(WARM_UP + args.rounds):
        for video, own in zip(videos, times, strict=True):
            start = time.perf_counter()
            next(video)
            own.append(time.perf_counter() - start)
    window, forcing = (statistics.median(own[WARM_UP:]) for own in times)
    table = Table("built-in model", f"SlidingWindow({WINDOW})", "HeadForcing", "ratio of speeds")
    cells = (1e3 * window, 1e3 * forcing)
    table.add_row("chunk, ms", *(f"{x:.1f}" for x in cells), f"{window / forcing:.2f}")
    return table


def endless(session: vj.Session) -> Iterator[np.ndarray]:
    while True:
        yield from session.generate(60)


def changing_prompts(args: Args) -> Table:
    model = vj.load_model("tiny")
    policies = {
        "sliding-window": vj.SlidingWindow(WINDOW),
        "window-and-sink": vj.SlidingWindow(WINDOW, 3),
        "tethercache": vj.TetherCache(),
        "head-forcing": vj.HeadForcing(model.head_roles),
    }
    title = f"{args.videos} videos of {args.seconds:g} s, told sprite found, by segment"
    segments = (str(i + 1) for i in range(SEGMENTS))
    table = Table("policy", *segments, "mean", "admitted", "merged", title=title)
    for name, policy in policies.items():
        made = [segments_found(model, policy, name, index, args) for index in range(args.videos)]
        shares, events = (np.mean(values, axis=0) for values in zip(*made, strict=True))
        table.add_row(
            name, *(f"{share:.0%}" for share in (*shares, shares.mean())),
            *(f"{count:.1f}" for count in events),
        )  # fmt: skip
    return table


def told(video: int) -> list[tuple[str, str]]:
    """(colour, prompt) of each segment; neighbours differ in colour and shape."""
    pick = lambda words, index: words[index % len(words)]
    place = pick(paint.PLACES, video)
    sprites = [(pick(paint.COLOURS, 3 * i + video), pick(paint.SHAPES, i)) for i in range(SEGMENTS)]
    return [(colour, f"a {colour} {shape} bounces in the {place}") for colour, shape in sprites]


def segments_found(
    model: vj.VideoModel, policy: vj.CachePolicy, name: str, video: int, args: Args
) -> tuple[list[float], list[int]]:
    """Shares of one video's segments; (admitted, merged), of policies that count them."""
    colours, prompts = zip(*told(video), strict=True)
    session = vj.Session(
        model, policy, prompt=prompts[0], seed=video, recache_frames=args.recache_frames
    )
    parts = []
    for prompt in prompts:
        if parts:
            session.change_prompt(prompt)
        parts.append(np.concatenate([*session.generate(args.seconds / SEGMENTS)]))
    if args.sheets is not None and video == 0:
        frames = np.concatenate(parts)
        sheet = vj.ContactSheet(
            args.sheets / f"prompts_{name}.png", total_frames=len(frames),
            fps=model.frames_per_second, columns=12, rows=2,
        )  # fmt: skip
        with sheet:
            sheet.write(frames)
    found = [
        float(np.mean(spot(part, colour).found))
        for part, colour in zip(parts, colours, strict=True)
    ]
    counts = ()
    if isinstance(policy, vj.HeadForcing):
        counts = (session.cache.admitted, session.cache.merged)
    return found, [int(count[0, 0]) for count in counts]


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

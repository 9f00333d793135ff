"""What HeadForcing allocates, computes and remembers; prints two tables.

    python scripts/bench_heads.py
    python scripts/bench_heads.py --videos 1 --seconds 12     # in small

*Computed*, at the real shape of Wan 1.3B (30 layers of 12 heads, 1,560 tokens a frame, bfloat16,
chunks of three frames), against `SlidingWindow(21)`. *Frame-slots* are frames of one head; the
needed ones are those of the paper's 72 local, 90 anchor and 198 memory heads. *FLOPs* are the
compiler's `cost_analysis` of one layer's programs, compiled and never run: a chunk is four denoise
passes and one commit pass. Those of *attention over what is seen* are counted by hand, two
multiplications with T x S x H each, for a kernel that skips what a head does not see. The update
of episodic memory is one layer's share of it, and is due in every third chunk at most.

*Compilations* and chunk times are measured by `scripts/bench.py`.

*Prompts that change*: one video a row of prompts, a new prompt every sixth of its length, all in
one place. A prompt's sprite is *found* in a frame as `scripts/bench_prompts.py` defines it; the
number is the share of the frames of a segment, mean over videos.
"""

import dataclasses
import functools
from collections.abc import Callable
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
from vidcache_jax.models.codec import to_uint8
from vidcache_jax.sampling.rollout import Rollout, chunk_noise
from vidcache_jax.sampling.session import chunks_for
from vidcache_jax.testing import chunk_of
from vidcache_jax.tiny import paint
from vidcache_jax.tiny.spotting import spot

WAN = vj.WanConfig.wan_1_3b()
LAYER = dataclasses.replace(WAN, num_layers=1)
FRAMES, DENOISE_PASSES, LATENT_SIZE = 3, 4, (60, 104)
COUNTS = {"local": 72, "anchor": 90, "memory": 198}
SEEN = {"local": 4, "anchor": 7, "memory": 11}
SEGMENTS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """What to measure."""

    videos: int = 8
    """With prompts that change."""
    seconds: float = 60.0
    """Length of each."""
    sheets: Path | None = None
    """A folder for a contact sheet of each policy's first video."""


def main(args: Args) -> None:
    console = Console(width=110)
    console.print(computed())
    console.print(changing_prompts(args))


def computed() -> Table:
    roles = vj.HeadRoles.from_numbers(np.resize(np.arange(3), (30, 12)))
    policies = {"SlidingWindow(21)": vj.SlidingWindow(21), "HeadForcing": vj.HeadForcing(roles)}
    spec = wan_dit.cache_spec(WAN, 1, LATENT_SIZE, FRAMES, jnp.bfloat16)
    table = Table("Wan 1.3B", *policies, "ratio", title="computed, 3 x 1560 tokens a chunk")
    needed = sum(COUNTS[role] * SEEN[role] for role in COUNTS)
    rows = {
        "frame-slots needed": [21.0 * 360, float(needed)],
        "frame-slots allocated": [allocated_slots(policy, spec) for policy in policies.values()],
        "cache, GiB": [nbytes(policy, spec) / 2**30 for policy in policies.values()],
        "chunk, one layer, FLOPs": [
            chunk_flops(one_layer(policy), spec) for policy in policies.values()
        ],
        "attention over what is seen, one layer, FLOPs": [
            attention_flops(spec, slots / 360) for slots in (21 * 360, needed)
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


def changing_prompts(args: Args) -> Table:
    model = vj.load_model("tiny")
    policies = {
        "sliding-window": vj.SlidingWindow(21),
        "window-and-sink": vj.SlidingWindow(21, 3),
        "tethercache": vj.TetherCache(),
        "head-forcing": vj.HeadForcing(model.head_roles),
    }
    title = f"{args.videos} videos of {args.seconds:g} s, told sprite found, by segment"
    table = Table("policy", *(str(i + 1) for i in range(SEGMENTS)), "mean", title=title)
    for name, policy in policies.items():
        videos = [segments_found(model, policy, name, index, args) for index in range(args.videos)]
        found = np.mean(videos, axis=0)
        table.add_row(name, *(f"{share:.0%}" for share in (*found, found.mean())))
    return table


def told(video: int) -> list[tuple[str, str]]:
    """(colour, prompt) of each segment; neighbours differ in colour and shape."""
    pick = lambda words, index: words[index % len(words)]
    place = pick(paint.PLACES, video)
    sprites = [(pick(paint.COLOURS, 3 * i + video), pick(paint.SHAPES, i)) for i in range(SEGMENTS)]
    return [(colour, f"a {colour} {shape} bounces in the {place}") for colour, shape in sprites]


def segments_found(
    model: vj.VideoModel, policy: vj.CachePolicy, name: str, video: int, args: Args
) -> list[float]:
    prompts = told(video)
    frames = roll_out(model, policy, [text for _, text in prompts], args.seconds, seed=video)
    if args.sheets is not None and video == 0:
        sheet = vj.ContactSheet(
            args.sheets / f"prompts_{name}.png", total_frames=len(frames),
            fps=model.frames_per_second, columns=12, rows=2,
        )  # fmt: skip
        with sheet:
            sheet.write(frames)
    parts = np.array_split(frames, SEGMENTS)
    return [
        float(np.mean(spot(part, colour).found))
        for part, (colour, _) in zip(parts, prompts, strict=True)
    ]


def roll_out(
    model: vj.VideoModel, policy: vj.CachePolicy, prompts: list[str], seconds: float, seed: int
) -> np.ndarray:
    """Frames of one video whose prompt changes; the cache stays, only the prompt's keys change."""
    rollout = Rollout(model.config, model.rollout, policy)
    encode = jax.jit(wan_dit.encode_text, static_argnums=1)
    texts = [jnp.asarray(model.embed_text(text), jnp.float32)[None] for text in prompts]
    text_kv = [encode(model.params, model.config, text) for text in texts]
    state = rollout.init(1, model.latent_size, wan_dit.param_dtype(model.params))
    codec = model.codec.init_state(1, *model.latent_size)
    num_chunks, frames = chunks_for(seconds, model), []
    for chunk in range(num_chunks):
        text = text_kv[chunk * len(prompts) // num_chunks]
        arguments = (rollout, model.codec, model.latent_size, model.params, model.codec_params)
        (state, codec), made = _chunk(*arguments, (state, codec), text, jax.random.key(seed))
        frames.append(np.asarray(made[0]))
    return np.concatenate(frames)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=5)
def _chunk(rollout, codec, latent_size, params, codec_params, states, text_kv, key):
    state, codec_state = states
    num_frames = rollout.rollout.frames_per_chunk
    shape = (1, num_frames, *latent_size, rollout.config.in_dim)
    steps = len(rollout.rollout.denoise_timesteps)
    noise, renoise = chunk_noise(key, state.next_frame // num_frames, steps, shape)
    state, chunk = rollout.step(params, state, text_kv, noise, renoise)
    frames, codec_state = codec.decode(codec_params, chunk.latents, codec_state)
    return (state, codec_state), to_uint8(frames)


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

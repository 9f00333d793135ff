"""A model's chunk beside the same model in PyTorch, in one run; prints one table.

    python scripts/bench_torch.py                                    # the built-in model
    python scripts/bench_torch.py --model wan-1.3b --decode          # on a GPU

All have a sliding window of 21 latent frames, 3 of them sink, the same weights and the same noise,
and take turns; the median of each counts, and the median of the ratios of neighbours. A *chunk* is
all its denoise passes and the commit pass, given the noise; no decoding. PyTorch comes in several
variants (`torch_rollout.VARIANTS`) and gets what we know to be good: buffers written in place,
angles and prompt keys made once, ``scaled_dot_product_attention``, no gradient. Their latents must
agree with ours, or nothing is printed. Decoding is that of diffusers' Wan VAE, of as many frames.
"""

import dataclasses
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any, Literal

# Both need room on a GPU, of which JAX would take three quarters.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch_rollout import VARIANTS, TorchRollout

import vidcache_jax as vj
from vidcache_jax.benchmark.wan import random_wan
from vidcache_jax.commands.plan import latents_of
from vidcache_jax.config import WAN
from vidcache_jax.models import wan_dit
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sampling.session import decode_chunk

WINDOW, SINK = 21, 3
PROMPT = "a red circle bounces and a blue square drifts left in the meadow"
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Of the difference's size, as a share of the latents'."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """What to measure."""

    model: Literal["tiny", "wan-1.3b", "wan-14b"] = "tiny"
    """The Wans have random weights."""
    layers: int | None = None
    """Layers of the Wans, fewer than they have for a small machine."""
    resolution: str = "480x832"
    """Height x width in pixels of the Wans."""
    variants: tuple[str, ...] | None = None
    """Of PyTorch; all of them on a GPU, elsewhere those that need none."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """bfloat16 for the Wans on a GPU, float32 otherwise."""
    decode: bool = False
    """Time the Wan VAE too."""
    rounds: int = 40
    """Chunks of each that count, after those that fill the window."""
    threads: int = os.cpu_count() or 1
    """Of PyTorch on a CPU; JAX takes what there is."""


def main(args: Args) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and jax.devices()[0].platform != "gpu":
        raise RuntimeError('PyTorch sees a GPU and JAX does not: pip install "vidcache-jax[cuda]"')
    torch.set_num_threads(args.threads)
    dtype = args.dtype or ("bfloat16" if args.model in WAN and device == "cuda" else "float32")
    names = args.variants or (tuple(VARIANTS) if device == "cuda" else ("reference", "eager"))
    model = model_of(args, dtype)
    text = jnp.asarray(model.embed_text(PROMPT), jnp.float32)[None]
    text_kv = wan_dit.encode_text(model.params, model.config, text)
    theirs = {
        name: TorchRollout(
            model, text_kv, WINDOW, SINK, VARIANTS[name], device, getattr(torch, dtype)
        )
        for name in names
    }
    seconds, difference = chunk_times(model, text_kv, theirs, args.rounds)
    if not difference < TOLERANCE[dtype]:
        raise RuntimeError(f"the latents differ by {difference:.2g}, so they are not one model")
    ours = seconds.pop("vidcache_jax")
    title = f"{_machine(args.threads, device)}\n{args.model}, {dtype}"
    table = Table("", "time", "its time / ours", title=title)
    table.add_row("chunk", _ms(ours), "")
    for name, own in seconds.items():
        table.add_row(f"PyTorch, {name}", _ms(own), _ratio(own, ours))
    if args.decode:
        ours, own = decode_times(model, device, getattr(torch, dtype), args.rounds)
        table.add_row("decoding of two chunks, 21 frames", _ms(ours), "")
        table.add_row("diffusers", _ms(own), _ratio(own, ours))
    table.caption = f"latents differ by {difference:.1e} of their size while the window fills"
    Console(width=110).print(table)


def model_of(args: Args, dtype: str) -> vj.VideoModel:
    if args.model == "tiny":
        model = vj.load_model("tiny")
    else:
        model = random_wan(args.model, latents_of(args.resolution), args.layers)
    cast = lambda params: jax.tree.map(lambda x: x.astype(dtype), params)
    params, codec_params = cast(model.params), cast(model.codec_params)
    return dataclasses.replace(model, params=params, codec_params=codec_params)


def chunk_times(
    model: vj.VideoModel, text_kv: wan_dit.TextKV, theirs: dict[str, TorchRollout], rounds: int
) -> tuple[dict[str, list[float]], float]:
    """Seconds of each chunk by name, and by how much the latents of any differ from ours."""
    rollout = Rollout(model.config, model.rollout, vj.SlidingWindow(WINDOW, SINK))
    state = rollout.init(1, model.latent_size, wan_dit.param_dtype(model.params))
    step = jax.jit(rollout.step, donate_argnums=1)
    shape = (1, model.rollout.frames_per_chunk, *model.latent_size, model.config.in_dim)
    steps, random = len(model.rollout.denoise_timesteps), np.random.default_rng(0)

    def ours(first: np.ndarray, others: np.ndarray) -> jax.Array:
        nonlocal state
        state, result = step(model.params, state, text_kv, first, others)
        return jax.block_until_ready(result.latents)

    def made_by(rollout: TorchRollout) -> Callable[..., torch.Tensor]:
        # To the host: it is there when its kernels are through.
        return lambda *noise: rollout.chunk(*noise).cpu()

    makers: dict[str, Callable[..., Any]] = {
        **{name: made_by(each) for name, each in theirs.items()}, "vidcache_jax": ours
    }  # fmt: skip
    # And one with the programs of a full window.
    to_fill = -(-WINDOW // model.rollout.frames_per_chunk) + 2
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    difference = 0.0
    for index in range(to_fill + rounds):
        noise = random.standard_normal((steps, *shape), np.float32)
        latents = {}
        for name, make in makers.items():
            start = time.perf_counter()
            latents[name] = np.asarray(make(noise[0], noise[1:]))
            if index >= to_fill:
                seconds[name].append(time.perf_counter() - start)
        # Later on rounding has grown: what is seen is made from what was seen.
        if index < to_fill:
            own = latents["vidcache_jax"]
            sizes = [np.linalg.norm(x - own) / np.linalg.norm(own) for x in latents.values()]
            difference = max(difference, *map(float, sizes))
    return seconds, difference


def decode_times(
    model: vj.VideoModel, device: str, dtype: torch.dtype, rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds of decoding the first two chunks of a video: ours, and diffusers' at once."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    frames, (rows, columns) = 2 * model.rollout.frames_per_chunk, model.latent_size
    channels = model.config.in_dim
    latents = np.random.default_rng(0).standard_normal(
        (frames, rows, columns, channels), np.float32
    )
    halves = [jnp.asarray(half)[None] for half in np.split(latents, 2)]
    vae: Any = AutoencoderKLWan().eval()
    vae.to(device=device, dtype=dtype)
    given = torch.from_numpy(latents).permute(3, 0, 1, 2)[None].to(device, dtype)
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds + 1):
        start, state = time.perf_counter(), model.codec.init_state(1, *model.latent_size)
        made = 0
        for half in halves:
            pixels, state = decode_chunk(model.codec, model.codec_params, half, state)
            made += np.asarray(pixels).shape[1]
        middle = time.perf_counter()
        with torch.inference_mode():
            decoded: Any = vae.decode(given)
            also_made = decoded.sample.cpu().shape[2]
        if made != also_made:
            raise RuntimeError(f"{made} frames against {also_made}: not the same work")
        if turn:
            seconds[0].append(middle - start)
            seconds[1].append(time.perf_counter() - middle)
    return seconds


def _ms(seconds: list[float]) -> str:
    return f"{1e3 * statistics.median(seconds):.1f} ms"


def _ratio(theirs: list[float], ours: list[float]) -> str:
    return f"{statistics.median(one / two for one, two in zip(theirs, ours, strict=True)):.2f}"


def _machine(threads: int, device: str) -> str:
    where = torch.cuda.get_device_name() if device == "cuda" else (
        f"{threads} threads of {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )  # fmt: skip
    return (
        f"{where}, Python {platform.python_version()}, jax {jax.__version__}, torch "
        f"{torch.__version__}, {time.strftime('%Y-%m-%d')}"
    )


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

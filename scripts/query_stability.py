"""Whether queries stay what they are over a long video: the observation behind Future Forcing.

    python scripts/query_stability.py --plot stability.png

The built-in model makes a video; the clean queries of every frame are kept, before RoPE and after
it at the frame's own number. For a scalar channel of one head and two frames u and v, the distance
is the Wasserstein-1 distance between the two sets of values, one for each token, over the channel's
standard deviation over all frames:

    W1(u, v) / sigma = mean_i |sorted(x_u)_i - sorted(x_v)_i| / std(x)

The table has its mean over pairs of frames and over heads (paper: 0.12 before, 1.18 after, for
channel 0 or 5 of models that are not this one). The plot shows it over the distance of the frames,
for all channels that RoPE turns with the frame number: blue before, orange after.
"""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tyro
from einops import rearrange
from jaxtyping import Float
from PIL import Image, ImageDraw
from rich.console import Console
from rich.table import Table

import vidcache_jax as vj
from vidcache_jax.ops.rope import axis_pairs, rotate
from vidcache_jax.testing import recorded_rollout

CHANNELS = (0, 5)
INK, BEFORE, AFTER = (60, 60, 60), (31, 119, 180), (230, 120, 20)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """Which video to look at."""

    prompt: str = "a red circle bounces in the meadow"
    seed: int = 0
    chunks: int = 150
    pairs: int = 4000
    """Random pairs of frames."""
    plot: Path | None = None
    """Name of a PNG to be written."""


def main(args: Args) -> None:
    before, after = queries(args)
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, before.shape[3], (2, args.pairs))
    distances = [wasserstein(x, first, second) for x in (before, after)]
    table = Table("layer", title=f"W1 / sigma over {before.shape[3]} frames: before, after RoPE")
    columns = [*(f"channel {channel}" for channel in CHANNELS), "turned by frame"]
    for name in columns:
        table.add_column(name)
    turned = slice(0, 2 * axis_pairs(before.shape[-1])[0])
    of = [*(slice(channel, channel + 1) for channel in CHANNELS), turned]
    for layer in [*range(len(before)), slice(None)]:
        shown = (
            ", ".join(f"{distance[layer, ..., own].mean():.2f}" for distance in distances)
            for own in of
        )
        table.add_row("all" if isinstance(layer, slice) else str(layer), *shown)
    Console(width=100).print(table)
    if args.plot is not None:
        apart = np.abs(first - second)
        curves = [binned(d[..., turned].mean(axis=(0, 1, 3)), apart) for d in distances]
        draw(curves, before.shape[3]).save(args.plot)


def queries(args: Args) -> list[Float[np.ndarray, "L N P frames H"]]:
    """Before and after RoPE."""
    model = vj.load_model("tiny")
    frames = model.rollout.frames_per_chunk
    both = []
    rollout = recorded_rollout(
        model, vj.FutureForcing(), prompt=args.prompt, seed=args.seed, num_chunks=args.chunks
    )
    for chunk, record in enumerate(rollout):
        tokens = record.q.shape[3] // frames
        token = jnp.arange(record.q.shape[3], dtype=jnp.int32)
        columns = model.config.token_grid(*model.latent_size)[1]
        place = token % tokens
        position = jnp.stack(
            [chunk * frames + token // tokens, place // columns, place % columns], axis=-1
        )
        layers = rearrange(record.q, "l b n t h -> (l b) n t h")
        both.append(np.stack([layers, rotate(layers, position[None, None])]))
    return list(rearrange(np.stack(both), "c two l n (f p) h -> two l n p (c f) h", f=frames))


def wasserstein(
    x: Float[np.ndarray, "L N P frames H"], first: np.ndarray, second: np.ndarray
) -> Float[np.ndarray, "L N pairs H"]:
    """W1 over tokens between pairs of frames, in standard deviations over all tokens and frames."""
    ordered = np.sort(x, axis=2)
    sigma = x.std(axis=(2, 3))[:, :, None]
    layers = [np.abs(own[:, :, first] - own[:, :, second]).mean(axis=1) for own in ordered]
    return np.stack(layers) / sigma


def binned(distance: np.ndarray, apart: np.ndarray, bins: int = 40) -> np.ndarray:
    """[(frames apart, mean distance)] over bins of equal width."""
    edges = np.linspace(0, apart.max() + 1, bins + 1)
    index = np.digitize(apart, edges) - 1
    filled = [i for i in range(bins) if (index == i).any()]
    return np.array([(apart[index == i].mean(), distance[index == i].mean()) for i in filled])


def draw(curves: list[np.ndarray], frames: int, width: int = 640, height: int = 320) -> Image.Image:
    """Before and after over the distance of the frames."""
    left, bottom, top = 44, height - 32, max(curve[:, 1].max() for curve in curves) * 1.1
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    place = lambda x, y: (left + (width - left - 12) * x / frames, bottom - (bottom - 12) * y / top)
    pen.line([place(0, top), place(0, 0), place(frames, 0)], fill=INK)
    for y in np.arange(0, top, 0.5):
        pen.text((8, place(0, y)[1] - 6), f"{y:.1f}", fill=INK)
        pen.line([place(0, y), place(frames, y)], fill=(225, 225, 225))
    for x in range(0, frames + 1, frames // 5):
        pen.text((place(x, 0)[0] - 8, bottom + 6), str(x), fill=INK)
    pen.text((width // 2, height - 14), "frames apart", fill=INK)
    names = ("before RoPE", "after RoPE")
    for curve, colour, name in zip(curves, (BEFORE, AFTER), names, strict=True):
        pen.line([place(x, y) for x, y in curve], fill=colour, width=3)
        pen.text((width - 110, place(0, curve[-1, 1])[1] - 18), name, fill=colour)
    return image


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

"""How well Future Forcing's proxies stand for queries to come; prints two tables.

    python scripts/proxy_quality.py
    python scripts/proxy_quality.py --latent-size 16 16     # 64 tokens a frame instead of 16

The built-in model makes a video under `FutureForcing`. After every third chunk, once the cache is
full, what the proxies attend to in it is compared with what the true queries, known two chunks
later, attend to in the same cache from the same positions, for each layer and head:

*correlation*   Spearman's, of the weights of all cached tokens
*evicted*       share of the tokens that would be evicted by the one (a chunk's worth, of lowest
                weight) that would be by the other; by chance it is F / B, one in six

The first table is over the horizon, for canonical queries of 3, 6 and 12 frames. The second strides
the proxies' tokens: against the true queries, averaged over the horizon, and against stride 1. A
stride that divides the columns of the grid leaves whole columns without a proxy, another does not.
"""

import dataclasses
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from einops import rearrange
from jaxtyping import Array, Float
from rich.console import Console
from rich.table import Table

import vidcache_jax as vj
from vidcache_jax.cache import CacheView
from vidcache_jax.cache.future_queries import future_attention
from vidcache_jax.ops.scoring import column_means
from vidcache_jax.testing import recorded_rollout

DELTA_MAX = 6
QUERY_FRAMES = (3, 6, 12)
STRIDES = (1, 2, 3, 4, 5, 16)
EVERY = 3
"""Chunks between samples."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Args:
    """What to measure."""

    prompts: tuple[str, ...] = (
        "a red circle bounces in the meadow",
        "a cyan triangle circles in the snow",
        "a yellow square drifts left at night, camera pans right",
    )
    chunks: int = 40
    first: int = 12
    """Chunk of the first sample; the cache should be full by then."""
    budget: int = 18
    latent_size: tuple[int, int] = (8, 8)
    """Rows and columns; the model was trained with 8 x 8."""


def main(args: Args) -> None:
    model = vj.load_model("tiny")
    samples = [sample for prompt in args.prompts for sample in compared(model, prompt, args)]
    mean = {name: np.mean([sample[name] for sample in samples], axis=0) for name in samples[0]}
    horizon = Table("frames of the canonical query", *(f"+{d}" for d in range(1, DELTA_MAX + 1)),
                    title="proxies against true queries: correlation, evicted")  # fmt: skip
    for frames in QUERY_FRAMES:
        horizon.add_row(str(frames), *(f"{r:.2f}, {o:.0%}" for r, o in mean[f"w={frames}"].T))
    tokens = args.latent_size[0] * args.latent_size[1] // 4
    strides = Table("stride", "proxies a frame", "against true queries", "against stride 1",
                    title="mean over the horizon: correlation, evicted")  # fmt: skip
    for stride in STRIDES:
        pairs = (mean[f"stride {stride}, {other}"][:, 0] for other in ("true", "all"))
        shown = (f"{correlation:.3f}, {evicted:.0%}" for correlation, evicted in pairs)
        strides.add_row(str(stride), str(-(-tokens // stride)), *shown)
    console = Console(width=100)
    console.print(f"{len(samples)} chunks, budget {args.budget}, {tokens} tokens a frame")
    console.print(horizon)
    console.print(strides)


def compared(model: vj.VideoModel, prompt: str, args: Args) -> Iterator[dict[str, np.ndarray]]:
    """For each sampled chunk of a video, [(correlation, evicted), horizon] by comparison."""
    frames = model.rollout.frames_per_chunk
    policy = vj.FutureForcing(args.budget, proxy_token_stride=1)
    records = list(
        recorded_rollout(model, policy, prompt=prompt, seed=0, num_chunks=args.chunks,
                         latent_size=args.latent_size)
    )  # fmt: skip
    queries = jnp.concatenate(
        [rearrange(r.q, "l b n (f p) h -> l b n f p h", f=frames) for r in records], axis=3
    )
    for chunk in range(args.first, args.chunks - -(-DELTA_MAX // frames), EVERY):
        end, view = (chunk + 1) * frames, records[chunk].view
        true = np.asarray(true_attention(queries[:, :, :, end : end + DELTA_MAX], view))
        proxies = lambda w, stride, end=end, view=view: np.asarray(
            proxy_attention(queries[:, :, :, end - w : end], view, stride)
        )
        evicted = true.shape[-1] * frames // args.budget
        agree = functools.partial(agreement, num_evicted=evicted)
        whole = lambda weights: weights.mean(axis=0, keepdims=True)
        every = whole(proxies(frames, 1))
        strided = {stride: whole(proxies(frames, stride)) for stride in STRIDES}
        yield {
            **{f"w={w}": agree(proxies(w, 1), true) for w in QUERY_FRAMES},
            **{f"stride {s}, true": agree(own, whole(true)) for s, own in strided.items()},
            **{f"stride {s}, all": agree(own, every) for s, own in strided.items()},
        }


@functools.partial(jax.jit, static_argnames="stride")
def proxy_attention(
    queries: Float[Array, "L B N w P H"], view: CacheView, stride: int
) -> Float[Array, "delta L B N S"]:
    """What the policy's proxies would give, had it these frames to take its mean of."""
    query = jnp.mean(queries, axis=3)[:, :, :, ::stride]
    last = view.query_position[:, :, :, -queries.shape[4] :][:, :, :, ::stride]
    layer = lambda query, last, view: future_attention(query, last, view, DELTA_MAX).weight
    return jnp.moveaxis(jax.vmap(layer)(query, last, view), 3, 0)


@jax.jit
def true_attention(
    queries: Float[Array, "L B N delta P H"], view: CacheView
) -> Float[Array, "delta L B N S"]:
    """What the queries of the frames that came next give to the same cache."""
    last = view.query_position[:, :, :, -queries.shape[4] :]

    def ahead(delta: int) -> Float[Array, "L B N S"]:
        position = last + jnp.array([delta, 0, 0], jnp.int32)[None, None, None, None]
        layer = lambda q, at, view: column_means(q, at, view.k, view.position, view.visible).weight
        return jax.vmap(layer)(queries[:, :, :, delta - 1], position, view)[:, :, :, 0]

    return jnp.stack([ahead(delta) for delta in range(1, DELTA_MAX + 1)])


def agreement(one: np.ndarray, two: np.ndarray, num_evicted: int) -> np.ndarray:
    """[(correlation, evicted), horizon], means over layers and heads."""
    ranks = [weights.argsort(axis=-1).argsort(axis=-1) for weights in (one, two)]
    centred = [rank - (rank.shape[-1] - 1) / 2 for rank in ranks]
    correlation = np.mean(centred[0] * centred[1], axis=-1) / np.mean(centred[0] ** 2, axis=-1)
    both = (ranks[0] < num_evicted) & (ranks[1] < num_evicted)
    evicted = both.sum(axis=-1) / num_evicted
    return np.stack([x.reshape(len(one), -1).mean(axis=-1) for x in (correlation, evicted)])


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))

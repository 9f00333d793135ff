"""Future Forcing's proxies of queries to come, and what they attend to (arXiv 2605.30083).

    canonical query    Qbar = (1 / w) sum_{u = t - w + 1 .. t} Q_u          un-rotated
    proxies            Q_{t + Delta} = R_{t + Delta}(Qbar)                  Delta = 1 .. delta_max

The mean is over frames, token by token, so that the spatial layout stays. It rests on the
observation that under one prompt un-rotated queries hardly change from frame to frame, while
rotated ones do (`scripts/query_stability.py`).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vidcache_jax.array_typing import FrameNumber, Positions
from vidcache_jax.cache.state import CacheSpec, CacheView
from vidcache_jax.ops.scoring import ColumnMeans, column_means

FrameQueries = Float[Array, "B N F Q H"]
"""Q un-rotated queries of each of a chunk's frames."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RecentQueries:
    """A ring of the last w frames, those of the committed chunk among them."""

    q: Float[Array, "*stack B N w Q H"]
    frame: Int[Array, "*stack B w"]
    """Frame number of each entry, -1 = empty."""


def empty_queries(spec: CacheSpec, num_frames: int, num_tokens: int) -> RecentQueries:
    shape = (spec.batch, spec.num_heads, num_frames, num_tokens, spec.head_dim)
    return RecentQueries(
        q=jnp.zeros(shape, spec.dtype),
        frame=jnp.full((spec.batch, num_frames), -1, jnp.int32),
    )


def remember(recent: RecentQueries, own: FrameQueries, start_frame: FrameNumber) -> RecentQueries:
    """The chunk's frames take their turns in the ring, which is longer than a chunk."""
    q, frame = recent.q, recent.frame
    for i in range(own.shape[2]):
        number = jnp.asarray(start_frame, jnp.int32) + i
        slot = number % frame.shape[1]
        latest = own[:, :, i : i + 1].astype(q.dtype)
        q = jax.lax.dynamic_update_slice_in_dim(q, latest, slot, axis=2)
        numbers = jnp.broadcast_to(number, (frame.shape[0], 1))
        frame = jax.lax.dynamic_update_slice_in_dim(frame, numbers, slot, axis=1)
    return RecentQueries(q, frame)


def canonical_query(recent: RecentQueries) -> Float[Array, "B N Q H"]:
    """Mean over the frames of the ring, or over all there are while they are fewer."""
    held = recent.frame >= 0
    queries = jnp.where(held[:, None, :, None, None], recent.q.astype(jnp.float32), 0.0)
    count = jnp.sum(held, axis=-1).astype(jnp.float32)
    return (jnp.sum(queries, axis=2) / count[:, None, None, None]).astype(recent.q.dtype)


def mean_of_frames(own: FrameQueries) -> Float[Array, "B N Q H"]:
    """The canonical query of a chunk's own frames."""
    # Frame by frame, or XLA for TPUs has all of them in float32 at once.
    frames = (own[:, :, i].astype(jnp.float32) for i in range(own.shape[2]))
    return (functools.reduce(jnp.add, frames) / own.shape[2]).astype(own.dtype)


def future_attention(
    query: Float[Array, "B N Q H"], last_position: Positions, view: CacheView, delta_max: int
) -> ColumnMeans:
    """What the proxies attend to at Delta = 1 ... delta_max.

    Args:
      query: canonical, of Q tokens.
      last_position: of those tokens in the chunk's last frame.
      view: in whose coordinates the proxies come after it.
    """
    ahead = tuple(range(1, delta_max + 1))
    return column_means(query, last_position, view.k, view.position, view.visible, ahead=ahead)

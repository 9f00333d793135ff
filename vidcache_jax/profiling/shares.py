"""How a head divides its attention among the past, while the model makes a chunk.

Of each query's attention, the shares that go to the video's first frame (*sink*), to the frames
after it (*middle*) and to the chunk itself (*current*), mean over the queries (Head Forcing, arXiv
2605.14487, Eq. 3). Attention over each of the three gives its softmax denominator, and the shares
are those of the denominators: no attention map is ever stored.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vidcache_jax.array_typing import FrameNumber
from vidcache_jax.cache import CacheSpec, Chunk, SlidingWindow
from vidcache_jax.cache.attend import attend_view
from vidcache_jax.cache.policy import LayerIndex, take_layer
from vidcache_jax.cache.state import Attended, StackedCache
from vidcache_jax.ops.attention import AttentionPart, attention, merge
from vidcache_jax.ops.rope import rotate

BUCKETS = ("sink", "middle", "current")


def shares_of(*parts: AttentionPart) -> Float[Array, "B N parts"]:
    """Share of each part in attention over all of them, mean over queries; they sum to 1."""
    maximum = jnp.max(jnp.stack([part.max for part in parts]), axis=0)
    mass = jnp.stack([part.denominator * jnp.exp(part.max - maximum) for part in parts], axis=-1)
    return jnp.mean(mass / jnp.sum(mass, axis=-1, keepdims=True), axis=2)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Shares:
    """What was measured in the denoise passes of the latest chunk."""

    by_step: Float[Array, "steps L B N 3"]
    """The last axis is that of `BUCKETS`."""
    num_seen: Int[Array, ""]
    """Layers measured so far, in all passes of all chunks; tells the step."""


@dataclasses.dataclass(frozen=True)
class MeasuredWindow(SlidingWindow):
    """A sliding window that says where its heads look; it makes the same video.

    Attributes:
      num_steps: denoise passes of a chunk.
    """

    sink_size: int = 1
    num_steps: int = 4

    def init_statistics(self, spec: CacheSpec, num_layers: int) -> Shares:
        shape = (self.num_steps, num_layers, spec.batch, spec.num_heads, len(BUCKETS))
        return Shares(jnp.zeros(shape, jnp.float32), jnp.zeros((), jnp.int32))

    def prepare(
        self, cache: StackedCache, start_frame: FrameNumber, num_frames: int
    ) -> StackedCache:
        return cache

    def attend(
        self, cache: StackedCache, layer: LayerIndex, chunk: Chunk, num_frames: int
    ) -> Attended:
        view = self.read(take_layer(cache, layer), chunk.start_frame, num_frames)
        # The sink keeps its own number: the first frame is at position 0, and nothing else is.
        tokens_per_frame = view.k.shape[-2] // view.visible.shape[-1]
        is_first = view.position[..., ::tokens_per_frame, 0] == 0
        seen = lambda visible: attend_view(chunk.q, dataclasses.replace(view, visible=visible))
        sink, middle = seen(view.visible & is_first), seen(view.visible & ~is_first)
        q, k = rotate(chunk.q, view.query_position), rotate(chunk.k, view.query_position)
        current = attention(q, k, chunk.v)
        out = merge(merge(sink, middle), current).out
        return Attended(out, note=shares_of(sink, middle, current))

    def observe(
        self, statistics: Shares, layer: LayerIndex, chunk: Chunk, attended: Attended
    ) -> Shares:
        if attended.note is None:  # the commit pass
            return statistics
        step = statistics.num_seen // statistics.by_step.shape[1] % self.num_steps
        by_step = statistics.by_step.at[step, layer].set(attended.note)
        return Shares(by_step, statistics.num_seen + 1)

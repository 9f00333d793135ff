"""The interface of a cache policy: how a causal video model remembers.

A policy is a frozen, hashable dataclass of hyper-parameters (sizes in latent frames), validated
when made. Its methods are pure and run under `jit`. `CachePolicy` is what one writes, layer by
layer; `StackedPolicy` is what the model and the rollout ask for, over all layers. The contract,
which `vidcache_jax.testing.check_policy` tests for any policy:

    C1  only clean chunks are stored: `read` never changes the cache
    C2  keys are stored un-rotated; RoPE positions are data, never implied by where a token lies
    C3  empty is explicit: what lies in a token that is not ``visible`` changes no output bit
    C4  fixed shapes: warm-up, boundary and steady state are one compiled program
    C5  what is claimed is allocated (`cache_nbytes` counts buffers)
    C6  the cache is donated and updated in place
    C7  videos of a batch are independent of each other
    C8  time is an int32 frame number without limit
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vidcache_jax.array_typing import FrameNumber
from vidcache_jax.cache.attend import attend_view
from vidcache_jax.cache.state import (
    Attended,
    CacheSpec,
    CacheView,
    Chunk,
    LayerCache,
    OutputDelta,
    Prepared,
    StackedCache,
    Statistics,
)
from vidcache_jax.cache.working_copy import WorkingCopy, attend_copy_and_self, working_copy
from vidcache_jax.ops.attention import AttentionPart

LayerIndex = Int[Array, ""]


@runtime_checkable
class StackedPolicy(Protocol):
    """Memory of all layers, as the model and the rollout use it."""

    @property
    def max_frames(self) -> int | None:
        """Latent frames a video may have under this policy; None = no limit."""
        return None

    def check_model(self, fingerprint: Callable[[], str]) -> None:
        """Refuses a model that the policy was not made for.

        Args:
          fingerprint: gives that of the model's parameters; it takes a while, and most policies
            serve any model.

        Raises:
          ValueError: the policy was made from other parameters.
        """

    def prepare(self, cache: StackedCache, start_frame: FrameNumber, num_frames: int) -> Prepared:
        """What all denoise passes of a chunk share, made once before them: by default the cache."""
        return cache

    def attend(
        self, prepared: Prepared, layer: LayerIndex, chunk: Chunk, num_frames: int
    ) -> Attended:
        """A layer's attention in a denoise pass; the chunk is noisy and nothing is written."""
        ...

    def update(
        self, cache: StackedCache, layer: LayerIndex, chunk: Chunk, num_frames: int
    ) -> tuple[Attended, StackedCache]:
        """A layer's attention in the commit pass, and the cache with the clean chunk in it."""
        ...

    def output_delta(self, cache: StackedCache, layer: LayerIndex) -> OutputDelta | None:
        """What is added to the layer's attention output projection."""
        return None

    def init_statistics(self, spec: CacheSpec, num_layers: int) -> Statistics:
        """What `observe` adds to, all layers."""
        return None

    def observe(
        self, statistics: Statistics, layer: LayerIndex, chunk: Chunk, attended: Attended
    ) -> Statistics:
        """Takes note of a layer's attention, in every pass."""
        return statistics

    def settle(self, cache: StackedCache, start_frame: FrameNumber) -> StackedCache:
        """A decision over all layers, taken once after a commit pass."""
        return cache

    def advance(
        self,
        frames_made: int,
        cache: StackedCache,
        statistics: Statistics,
        output_kernels: Float[Array, "L D D"],
    ) -> tuple["StackedPolicy", StackedCache, Statistics]:
        """The policy of the next chunk and its state; on the host, between chunks.

        The one place where shapes may change: another policy is another compiled program.
        ``cache`` and ``statistics`` are given up by the caller, as if donated.

        Args:
          frames_made: latent frames of the video so far.
          output_kernels: of the layers' attention output projections, [in, out].
        """
        return self, cache, statistics

    def fill(
        self, cache: StackedCache, start_frame: FrameNumber, num_frames: int
    ) -> Float[Array, ""]:
        """Share of the cache's tokens that a chunk may attend to, 0 to 1."""
        ...

    def memory_index(self, cache: StackedCache) -> Int[Array, "L memory"] | None:
        """Frame numbers held in long-term memory (first video of the batch).

        Ascending, -1 = empty. None for policies without such a region.
        """
        return None


@runtime_checkable
class CachePolicy(StackedPolicy, Protocol):
    """Memory of one layer, the same for all; subclass it to inherit the defaults."""

    def init(self, spec: CacheSpec) -> LayerCache:
        """Allocates the empty cache of one layer.

        Raises:
          ValueError: the policy's sizes cannot serve chunks of ``spec.frames_per_chunk``.
        """
        ...

    def init_layers(self, spec: CacheSpec, num_layers: int) -> StackedCache:
        """Empty caches of all layers, stacked; for what differs from layer to layer."""
        layer = self.init(spec)
        return jax.tree.map(lambda leaf: jnp.repeat(leaf[None], num_layers, axis=0), layer)

    def read(self, cache: LayerCache, start_frame: FrameNumber, num_frames: int) -> CacheView:
        """What the chunk of frames ``start_frame ... start_frame + num_frames - 1`` attends to.

        Before the chunk is committed, the frames it will displace are already hidden and its own
        are not in the view; after its commit they are. Copies no keys or values.
        """
        ...

    def commit(self, cache: LayerCache, chunk: Chunk) -> LayerCache:
        """Admits a clean chunk, before the layer attends in the commit pass.

        The result has the same structure, shapes and dtypes.
        """
        ...

    def evict(self, cache: LayerCache, chunk: Chunk, attended: AttentionPart) -> LayerCache:
        """Makes room, after the layer has attended in the commit pass.

        ``attended`` is what the chunk's queries saw in the view of the committed cache; its
        residuals give the weight of any key, ``exp(logit - max) / denominator``.
        """
        return cache

    def prepare(
        self, cache: StackedCache, start_frame: FrameNumber, num_frames: int
    ) -> WorkingCopy:
        return working_copy(lambda own: self.read(own, start_frame, num_frames), cache)

    def attend(
        self, prepared: WorkingCopy, layer: LayerIndex, chunk: Chunk, num_frames: int
    ) -> Attended:
        return Attended(attend_copy_and_self(chunk, prepared, layer).out)

    def update(
        self, cache: StackedCache, layer: LayerIndex, chunk: Chunk, num_frames: int
    ) -> tuple[Attended, StackedCache]:
        updated = self.commit(take_layer(cache, layer), chunk)
        attended = attend_view(chunk.q, self.read(updated, chunk.start_frame, num_frames))
        evicted = self.evict(updated, chunk, attended)
        return Attended(attended.out), put_layer(cache, layer, evicted)

    def fill(
        self, cache: StackedCache, start_frame: FrameNumber, num_frames: int
    ) -> Float[Array, ""]:
        visible = jax.vmap(lambda layer: self.read(layer, start_frame, num_frames).visible)(cache)
        return jnp.mean(visible.astype(jnp.float32))


def take_layer(stacked: Any, layer: LayerIndex) -> Any:
    """One layer of arrays stacked over layers."""
    return jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, layer, keepdims=False), stacked
    )


def put_layer(stacked: Any, layer: LayerIndex, updated: Any) -> Any:
    """Arrays stacked over layers with one layer replaced; in place where they are donated."""
    return jax.tree.map(
        lambda leaf, new: jax.lax.dynamic_update_index_in_dim(leaf, new, layer, 0),
        stacked,
        updated,
    )

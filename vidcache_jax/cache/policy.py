"""The interface of a cache policy: how a causal video model remembers.

A policy is a frozen, hashable dataclass of hyper-parameters (sizes in latent frames), validated
when made. Its methods are pure, work on one layer, and run under `jit`. The contract, which
`vidcache_jax.testing.check_policy` tests for any policy:

    C1  only clean chunks are stored: `read` never changes the cache
    C2  keys are stored un-rotated; RoPE positions are data, never implied by where a token lies
    C3  empty is explicit: what lies in a token that is not ``visible`` changes no output bit
    C4  fixed shapes: warm-up, boundary and steady state are one compiled program
    C5  what is claimed is allocated (`cache_nbytes` counts buffers)
    C6  the cache is donated and updated in place
    C7  videos of a batch are independent of each other
    C8  time is an int32 frame number without limit
"""

from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from vidcache_jax.array_typing import FrameNumber
from vidcache_jax.cache.state import CacheSpec, CacheView, Chunk, LayerCache
from vidcache_jax.ops.attention import AttentionPart


@runtime_checkable
class CachePolicy(Protocol):
    """What the rollout needs of a policy; subclass it to inherit the defaults."""

    @property
    def max_frames(self) -> int | None:
        """Latent frames a video may have under this policy; None = no limit."""
        return None

    def init(self, spec: CacheSpec) -> LayerCache:
        """Allocates the empty cache of one layer.

        Raises:
          ValueError: the policy's sizes cannot serve chunks of ``spec.frames_per_chunk``.
        """
        ...

    def init_layers(self, spec: CacheSpec, num_layers: int) -> LayerCache:
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

    def memory_index(self, cache: LayerCache) -> Int[Array, "L memory"] | None:
        """Frame numbers held in long-term memory (stacked cache, first video of the batch).

        Ascending, -1 = empty. None for policies without such a region.
        """
        return None

    def settle(self, cache: LayerCache, start_frame: FrameNumber) -> LayerCache:
        """A decision over all layers (stacked cache), taken once after a commit pass."""
        return cache

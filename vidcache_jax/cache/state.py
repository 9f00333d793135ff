"""What passes between the model and a cache policy.

Policies see the arrays of one layer. ``*stack`` stands for the leading axes that stacking over
layers, or mapping, adds.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.array_typing import Heads

LayerCache = Any
"""A policy's pytree for one layer."""

StackedCache = Any
"""A policy's pytree for all layers: as a rule, that of one layer with a leading axis L."""

Prepared = Any
"""What the denoise passes of a chunk read, a pytree; a `WorkingCopy` or the cache itself."""

Statistics = Any
"""What a policy gathers in every pass, a pytree; None for most policies."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """The static facts a policy allocates from.

    Attributes:
      grid: (rows, columns) of tokens in a latent frame.
      dtype: of stored keys and values.
    """

    batch: int
    num_heads: int
    head_dim: int
    grid: tuple[int, int]
    frames_per_chunk: int
    dtype: Any

    @property
    def tokens_per_frame(self) -> int:
        return self.grid[0] * self.grid[1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Chunk:
    """A chunk in one layer: its queries, keys and values, un-rotated, and its prompt.

    A chunk to be committed is clean; one that only attends may be noisy.
    """

    q: Float[Array, "*stack B N T H"]
    k: Float[Array, "*stack B N T H"]
    v: Float[Array, "*stack B N T H"]
    text_k: Float[Array, "*stack B N Tt H"]
    """The layer's cross-attention keys of the prompt that the chunk was made with."""
    is_text: Bool[Array, "*stack B Tt"]
    """Which of them are tokens of the prompt; the others are padding."""
    start_frame: Int[Array, "*stack"]
    """Number of the chunk's first latent frame in the video."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class CacheView:
    """What a chunk may attend to, and at which RoPE positions.

    ``visible`` is the only thing that says which tokens exist: k and v of the others are garbage.
    """

    k: Float[Array, "*stack B N S H"]
    v: Float[Array, "*stack B N S H"]
    position: Int[Array, "*stack B G S 3"]
    """(frame, row, column) at which a key is rotated."""
    visible: Bool[Array, "*stack B G K"]
    """Whether the tokens of a run exist; run i of K is tokens ``[i S / K, (i + 1) S / K)``.
    Runs are slots of a latent frame, or single tokens."""
    query_position: Int[Array, "*stack B G T 3"]
    """Positions of the chunk's own tokens, for its queries and for its keys alike."""

    @property
    def visible_tokens(self) -> Bool[Array, "*stack B G S"]:
        return jnp.repeat(self.visible, self.k.shape[-2] // self.visible.shape[-1], axis=-1)

    def split(self, runs: int) -> tuple["CacheView", "CacheView"]:
        """The views of the first runs and of the others."""
        tokens = runs * (self.k.shape[-2] // self.visible.shape[-1])
        return self._part(slice(runs), slice(tokens)), self._part(
            slice(runs, None), slice(tokens, None)
        )

    def _part(self, runs: slice, tokens: slice) -> "CacheView":
        return CacheView(
            k=self.k[..., tokens, :],
            v=self.v[..., tokens, :],
            position=self.position[..., tokens, :],
            visible=self.visible[..., runs],
            query_position=self.query_position,
        )


class Attended(NamedTuple):
    """What the queries of a chunk took up in one layer."""

    out: Heads
    """Goes on to the output projection."""
    local: Heads | None = None
    """What they would have taken up without history, from policies that look at both."""
    note: Any = None
    """Anything else that the policy wants to `observe`."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OutputDelta:
    """What is added to an attention output projection ``A W + b``, for each video its own."""

    kernel: Float[Array, "*stack B D D"]
    """dW, [in, out]."""
    bias: Float[Array, "*stack B D"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SlotCache:
    """K slots of one latent frame each: the storage of every frame-level policy.

    Slot order means nothing; ``frame_index`` alone says what a slot holds.
    """

    k: Float[Array, "*stack B N S H"]
    """Un-rotated keys."""
    v: Float[Array, "*stack B N S H"]
    frame_index: Int[Array, "*stack B K"]
    """Latent frame number in each slot, -1 = empty."""
    grid: tuple[int, int] = dataclasses.field(metadata={"static": True})

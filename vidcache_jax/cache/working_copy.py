"""The keys that the denoise passes of a chunk attend to, rotated once for all of them.

Between two commits neither what a policy holds nor where it stands changes: every pass of a chunk
would rotate the same keys of all layers by the same angles. The copy is a temporary of the chunk's
program, as large as the cached keys; the cache keeps the un-rotated ones, and the copy is always
made from those. Stacked over layers, it goes to attention whole, with the number of a layer.
"""

import dataclasses
from collections.abc import Callable

import jax
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.cache.state import CacheView, Chunk, LayerCache, StackedCache
from vidcache_jax.ops.attention import AttentionPart, attention, merge
from vidcache_jax.ops.rope import rotate
from vidcache_jax.ops.rope_stack import rotate_stack


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WorkingCopy:
    """A `CacheView` of every layer whose keys are rotated already."""

    k: Float[Array, "L B N S H"]
    v: Float[Array, "L B N S H"]
    """The cache's own."""
    visible: Bool[Array, "L B G K"]
    query_position: Int[Array, "L B G T 3"]


def working_copy(read: Callable[[LayerCache], CacheView], cache: StackedCache) -> WorkingCopy:
    """What ``read`` shows of each layer, rotated."""
    view = jax.vmap(read)(cache)
    k = rotate_stack(view.k, view.position)
    return WorkingCopy(k, view.v, view.visible, view.query_position)


def attend_copy_and_self(chunk: Chunk, copy: WorkingCopy, layer: Int[Array, ""]) -> AttentionPart:
    """A chunk that is not in the cache yet, over one layer of the copy and over itself."""
    own = lambda stack: jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False)
    position = own(copy.query_position)
    q, k = rotate(chunk.q, position), rotate(chunk.k, position)
    itself = attention(q, k, chunk.v)
    # Attention over no token at all has no maximum.
    if not copy.k.shape[-2]:
        return itself
    stacks = copy.k.astype(q.dtype), copy.v.astype(q.dtype)
    past = attention(q, *stacks, layer=layer, slots=own(copy.visible))
    return merge(past, itself)

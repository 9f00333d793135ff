"""Attention of a chunk over what a policy shows it; keys are rotated here, on read."""

from vidcache_jax.array_typing import Heads
from vidcache_jax.cache.state import CacheView, Chunk
from vidcache_jax.ops.attention import AttentionPart, attention, merge
from vidcache_jax.ops.rope import rotate


def attend_view(q: Heads, view: CacheView) -> AttentionPart:
    """Un-rotated queries over the tokens of a view."""
    q = rotate(q, view.query_position)
    k = rotate(view.k, view.position).astype(q.dtype)
    return attention(q, k, view.v.astype(q.dtype), view.visible[:, :, None])


def attend_past_and_self(chunk: Chunk, view: CacheView) -> AttentionPart:
    """A chunk that is not in the view yet, over the view and over itself."""
    q, k = rotate(chunk.q, view.query_position), rotate(chunk.k, view.query_position)
    own = attention(q, k, chunk.v)
    # Attention over no token at all has no maximum.
    return merge(attend_view(chunk.q, view), own) if view.k.shape[-2] else own

"""Future Forcing: tokens stay by what coming queries will attend to; redundant ones are merged.

arXiv 2605.30083; no code is public, and where the paper is silent the fields below say what was
chosen. For each layer, video and head, with B budget frames of N tokens and chunks of F frames:

    commit    the chunk's tokens go into empty slots
    attend    to at most B N tokens, the chunk's own among them
    evict     score    lam * mean over Delta of a[Delta] + (1 - lam) * history / age
              keep     the (B - F) N tokens of highest score
              merge    the values of the others into their nearest kept ones (`ops.merge`)
              remap    frame positions of the kept ones, to end right before the next chunk

a[Delta, j] is the mean softmax weight that token j receives from the canonical query
(`cache.future_queries`) rotated to Delta frames after the last one; *history* is the mean weight
that the queries of each chunk since its own have really given it (`ops.scoring`).
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.array_typing import FrameNumber
from vidcache_jax.cache import token_eviction, token_slots
from vidcache_jax.cache.future_queries import (
    FrameQueries,
    RecentQueries,
    canonical_query,
    empty_queries,
    future_attention,
    mean_of_frames,
    remember,
)
from vidcache_jax.cache.policy import CachePolicy
from vidcache_jax.cache.state import CacheSpec, CacheView, Chunk
from vidcache_jax.cache.token_slots import TokenSlots
from vidcache_jax.ops.attention import AttentionPart
from vidcache_jax.ops.by_heads import by_heads
from vidcache_jax.ops.scoring import ColumnMeans, column_means


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FutureState:
    """B N tokens a head, and what their scores are made of."""

    tokens: TokenSlots
    history: Float[Array, "*stack B N S"]
    """Sum over chunks of the mean weight received; 0 in empty slots."""
    recent: RecentQueries | None
    """None if a chunk's own frames make the canonical query."""
    num_merged: Int[Array, "*stack B N"]
    """Of the tokens that the last eviction took; what stayed is what `tokens` hold."""
    num_dropped: Int[Array, "*stack B N"]


class Merit(NamedTuple):
    """What the tokens of a cache are judged by."""

    score: Float[Array, "B N S"]
    history: Float[Array, "B N S"]
    """With what the chunk's queries gave."""
    future: ColumnMeans
    """What the proxies give at each step of the horizon."""


@dataclasses.dataclass(frozen=True)
class FutureForcing(CachePolicy):
    """Attend to the tokens, chosen for each head, that the next frames are expected to look at.

    Ties go to the lowest (frame, token); equal nearest tokens likewise.

    Attributes:
      budget_frames: B, frames' worth of tokens attended to, the current chunk included (the
        paper's 18 for Self-Forcing, 15 for Rolling and 9 for Reward Forcing).
        A budget besides the chunk is that much plus the chunk's frames.
      lam: lambda, weight of the future against the history: 1 = future alone, 0 = history alone.
      delta_max: frames ahead for which there are proxies.
      query_frames: w, frames that the canonical query is a mean of. The paper does not say; up to
        a chunk's frames cost no memory.
      tau: cosine from which an evicted token is merged; above 1 nothing is.
      merge: False drops every evicted token.
      score: ``"attention"``, as above, or the paper's ablation ``"sink_fifo"``: the latest tokens
        stay, next to ``protect_sink_frames``; what is evicted is merged all the same.
      profile: what tokens are compared by at each step of the horizon: their mean ``"logit"`` with
        the proxies (the paper's formula) or the ``"attention"`` they receive (its words).
      head_mode: every head keeps tokens of its own (``"per_head"``), or all heads the tokens of
        highest mean score (``"shared"``).
      protect_sink_frames: first frames of the video that are never evicted; 0 as in the paper.
      protect_recent_frames: latest frames that are not evicted; 0 as in the paper.
      history_norm: ``"age"`` divides a token's history by the chunks since it came, its own
        included; ``"t"``, Eq. 2 to the letter, by all chunks so far, to every new token's loss.
      proxy_token_stride: takes every so many tokens of the canonical query, row by row, as proxies.
        1 is the paper's method, whose two passes are 28 % of a chunk's work at 1,560 tokens a
        frame and 18 frames. Work falls with the stride, and with it what is foreseen of tokens far
        from the next proxy: avoid divisors of the grid's columns (`scripts/proxy_quality.py`).
      rope_remap: frame positions after an eviction. ``"slot"``: tokens in (frame, token) order
        fill pseudo-frames of N; ``"frame_rank"``: every frame of which something is left counts
        one, which may exceed B; ``"none"``: frames keep their numbers.

    Raises:
      ValueError: a field lies outside of its range; the message names it.
    """

    budget_frames: int = 18
    lam: float = 0.5
    delta_max: int = 6
    query_frames: int = 3
    tau: float = 0.95
    merge: bool = True
    score: Literal["attention", "sink_fifo"] = "attention"
    profile: Literal["logit", "attention"] = "logit"
    head_mode: Literal["per_head", "shared"] = "per_head"
    protect_sink_frames: int = 0
    protect_recent_frames: int = 0
    history_norm: Literal["age", "t"] = "age"
    proxy_token_stride: int = 1
    rope_remap: Literal["slot", "frame_rank", "none"] = "slot"

    def __post_init__(self):
        for name, least in (
            ("budget_frames", 2), ("delta_max", 1), ("query_frames", 1), ("proxy_token_stride", 1),
            ("protect_sink_frames", 0), ("protect_recent_frames", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        if not 0 <= self.lam <= 1:
            raise ValueError(f"lam={self.lam} must lie between 0 (history) and 1 (future)")
        if not -1 <= self.tau < float("inf"):
            raise ValueError(f"tau={self.tau} must be a cosine, or above 1 to merge nothing")
        for name, words in (
            ("score", ("attention", "sink_fifo")),
            ("profile", ("logit", "attention")),
            ("head_mode", ("per_head", "shared")),
            ("history_norm", ("age", "t")),
            ("rope_remap", ("slot", "frame_rank", "none")),
        ):
            if getattr(self, name) not in words:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {words}")

    def init(self, spec: CacheSpec) -> FutureState:
        past = self.budget_frames - spec.frames_per_chunk
        if past < 1:
            raise ValueError(
                f"budget_frames={self.budget_frames} leaves nothing of the past beside a chunk of "
                f"{spec.frames_per_chunk} latent frames, which it includes: raise it"
            )
        protected = self.protect_sink_frames + self.protect_recent_frames
        if protected > past:
            raise ValueError(
                f"protect_sink_frames={self.protect_sink_frames} and protect_recent_frames="
                f"{self.protect_recent_frames} do not fit into the {past} frames that "
                f"budget_frames={self.budget_frames} leaves beside a chunk of "
                f"{spec.frames_per_chunk}: lower them or raise it"
            )
        tokens = token_slots.empty_tokens(spec, self.budget_frames)
        proxies = -(-spec.tokens_per_frame // self.proxy_token_stride)
        needs_ring = self.query_frames > spec.frames_per_chunk
        none = jnp.zeros((spec.batch, spec.num_heads), jnp.int32)
        return FutureState(
            tokens=tokens,
            history=jnp.zeros(tokens.frame.shape, jnp.float32),
            recent=empty_queries(spec, self.query_frames, proxies) if needs_ring else None,
            num_merged=none,
            num_dropped=none,
        )

    def read(self, cache: FutureState, start_frame: FrameNumber, num_frames: int) -> CacheView:
        tokens = cache.tokens
        per_frame, columns = tokens.tokens_per_frame, tokens.grid[1]
        own = self._own_positions(tokens, start_frame, num_frames)
        place = jnp.arange(num_frames * per_frame, dtype=jnp.int32) % per_frame
        frame = jnp.repeat(own, per_frame, axis=-1)
        return CacheView(
            k=tokens.k,
            v=tokens.v,
            position=token_slots.token_positions(tokens.position, tokens.place, columns),
            visible=tokens.frame >= 0,
            query_position=token_slots.token_positions(
                frame, jnp.broadcast_to(place, frame.shape), columns
            ),
        )

    def commit(self, cache: FutureState, chunk: Chunk) -> FutureState:
        tokens = cache.tokens
        num_frames = chunk.k.shape[2] // tokens.tokens_per_frame
        frame = jnp.asarray(chunk.start_frame, jnp.int32) + jnp.arange(num_frames, dtype=jnp.int32)
        own = self._own_positions(tokens, chunk.start_frame, num_frames)
        written = by_heads(
            token_slots.write_frames, tokens, chunk.k, chunk.v, frame[None, None], own
        )
        recent = cache.recent
        if recent is not None:
            # Here and not in `evict`: what has been written may be read, in place; the other way
            # round XLA copies the ring.
            recent = remember(recent, self._frame_queries(cache, chunk), chunk.start_frame)
        return dataclasses.replace(cache, tokens=written, recent=recent)

    def evict(self, cache: FutureState, chunk: Chunk, attended: AttentionPart) -> FutureState:
        merit = self.merit(cache, chunk, attended)
        past = self.budget_frames - self._num_frames(cache, chunk)
        evict = functools.partial(self._evict, past * cache.tokens.tokens_per_frame)
        tokens, history, num_merged, num_dropped = by_heads(
            evict, cache.tokens, merit, self._is_protected(cache, chunk)
        )
        return FutureState(tokens, history, cache.recent, num_merged, num_dropped)

    def _evict(
        self, num_kept: int, tokens: TokenSlots, merit: Merit, is_protected: Bool[Array, "B N S"]
    ) -> tuple[TokenSlots, Float[Array, "B N S"], Int[Array, "B N"], Int[Array, "B N"]]:
        """(tokens, history, number merged, number dropped)."""
        split = token_eviction.split(tokens, merit.score, is_protected, num_kept)
        num_evicted = jnp.sum((tokens.frame >= 0) & ~split.stays, axis=-1, dtype=jnp.int32)
        num_merged = jnp.zeros_like(num_evicted)
        if self.merge and self.tau <= 1:
            profile = merit.future.logit if self.profile == "logit" else merit.future.weight
            tokens, num_merged = token_eviction.merged(
                tokens, split, profile, merit.future.weight, self.tau
            )
        retained = token_eviction.retained(tokens, split, self.rope_remap)
        history = jnp.where(split.stays, merit.history, 0.0)
        return retained, history, num_merged, num_evicted - num_merged

    def merit(self, cache: FutureState, chunk: Chunk, attended: AttentionPart) -> Merit:
        """What eviction goes by, of a chunk that is committed and has attended (Eq. 2)."""
        num_frames = self._num_frames(cache, chunk)
        view = self.read(cache, chunk.start_frame, num_frames)
        received = column_means(
            chunk.q, view.query_position, view.k, view.position, view.visible, attended
        )
        history = cache.history + received.weight[:, :, 0]
        if cache.recent is None:
            own = self._frame_queries(cache, chunk)[:, :, -self.query_frames :]
            query = mean_of_frames(own)
        else:
            query = canonical_query(cache.recent)
        last = view.query_position[:, :, -cache.tokens.tokens_per_frame :]
        future = future_attention(
            query, last[:, :, :: self.proxy_token_stride], view, self.delta_max
        )
        start = jnp.asarray(chunk.start_frame, jnp.int32)
        age = start // num_frames + 1
        if self.history_norm == "age":
            # Chunks since the token's own, which counts as one.
            age = 1 + (start - cache.tokens.frame + num_frames - 1) // num_frames
        score = history / age.astype(jnp.float32)
        if self.lam > 0:
            score = self.lam * jnp.mean(future.weight, axis=2) + (1 - self.lam) * score
        if self.score == "sink_fifo":
            # Relative to the chunk: exact in float32 for whatever was not evicted long ago.
            score = (cache.tokens.frame - start).astype(jnp.float32)
        if self.head_mode == "shared":
            score = jnp.broadcast_to(jnp.mean(score, axis=1, keepdims=True), score.shape)
        return Merit(score, history, future)

    def _num_frames(self, cache: FutureState, chunk: Chunk) -> int:
        return chunk.k.shape[2] // cache.tokens.tokens_per_frame

    def _frame_queries(self, cache: FutureState, chunk: Chunk) -> FrameQueries:
        per_frame = rearrange(chunk.q, "b n (f p) h -> b n f p h", p=cache.tokens.tokens_per_frame)
        return per_frame[:, :, :, :: self.proxy_token_stride]

    def _is_protected(self, cache: FutureState, chunk: Chunk) -> Bool[Array, "B N S"]:
        frame = cache.tokens.frame
        end = jnp.asarray(chunk.start_frame, jnp.int32) + self._num_frames(cache, chunk)
        is_recent = frame >= end - self.protect_recent_frames
        return (frame < self.protect_sink_frames) | is_recent

    def _own_positions(
        self, tokens: TokenSlots, start_frame: FrameNumber, num_frames: int
    ) -> Int[Array, "B N F"]:
        """Frame positions of a chunk: right after what is left of the past."""
        start = jnp.asarray(start_frame, jnp.int32)
        is_past = (tokens.frame >= 0) & (tokens.frame < start)
        first = jnp.max(tokens.position, axis=-1, keepdims=True, where=is_past, initial=-1) + 1
        if self.rope_remap == "none":
            first = jnp.broadcast_to(start, first.shape)
        return first + jnp.arange(num_frames, dtype=jnp.int32)[None, None]

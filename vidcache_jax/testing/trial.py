"""A policy on trial: random chunks pass through it, and everything it shows is recorded."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from vidcache_jax.cache.attend import attend_past_and_self, attend_view
from vidcache_jax.cache.policy import CachePolicy
from vidcache_jax.cache.state import CacheSpec, CacheView, Chunk
from vidcache_jax.ops.attention import AttentionPart
from vidcache_jax.testing.tolerances import same_bits

Heads = Shaped[np.ndarray, "*mapped 3 L B N T H"]
"""Un-rotated q, k and v of one chunk in every layer."""


def random_chunk(rng: np.random.Generator, spec: CacheSpec, start_frame: int = 0) -> Chunk:
    """Normally distributed q, k, v of one layer's chunk."""
    q, k, v = jnp.asarray(random_heads(rng, spec, 1)[:, 0])
    return chunk_of(spec, q, k, v, jnp.asarray(start_frame, jnp.int32))


def chunk_of(spec: CacheSpec, q: Any, k: Any, v: Any, start_frame: Any) -> Chunk:
    """A chunk made with the prompt of all trials: two tokens and one of padding.

    Their keys differ in length, so that a mean of keys is not a mean of directions.
    """
    shape = (spec.num_heads, 3, spec.head_dim)
    text_k = np.random.default_rng(0).standard_normal(shape) * [[1], [4], [16]]
    text_k = text_k.astype(jnp.dtype(spec.dtype))
    # The same for every video, so that batches may be permuted and mapped without it.
    text_k = jnp.broadcast_to(jnp.asarray(text_k), (spec.batch, *shape))
    is_text = jnp.broadcast_to(jnp.array([True, True, False]), (spec.batch, 3))
    return Chunk(q, k, v, text_k, is_text, start_frame)


def random_heads(rng: np.random.Generator, spec: CacheSpec, num_layers: int) -> Heads:
    tokens = spec.frames_per_chunk * spec.tokens_per_frame
    shape = (3, num_layers, spec.batch, spec.num_heads, tokens, spec.head_dim)
    return rng.standard_normal(shape).astype(jnp.dtype(spec.dtype))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ViewRecord:
    """The fields of a `CacheView`, with a leading layer axis."""

    k: Any
    v: Any
    position: Any
    visible: Any
    query_position: Any

    @classmethod
    def of(cls, view: CacheView) -> "ViewRecord":
        return cls(view.k, view.v, view.position, view.visible_tokens, view.query_position)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Attended:
    """What a chunk's attention gives in a denoise pass and in its commit pass."""

    denoised: Any
    committed: Any

    @classmethod
    def of(cls, before: CacheView, committed: AttentionPart, chunk: Chunk) -> "Attended":
        """In a denoise pass the view is merged with the chunk's own keys, which it lacks."""
        return cls(attend_past_and_self(chunk, before).out, committed.out)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChunkRecord:
    """What a policy showed while one chunk was made; arrays with a leading layer axis."""

    before: ViewRecord
    """The view of the denoise passes."""
    after: ViewRecord
    """The view of the commit pass, in which the chunk sees itself."""
    attended: Any
    """`Attended`, or None where attention was left out."""


@dataclasses.dataclass(frozen=True, eq=False)
class Trial:
    """One policy with one set of sizes; its chunk program is compiled once.

    Caches pass in and out as lists of leaves stacked over layers, so that a trial depends on
    nothing but the protocol.
    """

    policy: CachePolicy
    spec: CacheSpec
    num_layers: int = 1
    traces: list = dataclasses.field(default_factory=list, repr=False)
    """One entry for each time that `step` was traced for compilation."""

    def empty(self) -> list[jax.Array]:
        return jax.tree.leaves(self.policy.init_layers(self.spec, self.num_layers))

    def with_batch(self, batch: int) -> "Trial":
        spec = dataclasses.replace(self.spec, batch=batch)
        return Trial(self.policy, spec, self.num_layers)

    def random_history(self, seed: int, num_chunks: int, kind: str = "normal") -> list[Heads]:
        """Chunks of every layer: "normal", "large" (one key wins), "repeated" or "zero" (ties)."""
        rng = np.random.default_rng(seed)
        history = [random_heads(rng, self.spec, self.num_layers) for _ in range(num_chunks)]
        if kind == "repeated":
            history = history[:1] * num_chunks
        scale = {"normal": 1, "repeated": 1, "large": 30, "zero": 0}[kind]
        return [heads * heads.dtype.type(scale) for heads in history]

    @functools.cached_property
    def treedef(self):
        return jax.tree.structure(self.policy.init(self.spec))

    @functools.cached_property
    def max_slots(self) -> int:
        """Latent frames that a view can hold."""

        def keys():
            start = jnp.zeros((), jnp.int32)
            cache = self.policy.init(self.spec)
            return self.policy.read(cache, start, self.spec.frames_per_chunk).k

        return -(-jax.eval_shape(keys).shape[2] // self.spec.tokens_per_frame)

    @functools.cached_property
    def stores_tokens(self) -> list[bool]:
        """For each leaf of the cache, whether keys or values of the view are taken from it."""

        @quick_jit
        def shown(leaves):
            cache = jax.tree.unflatten(self.treedef, leaves)
            start = jnp.zeros((), jnp.int32)
            view = self.policy.read(cache, start, self.spec.frames_per_chunk)
            return view.k, view.v

        def is_shown(index):
            if not jnp.issubdtype(leaves[index].dtype, jnp.floating):
                return False
            changed = [*leaves]
            changed[index] = jnp.full_like(leaves[index], 7)
            return not all(map(same_bits, shown(leaves), shown(changed)))

        leaves = jax.tree.leaves(self.policy.init(self.spec))
        return [is_shown(index) for index in range(len(leaves))]

    def attending(self, garbage: float = 0.0) -> Callable:
        """The chunk program `step`, compiled once for any garbage."""
        return lambda *inputs: self._compiled(*inputs, jnp.asarray(garbage, self.spec.dtype))

    @functools.cached_property
    def viewing(self) -> Callable:
        """The chunk program `views`, compiled."""
        return quick_jit(self.views)

    @functools.cached_property
    def _compiled(self) -> Callable:
        def step(*inputs):
            self.traces.append(None)
            return self.step(*inputs)

        return quick_jit(step)

    def views(self, leaves, heads: Any, start_frame) -> tuple[list, ChunkRecord]:
        """One chunk as the model makes it: read, commit, read, evict; then settle."""
        return self._chunk(leaves, heads, start_frame, None)

    def step(self, leaves, heads: Any, start_frame, garbage) -> tuple[list, ChunkRecord]:
        """`views`, and what the chunk attends to.

        ``garbage`` is written over every key and value that a view declares invisible.
        """
        return self._chunk(leaves, heads, start_frame, garbage)

    def _chunk(self, leaves, heads, start_frame, garbage):
        num_frames = self.spec.frames_per_chunk

        def layer(inputs):
            own, (q, k, v) = inputs
            cache = jax.tree.unflatten(self.treedef, own)
            chunk = chunk_of(self.spec, q, k, v, start_frame)
            before = self.policy.read(cache, start_frame, num_frames)
            updated = self.policy.commit(cache, chunk)
            after = self.policy.read(updated, start_frame, num_frames)
            committed = commit_attention(q, after, garbage)
            attended = (
                None if garbage is None
                else Attended.of(_spoil(before, garbage), committed, chunk)
            )  # fmt: skip
            record = ChunkRecord(ViewRecord.of(before), ViewRecord.of(after), attended)
            return jax.tree.leaves(self.policy.evict(updated, chunk, committed)), record

        leaves, record = jax.lax.map(layer, (leaves, tuple(heads)))
        cache = self.policy.settle(jax.tree.unflatten(self.treedef, leaves), start_frame)
        return jax.tree.leaves(cache), record

    def run(
        self,
        history: Sequence[Heads],
        *,
        leaves: list[jax.Array] | None = None,
        first_frame: int = 0,
        step: Callable | None = None,
    ) -> tuple[list, list[ChunkRecord]]:
        """Makes the chunks of a history one after the other.

        Args:
          leaves: of the cache to begin with; the empty one by default.
          step: (leaves, heads, start_frame) -> (leaves, record); `attending` by default.

        Returns:
          The cache's leaves after the last chunk, and one record (NumPy) per chunk.
        """
        cache = self.empty() if leaves is None else leaves
        step = step or self.attending()
        records = []
        for index, heads in enumerate(history):
            start = jnp.asarray(first_frame + index * self.spec.frames_per_chunk, jnp.int32)
            cache, record = step(cache, heads, start)
            records.append(jax.tree.map(np.asarray, record))
        return cache, records


def quick_jit(function: Callable, **options: Any) -> Callable:
    """`jax.jit` for programs that run a few times only: less time to compile, more to run."""
    if jax.default_backend() == "cpu":
        options["compiler_options"] = {"xla_backend_optimization_level": 0}
    return jax.jit(function, **options)


def commit_attention(q: Any, view: CacheView, garbage: Any = None) -> AttentionPart:
    """What the commit pass attends to; ``garbage`` is written over what the view hides."""
    view = view if garbage is None else _spoil(view, garbage)
    return attend_view(q, view)


def _spoil(view: CacheView, garbage) -> CacheView:
    visible = view.visible_tokens[..., None]
    k, v = (jnp.where(visible, x, garbage.astype(x.dtype)) for x in (view.k, view.v))
    return dataclasses.replace(view, k=k, v=v)

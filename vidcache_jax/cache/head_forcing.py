"""HeadForcing: what a head remembers depends on its role (arXiv 2605.14487; no code published).

    role     attends to, in this order                                 frames
    local    the nearest neighbour, the chunk                          1 + F
    anchor   the first frames, the nearest neighbour, the chunk        3 + 1 + F
    memory   episodic memory, the fast window, the chunk               5 + 3 + F

Every third chunk the first frame of the chunk that left the fast window is a candidate for episodic
memory, admitted if it is new (`cache.novelty`), for all layers or none. Full memory first merges
two entries into a summary of one frame (`cache.compression`), which is the first entry from then
on. Each head re-indexes what it sees: frames 0 ... n - 1 in the order above, the chunk last.

One buffer holds every head's frames, so that layers are scanned and roles are data:

    slots  0 ... E-1                       E ... E+R-1
    all    the first frames of the video   a ring of the latest frames
    memory episodic memory, as it fills

The ring is written for all heads at once; each sees as much of it as its role says. Every head
is given the slots of the longest: 11 at the paper's sizes, where the roles need 4, 7 and 11.

Where the paper is silent: the update follows all layers of a commit pass; the candidate is the
first frame of chunk i - ceil(fast_size / F), numbered from 1, when i is a multiple of
``update_interval``; entries to merge are chosen once for all layers, tokens per layer; a summary's
tokens keep the rows and columns they came from. When the prompt changes, memory stays and is judged
by the new one; to make it anew is left to the sampler (`Session`, ``recache_frames``).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.array_typing import FrameNumber
from vidcache_jax.cache import compression, novelty, slots, stacked
from vidcache_jax.cache.head_roles import MEMORY, HeadRoles
from vidcache_jax.cache.policy import CachePolicy, put_layer, take_layer
from vidcache_jax.cache.state import CacheSpec, CacheView, Chunk, SlotCache
from vidcache_jax.ops.rope import rotate


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HeadForcingState:
    """Frames, and what episodic memory is about; E episodic slots, P tokens a frame."""

    slots: SlotCache
    """``frame_index`` tells the first and the latest frames, as all heads hold them."""
    pooled: Float[Array, "*stack B N K H"]
    """Mean key of each slot, kept so that no frame is re-read to compare it."""
    prompt: Float[Array, "*stack B N H"]
    """Mean prompt key of the latest chunk."""
    role: Int[Array, "*stack N"]
    entry: Int[Array, "*stack B E"]
    """Frame that memory heads hold as an episodic entry in slot e; -1 = none. Of a summary, the
    first that was merged."""
    summary: Int[Array, "*stack B"]
    """Slot of the summary, -1 = none yet."""
    place: Int[Array, "*stack B P"]
    """Where in their frames the summary's tokens lay, row by row."""
    admitted: Int[Array, "*stack B"]
    """Candidates that became entries, over the whole video."""
    merged: Int[Array, "*stack B"]
    """Times that two entries became one."""
    frames_per_chunk: int = dataclasses.field(metadata={"static": True})


@dataclasses.dataclass(frozen=True)
class Update:
    """What becomes of episodic memory after a chunk; slots of each video."""

    admit: Bool[Array, " B"]
    merge: Bool[Array, " B"]
    first: Int[Array, " B"]
    """Merged with ``target``; the summary's place."""
    target: Int[Array, " B"]
    """Where the candidate goes."""
    source: Int[Array, ""]
    """Where the candidate lies."""


@dataclasses.dataclass(frozen=True)
class HeadForcing(CachePolicy):
    """Local, anchor and memory heads, each with the frames its role needs.

    Attributes:
      roles: of every head of the model; from a file by `HeadRoles.load`, or a profiled model's
        own ``model.head_roles``.
      episodic_size: B_epi, entries of episodic memory, the summary included.
      fast_size: B_fast, frames before the chunk that memory heads see.
      anchor_size: first frames of the video that anchor heads see.
      neighbour_size: frames before the chunk that local and anchor heads see.
      update_interval: chunks between candidates for episodic memory.
      admission: ``"novelty"``; ``"uniform"`` always admits: the candidates are evenly spaced in
        time, with ``update_interval=1`` one of every chunk; ``"never"`` leaves the fast window
        alone.
      tau_novel: similarity below which a candidate is new, a cosine.
      overflow: how full memory makes room. ``"prompt"`` and ``"random"`` merge two entries, of
        which the best or random tokens stay; ``"fifo"`` drops the oldest entry.
      rope: ``"headwise"``; ``"global"``: every frame takes its own number, a summary that of its
        first frame.
      prompt_source: what the prompt key is the mean of: the cross-attention ``"keys"`` of the
        prompt's tokens, or their ``"directions"``, so that a token counts the same however long
        its key. The paper is silent.
      mask_padding: leave padding out of the mean prompt key.
      score_on: keys that novelty and tokens are judged by: ``"stored"`` as the paper keeps them,
        rotated by row and column, or ``"raw"``.

    Raises:
      ValueError: a size is too small, or a word is unknown.
    """

    roles: HeadRoles | None = None
    episodic_size: int = 5
    fast_size: int = 3
    anchor_size: int = 3
    neighbour_size: int = 1
    update_interval: int = 3
    admission: Literal["novelty", "uniform", "never"] = "novelty"
    tau_novel: float = 0.95
    overflow: Literal["prompt", "random", "fifo"] = "prompt"
    rope: Literal["headwise", "global"] = "headwise"
    prompt_source: Literal["keys", "directions"] = "keys"
    mask_padding: bool = True
    score_on: Literal["stored", "raw"] = "stored"

    def __post_init__(self):
        for name, least, why in (
            ("episodic_size", 2, ", a summary and an entry"),
            ("fast_size", 1, ""),
            ("anchor_size", 0, ""),
            ("neighbour_size", 0, ""),
            ("update_interval", 1, ""),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}{why}")
        if not -1 <= self.tau_novel <= 1:
            raise ValueError(f"tau_novel={self.tau_novel} is a cosine: it must lie in [-1, 1]")
        for name, words in (
            ("admission", ("novelty", "uniform", "never")),
            ("overflow", ("prompt", "random", "fifo")),
            ("rope", ("headwise", "global")),
            ("prompt_source", ("keys", "directions")),
            ("score_on", ("stored", "raw")),
        ):
            if getattr(self, name) not in words:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {words}")

    @property
    def kept_slots(self) -> int:
        """E: slots before the ring."""
        return max(self.episodic_size, self.anchor_size)

    def ring_slots(self, frames_per_chunk: int) -> int:
        """R: the chunk, and before it whole chunks that cover the fast window.

        Whole chunks, for a candidate is the first frame of a chunk whose last has just left.
        """
        fast = self._chunks_in_fast(frames_per_chunk) * frames_per_chunk
        return max(fast, self.neighbour_size) + frames_per_chunk

    def frame_slots(self, frames_per_chunk: int) -> int:
        """Frames that the model's heads attend to once memory is full, summed over heads.

        The chunk counts. 3,096 for the paper's 72 local, 90 anchor and 198 memory heads.
        """
        past = {
            "local": self.neighbour_size,
            "anchor": self.anchor_size + self.neighbour_size,
            "memory": self.fast_size + (self.admission != "never") * self.episodic_size,
        }
        table = self._known_roles.table
        return sum(past[role] + frames_per_chunk for row in table for role in row)

    def init(self, spec: CacheSpec) -> HeadForcingState:
        """The cache of a layer with the roles of the first; `init_layers` gives each its own."""
        roles = self._roles_of(spec)
        num_slots = self.kept_slots + self.ring_slots(spec.frames_per_chunk)
        shape = (spec.batch, spec.num_heads, num_slots, spec.head_dim)
        return HeadForcingState(
            slots=slots.empty_slots(spec, num_slots),
            pooled=jnp.zeros(shape, jnp.float32),
            prompt=jnp.zeros((*shape[:2], spec.head_dim), jnp.float32),
            role=jnp.asarray(roles.numbers[0]),
            entry=jnp.full((spec.batch, self.episodic_size), -1, jnp.int32),
            summary=jnp.full((spec.batch,), -1, jnp.int32),
            admitted=jnp.zeros((spec.batch,), jnp.int32),
            merged=jnp.zeros((spec.batch,), jnp.int32),
            place=jnp.zeros((spec.batch, spec.tokens_per_frame), jnp.int32),
            frames_per_chunk=spec.frames_per_chunk,
        )

    def check_model(self, fingerprint: Callable[[], str]) -> None:
        if self.roles is not None and self.roles.fingerprint is not None:
            self.roles.check_model(fingerprint())

    def init_layers(self, spec: CacheSpec, num_layers: int) -> HeadForcingState:
        roles = self._roles_of(spec)
        if roles.shape[0] != num_layers:
            raise ValueError(
                f"the role table has {roles.shape[0]} layers, the model {num_layers}: profile "
                "this model with `vidcache profile-heads`"
            )
        same = super().init_layers(spec, num_layers)
        return dataclasses.replace(same, role=jnp.asarray(roles.numbers))

    def read(self, cache: HeadForcingState, start_frame: FrameNumber, num_frames: int) -> CacheView:
        held, start = cache.slots, jnp.asarray(start_frame, jnp.int32)
        frames = held.frame_index
        exists = frames >= 0
        near = exists & (frames >= start - self.neighbour_size)
        fast = exists & (frames >= start - self.fast_size)
        ring = ((0, 0), (0, frames.shape[1] - self.episodic_size))
        entry = jnp.pad(cache.entry, ring, constant_values=-1)
        is_entry = entry >= 0
        slot = jnp.arange(frames.shape[1], dtype=jnp.int32)[None]

        # The three roles, then each head's own: [B, N, K].
        per_head = lambda *roles: jnp.moveaxis(jnp.stack(roles)[cache.role], 0, 1)
        visible = per_head(near, near | (exists & (frames < self.anchor_size)), fast | is_entry)
        number = per_head(frames, frames, jnp.where(is_entry, entry, frames))
        none = jnp.zeros_like(is_entry)
        is_summary = per_head(none, none, slot == cache.summary[:, None])
        own = jnp.arange(num_frames, dtype=jnp.int32)[None, None]
        if self.rope == "headwise":
            in_order = jnp.where(is_summary, -1, number)
            position = jax.vmap(slots.order_positions, 1, 1)(in_order, visible)
            past = visible & (number < start)
            own = own + jnp.sum(past, axis=-1, keepdims=True, dtype=jnp.int32)
        else:
            position, own = number, jnp.broadcast_to(start + own, (*number.shape[:2], num_frames))
        tokens = held.grid[0] * held.grid[1]
        place = jnp.arange(tokens, dtype=jnp.int32)[None, None, None]
        own_place = jnp.broadcast_to(place, (*own.shape, tokens))
        place = jnp.where(is_summary[..., None], cache.place[:, None, None], place)
        return CacheView(
            k=held.k,
            v=held.v,
            position=_positions(position, place, held.grid[1]),
            visible=visible,
            query_position=_positions(own, own_place, held.grid[1]),
        )

    def commit(self, cache: HeadForcingState, chunk: Chunk) -> HeadForcingState:
        grid = cache.slots.grid
        tokens, num_frames = grid[0] * grid[1], cache.frames_per_chunk
        frames = slots.chunk_frames(chunk.start_frame, num_frames, 1)
        places = self._slot_of(frames, num_frames)
        place = jnp.arange(num_frames * tokens, dtype=jnp.int32)[None] % tokens
        keys = self._judged(chunk.k.astype(cache.slots.k.dtype), place, grid[1])
        pooled = novelty.pooled_keys(keys, num_frames)
        counted = chunk.is_text | (not self.mask_padding)
        text_k = chunk.text_k.astype(jnp.float32)
        if self.prompt_source == "directions":
            text_k = novelty.unit(text_k)
        return dataclasses.replace(
            cache,
            slots=slots.write_frames(cache.slots, places, chunk.k, chunk.v, frames),
            pooled=cache.pooled.at[:, :, places[0]].set(pooled),
            prompt=compression.prompt_key(text_k, counted),
        )

    def memory_index(self, cache: HeadForcingState) -> Int[Array, "L memory"]:
        """Frames of the episodic entries, a summary's first among them."""
        entry, none = cache.entry[:, 0], jnp.iinfo(jnp.int32).max
        ascending = jnp.sort(jnp.where(entry >= 0, entry, none), axis=-1)
        return jnp.where(ascending == none, -1, ascending)

    # Jitted by itself too: where the chunk is not, its loop would be compiled anew every time.
    @functools.partial(jax.jit, static_argnums=0)
    def settle(self, cache: HeadForcingState, start_frame: FrameNumber) -> HeadForcingState:
        """Episodic memory after a chunk: admit the candidate, for which entries may merge."""
        size, start = cache.frames_per_chunk, jnp.asarray(start_frame, jnp.int32)
        is_due = (start // size + 1) % self.update_interval == 0
        candidate = start - self._chunks_in_fast(size) * size
        update = self._decide(cache, candidate, is_due & (candidate >= 0))
        slot = jnp.arange(self.episodic_size, dtype=jnp.int32)[None]
        is_target = update.admit[:, None] & (slot == update.target[:, None])
        entry = jnp.where(is_target, candidate, cache.entry[0])
        summary = jnp.where(update.merge, update.first, cache.summary[0])
        # A loop of no rounds where nothing is admitted: a `cond` would copy the cache.
        rounds = jnp.where(jnp.any(update.admit), cache.role.shape[0], 0)
        buffers = (cache.slots.k, cache.slots.v, cache.pooled, cache.place)
        edit = functools.partial(self._edit, cache, update, candidate)
        k, v, pooled, place = jax.lax.fori_loop(0, rounds, edit, buffers)
        return dataclasses.replace(
            cache,
            slots=dataclasses.replace(cache.slots, k=k, v=v),
            pooled=pooled,
            entry=jnp.broadcast_to(entry[None], cache.entry.shape),
            summary=jnp.broadcast_to(summary[None], cache.summary.shape),
            place=place,
            admitted=cache.admitted + update.admit[None].astype(jnp.int32),
            merged=cache.merged + update.merge[None].astype(jnp.int32),
        )

    def _decide(
        self, cache: HeadForcingState, candidate: FrameNumber, is_due: Bool[Array, ""]
    ) -> Update:
        source = self._slot_of(candidate, cache.frames_per_chunk)
        entry, summary = cache.entry[0], cache.summary[0]
        is_memory, held = cache.role == MEMORY, entry >= 0
        compared = jnp.concatenate(
            [
                cache.pooled[..., : self.episodic_size, :],
                jax.lax.dynamic_slice_in_dim(cache.pooled, source, 1, axis=3),
            ],
            axis=3,
        )
        similar = novelty.similarity(compared, is_memory)
        among, to_entries = similar[:, :-1, :-1], similar[:, -1, :-1]
        is_there = jnp.take(cache.slots.frame_index[0], source, axis=1, mode="clip") == candidate
        admit = is_due & is_there & jnp.any(is_memory)
        if self.admission == "novelty":
            admit &= novelty.is_novel(to_entries, held, self.tau_novel)
        elif self.admission == "never":
            admit = jnp.zeros_like(admit)
        is_full = jnp.all(held, axis=-1)
        ordered = novelty.in_time(entry, summary)
        at = lambda index: jnp.take_along_axis(ordered, index[:, None], axis=1)[:, 0]
        if self.overflow == "fifo":
            first = second = ordered[:, 0]
            merge = jnp.zeros_like(admit)
        else:
            by_time = jax.vmap(lambda x, order: x[order][:, order])(among, ordered)
            i, j = novelty.closest_pair(by_time)
            has_summary = summary >= 0
            first = at(jnp.where(has_summary, 0, i))
            second = at(jnp.where(has_summary, novelty.most_redundant(by_time), j))
            merge = admit & is_full
        target = jnp.where(is_full, second, jnp.argmin(held, axis=-1))
        return Update(admit, merge, *(x.astype(jnp.int32) for x in (first, target, source)))

    def _edit(self, cache: HeadForcingState, update: Update, candidate, layer, carry):
        """One layer of the update: summary and candidate take their slots, in memory heads."""
        k, v, pooled, place = carry
        tokens = place.shape[-1]
        is_memory = take_layer(cache.role, layer) == MEMORY
        three = jnp.stack(
            [update.first, update.target, jnp.broadcast_to(update.source, update.first.shape)], 1
        )
        rows = jnp.arange(tokens, dtype=jnp.int32)[None]
        before = take_layer(place, layer)
        is_again = (cache.summary[0] == update.first)[:, None]
        places = jnp.concatenate(
            [jnp.where(is_again, before, rows), jnp.broadcast_to(rows, before.shape)], axis=1
        )
        old_k, old_v = (stacked.take_slots(x, layer, three, tokens) for x in (k, v))
        pair = old_k[:, :, : 2 * tokens]
        kept = self._kept_tokens(cache, pair, places, is_memory, candidate, layer)

        def moved(old, if_merged, if_admitted: int):
            """The next content of the first two slots: for each row of them a row of ``old``.

            A choice of rows, not of values by `where`: XLA would move the reads into the writes,
            and keep a copy of the whole buffer for them.
            """
            size = if_merged.shape[1]
            rows = jnp.arange(size, dtype=jnp.int32)[None]
            first = jnp.where(update.merge[:, None], if_merged, rows)
            target = size + jnp.where(update.admit[:, None], if_admitted * size + rows, rows)
            both = jnp.concatenate([first, target], axis=1)[:, None]
            same = jnp.arange(2 * size, dtype=jnp.int32)[None, None]
            index = jnp.where(is_memory[None, :, None], both, same)
            return jnp.take_along_axis(old, index[..., None], axis=2)

        new_k, new_v = moved(old_k, kept, 1), moved(old_v, kept, 1)
        kept_places = jnp.take_along_axis(places, kept, axis=1)
        new_place = jnp.where(update.merge[:, None], kept_places, before)
        summary = self._judged(new_k[:, :, :tokens], new_place, cache.slots.grid[1])
        old_pooled = jnp.concatenate(
            [stacked.take_slots(pooled, layer, three, 1), novelty.pooled_keys(summary, 1)], axis=2
        )
        new_pooled = moved(old_pooled, jnp.full_like(update.first, 3)[:, None], 1)
        k, v, pooled = (
            stacked.put_slots(x, layer, three[:, :2], new)
            for x, new in ((k, new_k), (v, new_v), (pooled, new_pooled))
        )
        return k, v, pooled, put_layer(place, layer, new_place)

    def _kept_tokens(
        self, cache: HeadForcingState, pair: Float[Array, "B N T H"], places, is_memory,
        candidate, layer,
    ) -> Int[Array, "B P"]:  # fmt: skip
        """Which tokens of a pair of frames the summary keeps."""
        if self.overflow == "random":
            key = jax.random.fold_in(jax.random.key(candidate), layer)
            score = jnp.broadcast_to(jax.random.uniform(key, (1, places.shape[1])), places.shape)
        else:
            judged = self._judged(pair, places, cache.slots.grid[1])
            score = compression.prompt_scores(judged, take_layer(cache.prompt, layer), is_memory)
        return compression.best_tokens(score, cache.place.shape[-1])

    @property
    def _known_roles(self) -> HeadRoles:
        if self.roles is None:
            raise ValueError(
                "HeadForcing needs the roles of the model's heads: pass roles=model.head_roles, "
                "or a table that `vidcache profile-heads` wrote, read by HeadRoles.load"
            )
        return self.roles

    def _roles_of(self, spec: CacheSpec) -> HeadRoles:
        roles = self._known_roles
        if roles.shape[1] != spec.num_heads:
            raise ValueError(
                f"the role table has {roles.shape[1]} heads a layer, the model "
                f"{spec.num_heads}: profile this model with `vidcache profile-heads`"
            )
        return roles

    def _chunks_in_fast(self, frames_per_chunk: int) -> int:
        return -(-self.fast_size // frames_per_chunk)

    def _slot_of(self, frame: Int[Array, "*shape"], frames_per_chunk: int) -> Int[Array, "*shape"]:
        """The first frames lie at their own number, the others take turns in the ring.

        Entries may overwrite the first frames in memory heads: the n-th entry is frame n or later,
        and when slot n is taken, the fast window begins later than that.
        """
        ring = (frame - self.anchor_size) % self.ring_slots(frames_per_chunk)
        return jnp.where(frame < self.anchor_size, frame, self.kept_slots + ring)

    def _judged(
        self, k: Float[Array, "B N T H"], place: Int[Array, "#B T"], columns: int
    ) -> Float[Array, "B N T H"]:
        """Keys in the form that they are compared in."""
        if self.score_on == "raw":
            return k
        frame = jnp.zeros((place.shape[0], 1, 1), jnp.int32)
        return rotate(k, _positions(frame, place[:, None, None], columns))


def _positions(
    frame: Int[Array, "B G K"], place: Int[Array, "B G K P"], columns: int
) -> Int[Array, "B G S 3"]:
    """(frame, row, column) of every token of K frames."""
    frame = jnp.broadcast_to(frame[..., None], place.shape)
    position = jnp.stack([frame, place // columns, place % columns], axis=-1)
    return position.reshape(*place.shape[:2], -1, 3)

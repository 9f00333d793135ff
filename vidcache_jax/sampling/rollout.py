"""One chunk of a rollout, as a pure function: denoise passes that read, one pass that commits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from vidcache_jax.array_typing import FrameNumber, Latents, Params
from vidcache_jax.cache.policy import CachePolicy, StackedPolicy
from vidcache_jax.cache.state import StackedCache, Statistics
from vidcache_jax.config import RolloutConfig, WanConfig
from vidcache_jax.models import wan_dit
from vidcache_jax.sampling import schedule
from vidcache_jax.sharding import DATA, ONE_DEVICE, Layout


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RolloutState:
    """Everything a rollout carries from chunk to chunk."""

    cache: StackedCache
    next_frame: FrameNumber
    """Latent frames made so far; the number of the next one."""
    statistics: Statistics = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChunkResult:
    latents: Latents
    flow_first: Latents
    """Flow of the chunk's first denoise pass."""


@dataclasses.dataclass(frozen=True)
class Rollout:
    """The static facts of a rollout: hashable, so that equal rollouts share one compilation."""

    config: WanConfig
    rollout: RolloutConfig
    policy: StackedPolicy
    """A `CachePolicy` at first; `advance` may put another in its place."""
    layout: Layout = ONE_DEVICE

    def init(self, batch: int, latent_size: tuple[int, int], dtype) -> RolloutState:
        """`empty`, where the layout wants it, and no chip holds the whole even for a moment."""
        empty = functools.partial(self.empty, batch, latent_size, dtype)
        return jax.jit(empty)() if self.layout.mesh else empty()

    def empty(self, batch: int, latent_size: tuple[int, int], dtype) -> RolloutState:
        """Empty caches and frame 0, for latents of (Y, X).

        Raises:
          ValueError: the policy cannot serve this chunk size, or the size does not patchify, or
            the layout cannot divide it.
        """
        if not isinstance(self.policy, CachePolicy):
            raise TypeError(f"{self.policy} has no empty cache: a video does not begin with it")
        spec = wan_dit.cache_spec(
            self.config, batch, latent_size, self.rollout.frames_per_chunk, dtype
        )
        self.layout.check(batch, spec.num_heads, spec.frames_per_chunk * spec.tokens_per_frame)
        layers = self.config.num_layers
        state = RolloutState(
            cache=self.policy.init_layers(spec, layers),
            next_frame=jnp.zeros((), jnp.int32),
            statistics=self.policy.init_statistics(spec, layers),
        )
        return self.layout.placed(state)

    def step(
        self,
        params: Params,
        state: RolloutState,
        text_kv: wan_dit.TextKV,
        noise: Latents,
        renoise: Float[Array, "later B F Y X C"],
    ) -> tuple[RolloutState, ChunkResult]:
        """Makes one chunk.

        x = noise
        for each timestep t:   x0 = x - sigma(t) dit(x, t, cache)
                               x  = (1 - sigma(t')) x0 + sigma(t') fresh noise
        cache = commit(x0, cache, context_timestep)
        """
        return self._over_videos(self._step, params, state, text_kv, noise, renoise)

    def _step(self, params: Params, state: RolloutState, text_kv, noise, renoise):
        batch, num_frames = noise.shape[:2]
        model = (params, self.config, self.policy)
        start = state.next_frame

        def timestep(t):
            return jnp.full((batch, num_frames), t, jnp.float32)

        timesteps = schedule.rollout_timesteps(self.rollout)
        sigmas = jnp.asarray(timesteps / 1000, jnp.float32)

        prepared = self.policy.prepare(state.cache, start, num_frames)

        def denoise(x, t, sigma, statistics):
            flow, statistics = wan_dit.denoise(
                *model, x, timestep(t), text_kv, state.cache, start, statistics, self.layout,
                prepared,
            )  # fmt: skip
            flow = flow.astype(jnp.float32)
            # flow = noise - clean, so a pass says what is clean and what is noise in x.
            return (x - sigma * flow, x + (1 - sigma) * flow, statistics), flow

        # The first pass stands alone (its flow is returned); the others are one loop, so that the
        # program holds two copies of the model's denoise pass however many steps there are.
        carry, flow_first = denoise(noise, jnp.float32(timesteps[0]), sigmas[0], state.statistics)

        def next_pass(carry, inputs):
            clean, implied, statistics = carry
            t, sigma, fresh = inputs
            noise = fresh if self.rollout.renoise == "fresh" else implied
            carry, _ = denoise((1 - sigma) * clean + sigma * noise, t, sigma, statistics)
            return carry, None

        later = (jnp.asarray(timesteps[1:], jnp.float32), sigmas[1:], renoise)
        (clean, _, statistics), _ = jax.lax.scan(next_pass, carry, later)
        before = dataclasses.replace(state, statistics=statistics)
        return self._commit(params, before, text_kv, clean), ChunkResult(clean, flow_first)

    def commit(
        self, params: Params, state: RolloutState, text_kv: wan_dit.TextKV, latents: Latents
    ) -> RolloutState:
        """Admits a clean chunk to the caches: one of a given prefix."""

        def commit(*inputs):
            return self._commit(*inputs), ()

        return self._over_videos(commit, params, state, text_kv, latents)[0]

    def _commit(self, params: Params, state: RolloutState, text_kv, latents) -> RolloutState:
        timestep = jnp.full(latents.shape[:2], self.rollout.context_timestep, jnp.float32)
        cache, statistics = wan_dit.commit(
            params, self.config, self.policy, latents, timestep, text_kv, state.cache,
            state.next_frame, state.statistics, self.layout,
        )  # fmt: skip
        return RolloutState(cache, state.next_frame + latents.shape[1], statistics)

    def _over_videos(self, function, params: Params, state: RolloutState, text_kv, *inputs):
        """``function`` on the videos of each place on ``data``: they never meet.

        By hand, for whatever a policy does to one video after the other; heads and tokens are
        left to the compiler. ``inputs`` have their videos before the frames of their latents.
        """
        if self.layout.mesh is None:
            return function(params, state, text_kv, *inputs)
        leaves, treedef = jax.tree.flatten(state)
        structures = []

        def own_videos(params, leaves, text_kv, *inputs):
            state, result = function(params, jax.tree.unflatten(treedef, leaves), text_kv, *inputs)
            structures.append(jax.tree.structure(result))
            return jax.tree.leaves(self.layout.kept(state)), jax.tree.leaves(result)

        carried = self.layout.specs(state, DATA)
        given = [P(*[None] * (x.ndim - 5), DATA) for x in inputs]
        leaves, result = jax.shard_map(
            own_videos,
            mesh=self.layout.mesh,
            axis_names={DATA},
            in_specs=(P(), carried, P(None, DATA), *given),
            out_specs=(carried, P(DATA)),
            check_vma=False,
        )(params, leaves, text_kv, *inputs)
        return jax.tree.unflatten(treedef, leaves), jax.tree.unflatten(structures[0], result)

    def advance(
        self, params: Params, state: RolloutState, frames_made: int
    ) -> tuple["Rollout", RolloutState]:
        """The rollout of the next chunk and its state; on the host, between chunks.

        The same as before for all policies but those that change shape once. What is left of
        ``state`` must not be used: buffers may have been released.
        """
        policy, cache, statistics = self.policy.advance(
            frames_made, state.cache, state.statistics, wan_dit.output_kernels(params)
        )
        rollout = dataclasses.replace(self, policy=policy)
        after = RolloutState(cache, state.next_frame, statistics)
        return rollout, after if policy is self.policy else self.layout.moved(after)

    def check_length(self, num_frames: int) -> None:
        """Refuses, before any work, a video that the policy cannot hold.

        Raises:
          ValueError: the policy has a limit and ``num_frames`` latent frames exceed it.
        """
        limit = self.policy.max_frames
        if limit is not None and num_frames > limit:
            raise ValueError(
                f"{self.policy} holds {limit} latent frames, but this video needs {num_frames}: "
                "raise its capacity, or choose a bounded policy such as SlidingWindow"
            )


def chunk_noise(
    key: jax.Array, chunk_index: Array, num_steps: int, shape: tuple[int, ...]
) -> tuple[Float[Array, " *shape"], Float[Array, " later *shape"]]:
    """A chunk's initial and fresh noise: one key per (seed, chunk, step).

    A resumed or re-sharded rollout therefore draws the same noise.
    """
    chunk_key = jax.random.fold_in(key, chunk_index)
    steps = jnp.arange(num_steps, dtype=jnp.uint32)
    draw = lambda step: jax.random.normal(jax.random.fold_in(chunk_key, step), shape)
    noise = jax.vmap(draw)(steps)
    return noise[0], noise[1:]

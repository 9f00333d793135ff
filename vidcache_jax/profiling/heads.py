"""Profiles a model's heads: rolls out prompts under a uniform window and measures shares."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from vidcache_jax.array_typing import Params
from vidcache_jax.cache import HeadRoles
from vidcache_jax.models import wan_dit
from vidcache_jax.models.fingerprint import fingerprint
from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.profiling.classify import classify, stability
from vidcache_jax.profiling.shares import MeasuredWindow
from vidcache_jax.sampling.rollout import Rollout, RolloutState, chunk_noise

_MOST_RUNS = 4
"""Runs that stability is taken over, as in the paper."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProfileSettings:
    """How heads are profiled; the defaults are the paper's.

    Attributes:
      num_chunks: length of each rollout; 42 are 30 seconds of Wan.
      sampled_chunks: how many chunks of a rollout are measured, drawn at random.
      first_sampled: number of the first chunk that may be, counting from 1: earlier ones have too
        little past.
      window_size: of the window that the model is rolled out with, its sink of one frame included.
      alpha_anchor, tau_local: see `classify`.
      seed: of the noise, and of which chunks are measured.

    Raises:
      ValueError: there are not that many chunks to sample from, or sizes are too small.
    """

    num_chunks: int = 42
    sampled_chunks: int = 3
    first_sampled: int = 3
    window_size: int = 21
    alpha_anchor: float = 0.25
    tau_local: float = 0.2
    seed: int = 0

    def __post_init__(self):
        if self.sampled_chunks < 1 or self.first_sampled < 2:
            raise ValueError(
                f"sampled_chunks={self.sampled_chunks} must be at least 1 and "
                f"first_sampled={self.first_sampled} at least 2: the first chunk has no past"
            )
        if self.num_chunks - self.first_sampled + 1 < self.sampled_chunks:
            raise ValueError(
                f"num_chunks={self.num_chunks} leaves fewer than {self.sampled_chunks} chunks from "
                f"chunk {self.first_sampled} on: make longer videos or sample fewer"
            )


@dataclasses.dataclass(frozen=True)
class HeadProfile:
    """What was measured, and the roles that follow."""

    prompts: tuple[str, ...]
    settings: ProfileSettings
    fingerprint: str
    chunks: Int[np.ndarray, "prompts sampled"]
    """Numbers of the measured chunks, from 1, ascending."""
    shares: Float[np.ndarray, "prompts sampled steps L N 3"]

    @property
    def mean_shares(self) -> Float[np.ndarray, "L N 3"]:
        return self.shares.mean(axis=(0, 1, 2))

    @property
    def roles(self) -> HeadRoles:
        return HeadRoles.from_numbers(self._classify(self.mean_shares), self.fingerprint)

    def stability(self) -> dict[str, dict[str, float]]:
        """S_c over up to four prompts, sampled chunks and steps, evenly spaced.

        Each over means of the two others; the chunks by age, so the earliest of every prompt is
        one run.
        """
        result = {}
        for axis, name in enumerate(("prompts", "chunks", "steps")):
            others = tuple({0, 1, 2} - {axis})
            runs = self.shares.mean(axis=others)
            chosen = np.unique(np.linspace(0, len(runs) - 1, _MOST_RUNS).round().astype(int))
            result[name] = stability([self._classify(runs[run]) for run in chosen])
        return result

    def save(self, path) -> None:
        """Writes a table for `HeadRoles.load`, with all that it was made from, as JSON."""
        about = {
            "settings": dataclasses.asdict(self.settings),
            "prompts": [*self.prompts],
            "chunks": [" ".join(map(str, row)) for row in self.chunks.tolist()],
            "stability": self.stability(),
            "sink, middle, current": [
                ["  ".join(f"{share:.4f}" for share in head) for head in layer]
                for layer in self.mean_shares.tolist()
            ],
        }
        self.roles.save(path, about)

    def _classify(self, shares: Float[np.ndarray, "L N 3"]) -> Int[np.ndarray, "L N"]:
        return classify(shares, self.settings.alpha_anchor, self.settings.tau_local)


@dataclasses.dataclass(frozen=True)
class HeadProfiler:
    """Profiles one model, prompt by prompt.

    Raises:
      ValueError: the window does not suit the model's chunks, or there are no prompts.
    """

    model: VideoModel
    prompts: tuple[str, ...]
    settings: ProfileSettings = ProfileSettings()

    def __post_init__(self):
        if not self.prompts:
            raise ValueError("there are no prompts to profile the heads with")
        # Refused here, before hours of work.
        for prompt in self.prompts:
            self.model.embed_text(prompt)
        jax.eval_shape(lambda: jax.tree.leaves(self._begin()))

    def shares(self) -> Iterator[Float[np.ndarray, "sampled steps L N 3"]]:
        """Rolls out prompt after prompt; yields what was measured of each."""
        for index in range(len(self.prompts)):
            yield self._roll_out(index)

    def profile(self, shares: Sequence[Float[np.ndarray, "sampled steps L N 3"]]) -> HeadProfile:
        """The profile that the shares of all prompts make."""
        chunks = np.stack([self.chunks_of(index) for index in range(len(self.prompts))])
        params = fingerprint(self.model.params)
        return HeadProfile(self.prompts, self.settings, params, chunks, np.stack(shares))

    def chunks_of(self, index: int) -> Int[np.ndarray, " sampled"]:
        """Numbers, from 1, of the chunks that are measured of a prompt."""
        settings = self.settings
        rng = np.random.default_rng((settings.seed, index))
        among = np.arange(settings.first_sampled, settings.num_chunks + 1)
        return np.sort(rng.choice(among, settings.sampled_chunks, replace=False))

    def _roll_out(self, index: int) -> Float[np.ndarray, "sampled steps L N 3"]:
        model, chunks = self.model, self.chunks_of(index)
        text = jnp.asarray(model.embed_text(self.prompts[index]), jnp.float32)[None]
        text_kv = jax.jit(wan_dit.encode_text, static_argnums=1)(model.params, model.config, text)
        key = jax.random.fold_in(jax.random.key(self.settings.seed), index)
        shape = (1, model.rollout.frames_per_chunk, *model.latent_size, model.config.in_dim)
        state, measured = self._begin(), []
        for number in range(1, chunks[-1] + 1):
            state = _advance(self._rollout, shape, model.params, state, text_kv, key)
            if number in chunks:
                measured.append(np.asarray(state.statistics.by_step[:, :, 0]))
        return np.stack(measured).astype(np.float64)

    @property
    def _rollout(self) -> Rollout:
        rollout = self.model.rollout
        steps = len(rollout.denoise_timesteps)
        window = MeasuredWindow(self.settings.window_size, num_steps=steps)
        return Rollout(self.model.config, rollout, window)

    def _begin(self) -> RolloutState:
        dtype = wan_dit.param_dtype(self.model.params)
        return self._rollout.init(1, self.model.latent_size, dtype)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _advance(
    rollout: Rollout,
    shape: tuple[int, ...],
    params: Params,
    state: RolloutState,
    text_kv: Any,
    key: jax.Array,
) -> RolloutState:
    """Makes one chunk."""
    chunk = state.next_frame // rollout.rollout.frames_per_chunk
    steps = len(rollout.rollout.denoise_timesteps)
    noise, renoise = chunk_noise(key, chunk, steps, shape)
    return rollout.step(params, state, text_kv, noise, renoise)[0]

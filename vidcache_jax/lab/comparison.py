"""What a comparison consists of, and the name under which each run's result is kept."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import vidcache_jax
from vidcache_jax.cache.policy import CachePolicy
from vidcache_jax.metrics.table import VERSION as METRICS_VERSION
from vidcache_jax.models.fingerprint import fingerprint
from vidcache_jax.models.video_model import VideoModel
from vidcache_jax.sampling.job import read_prompt_file
from vidcache_jax.sampling.output_file import slug


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One video: a policy, a prompt, a seed."""

    label: str
    """Of the policy, as the user named it."""
    policy: CachePolicy
    prompt: str
    seed: int
    seconds: float
    scale: int
    model: str
    """`VideoModel.described`, and what tells its weights, codec and text encoder from others."""

    @property
    def settings(self) -> dict[str, Any]:
        """All that the figures depend on, for JSON; a result is found again by these."""
        return {
            "model": self.model,
            "policy": repr(self.policy),
            "prompt": self.prompt,
            "seed": self.seed,
            "seconds": self.seconds,
            "scale": self.scale,
            "metrics": METRICS_VERSION,
            "version": vidcache_jax.__version__,
        }

    @property
    def name(self) -> str:
        """Readable, fit for a file, and of no other settings."""
        kind = type(self.policy).__name__.lower()
        return f"{kind}-{slug(self.prompt)}-seed{self.seed}-{digest(self.settings)}"


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Comparison:
    """Every policy on every prompt with every seed.

    A chunk's noise follows from the seed, the chunk's number and the denoise step alone
    (`sampling.rollout.chunk_noise`), so all policies are given the same.

    Attributes:
      policies: by label.
      prompts, seeds: in any order, each counted once.
      seconds: of each video; rounded up to whole chunks.
      scale: pixels of the videos are repeated scale x scale times.
      of_sprites: the model shows the sprite world and its truths are measured.

    Raises:
      ValueError: there is no policy, prompt or seed.
    """

    model: VideoModel
    policies: Mapping[str, CachePolicy]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    seconds: float
    scale: int = 1
    of_sprites: bool = False

    def __post_init__(self):
        for name in ("policies", "prompts", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"a comparison needs {name}; none are given")
        object.__setattr__(self, "prompts", tuple(dict.fromkeys(self.prompts)))
        # Sorted, so that no figure depends on the order in which seeds were given.
        object.__setattr__(self, "seeds", tuple(sorted(set(self.seeds))))

    @functools.cached_property
    def runs(self) -> tuple[Run, ...]:
        """Policies innermost, so that an interrupted comparison still compares."""
        model = identity(self.model)
        return tuple(
            Run(
                label=label,
                policy=policy,
                prompt=prompt,
                seed=seed,
                seconds=self.seconds,
                scale=self.scale,
                model=model,
            )
            for prompt in self.prompts
            for seed in self.seeds
            for label, policy in self.policies.items()
        )


def identity(model: VideoModel) -> str:
    """All of a model that its videos depend on."""
    codec, text = fingerprint(model.codec_params), digest(model.text_encoder)
    weights = fingerprint(model.params)
    return f"{model.described}, weights {weights}, codec {codec}, text encoder {text}"


def digest(settings: Any) -> str:
    """Eight hexadecimal digits of settings that JSON can hold."""
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def read_prompts(given: tuple[str, ...]) -> tuple[str, ...]:
    """Prompts as given, a file (.txt) being replaced by its lines that are not empty.

    Raises:
      ValueError: a file cannot be read or has no prompt; the message names it.
    """
    prompts: list[str] = []
    for text in given:
        prompts += read_prompt_file(Path(text)) if text.endswith(".txt") else (text,)
    return tuple(prompts)

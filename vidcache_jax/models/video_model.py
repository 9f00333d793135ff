"""VideoModel: a text-to-video model ready to run, whatever it was loaded from."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from vidcache_jax.array_typing import Params
from vidcache_jax.cache import HeadRoles
from vidcache_jax.config import RolloutConfig, WanConfig
from vidcache_jax.models.codec import Codec

Text = Float[np.ndarray, "Tt text_dim"] | ValueError
"""A prompt's embeddings, rows of its tokens alone, or why it cannot be read."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class VideoModel:
    """The parts of a text-to-video model and the settings it was trained for.

    Attributes:
      name: shown to the user.
      config, params: the causal DiT. Until they are loaded (`loading.open_model`), parameters are
        shapes, the codec's too.
      rollout: chunk size and denoise steps the weights expect.
      codec, codec_params: between latents and pixels.
      embed_text: prompt -> text encoder output; raises ValueError for a prompt it cannot read.
      embed_texts: the same of several prompts at once, for a text encoder that has to be loaded
        (`sampling.prompts`).
      latent_size: (Y, X) of the latents the model was trained on.
      frames_per_second: pixel frames a second of video.
      text_encoder: tells `embed_text` from others that give the same prompt other embeddings; empty
        where the name of the model says it all.
      head_roles: of the DiT's attention heads, if they were profiled (`vidcache profile-heads`).
      example_prompts: that `embed_text` can read.
    """

    name: str
    config: WanConfig
    params: Params
    rollout: RolloutConfig
    codec: Codec
    codec_params: Any
    embed_text: Callable[[str], Float[Array, "Tt text_dim"]]
    latent_size: tuple[int, int]
    frames_per_second: float
    text_encoder: str = ""
    embed_texts: Callable[[Sequence[str]], list[Text]] | None = None
    head_roles: HeadRoles | None = None
    example_prompts: tuple[str, ...] = ()

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) of the video in pixels."""
        height, width = self.latent_size
        return height * self.codec.spatial_stride, width * self.codec.spatial_stride

    @property
    def described(self) -> str:
        """Its name, its frames and how it is sampled: what settings of a run say of it."""
        height, width = self.frame_size
        return f"{self.name}, {height} x {width} pixels, {self.rollout}"

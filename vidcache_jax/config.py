"""Model and rollout hyper-parameters: frozen, hashable, validated where they are made."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanConfig:
    """A Wan DiT, with the field names of Wan's own ``config.json``.

    Attributes:
      model_type: ``"t2v"``; image-to-video needs the CLIP branch, which is not built.
      patch_size: latent (frames, rows, columns) of one token; one frame per token.
      text_len: text tokens the model attends to; shorter prompts are zero padded, unmasked.
      in_dim, out_dim: latent channels in and out.
      dim, ffn_dim, num_heads, num_layers: width, feed-forward width, heads, blocks.
      freq_dim: width of the sinusoid of a timestep.
      text_dim: width of the text encoder's output.
      window_size: Wan's local-attention window; only (-1, -1), none, exists in released models.
      qk_norm: RMS-normalise queries and keys over the full width, before the split into heads.
      cross_attn_norm: affine LayerNorm (``norm3``) before cross-attention.
      eps: of every norm.

    Raises:
      ValueError: a size is not positive, or sizes do not divide as the architecture needs.
    """

    model_type: str = "t2v"
    patch_size: tuple[int, int, int] = (1, 2, 2)
    text_len: int = 512
    in_dim: int = 16
    dim: int = 1536
    ffn_dim: int = 8960
    freq_dim: int = 256
    text_dim: int = 4096
    out_dim: int = 16
    num_heads: int = 12
    num_layers: int = 30
    window_size: tuple[int, int] = (-1, -1)
    qk_norm: bool = True
    cross_attn_norm: bool = True
    eps: float = 1e-6

    def __post_init__(self):
        object.__setattr__(self, "patch_size", tuple(self.patch_size))
        object.__setattr__(self, "window_size", tuple(self.window_size))
        if self.model_type != "t2v":
            raise ValueError(f"model_type={self.model_type!r} is not supported, only 't2v' is")
        if len(self.patch_size) != 3 or self.patch_size[0] != 1 or min(self.patch_size) < 1:
            raise ValueError(f"patch_size={self.patch_size} must be (1, rows, columns)")
        if self.window_size != (-1, -1):
            raise ValueError(
                f"window_size={self.window_size}: limit attention by a cache policy, "
                "the model's own window must stay (-1, -1)"
            )
        for name in ("text_len", "in_dim", "dim", "ffn_dim", "freq_dim", "text_dim", "out_dim",
                     "num_heads", "num_layers"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if self.in_dim != self.out_dim:
            raise ValueError(
                f"in_dim={self.in_dim} and out_dim={self.out_dim} must be equal: the flow of a "
                "text-to-video model has the channels of its latents"
            )
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise ValueError(
                f"dim={self.dim} must split into num_heads={self.num_heads} heads of even size"
            )
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim={self.freq_dim} must be even (cosines, then sines)")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    def token_grid(self, latent_height: int, latent_width: int) -> tuple[int, int]:
        """Token (rows, columns) of one latent frame, e.g. (30, 52) for 60 x 104 latents."""
        _, rows, columns = self.patch_size
        if latent_height % rows or latent_width % columns or min(latent_height, latent_width) < 1:
            raise ValueError(
                f"latents of {latent_height} x {latent_width} do not split into patches of "
                f"{rows} x {columns}; choose a video size that does"
            )
        return latent_height // rows, latent_width // columns

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "WanConfig":
        """Reads Wan's ``config.json``; keys that begin with an underscore are ignored."""
        known = {field.name for field in dataclasses.fields(cls)}
        given = {key: value for key, value in fields.items() if not key.startswith("_")}
        if unknown := sorted(given.keys() - known):
            raise ValueError(f"unknown WanConfig fields {unknown}; known are {sorted(known)}")
        # JSON has lists; a hashable config needs tuples.
        tuples = {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
        return cls(**{**given, **tuples})

    @classmethod
    def wan_1_3b(cls) -> "WanConfig":
        """Wan 2.1 T2V 1.3B."""
        return cls()

    @classmethod
    def wan_14b(cls) -> "WanConfig":
        """Wan 2.1 T2V 14B."""
        return cls(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)

    @classmethod
    def tiny(cls) -> "WanConfig":
        """The built-in sprite-world model: 64 x 64 pixels, 16 tokens a frame."""
        return cls(dim=128, ffn_dim=512, num_heads=4, num_layers=6, freq_dim=64,
                   text_len=12, text_dim=32)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How a video is made chunk by chunk (Self-Forcing's sampler).

    Attributes:
      frames_per_chunk: latent frames denoised together.
      denoise_timesteps: descending, before warping; one pass of the model each.
      timestep_shift: of the flow-matching schedule; 5 for Self-Forcing and its kin.
      renoise: what a clean estimate is noised with for the next pass. ``"fresh"`` noise is how
        models distilled to a few steps are sampled (Self-Forcing and its kin). A model trained by
        flow matching alone predicts means; with fresh noise its details average away, and
        ``"implied"``, the noise that the pass itself inferred, makes the steps an Euler solver of
        the flow.
      context_timestep: the timestep at which clean chunks are committed to the cache.
    """

    frames_per_chunk: int = 3
    denoise_timesteps: tuple[float, ...] = (1000, 750, 500, 250)
    timestep_shift: float = 5.0
    renoise: Literal["fresh", "implied"] = "fresh"
    context_timestep: float = 0.0

    def __post_init__(self):
        steps = tuple(float(step) for step in self.denoise_timesteps)
        object.__setattr__(self, "denoise_timesteps", steps)
        if self.frames_per_chunk < 1:
            raise ValueError(f"frames_per_chunk={self.frames_per_chunk} must be at least 1")
        if not steps or min(steps) <= 0 or max(steps) > 1000:
            raise ValueError(f"denoise_timesteps={steps} must lie in (0, 1000] and not be empty")
        if any(later >= earlier for earlier, later in zip(steps, steps[1:], strict=False)):
            raise ValueError(f"denoise_timesteps={steps} must descend")
        if self.renoise not in ("fresh", "implied"):
            raise ValueError(f"renoise={self.renoise!r} must be 'fresh' or 'implied'")
        if self.timestep_shift <= 0:
            raise ValueError(f"timestep_shift={self.timestep_shift} must be positive")
        if not 0 <= self.context_timestep <= 1000:
            raise ValueError(f"context_timestep={self.context_timestep} must lie in [0, 1000]")


WAN = {"wan-1.3b": WanConfig.wan_1_3b(), "wan-14b": WanConfig.wan_14b()}
"""Wan 2.1's text-to-video models, by the names of the command line."""

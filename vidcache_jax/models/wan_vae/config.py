"""Sizes of Wan's video autoencoder and the statistics of its latents."""

import dataclasses

WAN_LATENT_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
                   0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
WAN_LATENT_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
                  3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanVAEConfig:
    """A Wan autoencoder; the defaults are Wan 2.1's (``wan/modules/vae.py``).

    Attributes:
      dim: channels at the resolution of the pixels.
      z_dim: latent channels.
      dim_mult: channels of each level of resolution, finest first, in units of ``dim``.
      num_res_blocks: residual blocks a level in the encoder; the decoder has one more.
      temporal_downsample: whether the step from a level to the next coarser one also halves the
        number of frames; every step halves height and width.
      latent_mean, latent_std: per channel; latents leave the codec as (z - mean) / std.

    Raises:
      ValueError: a size is not positive, or lengths do not agree.
    """

    dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latent_mean: tuple[float, ...] = WAN_LATENT_MEAN
    latent_std: tuple[float, ...] = WAN_LATENT_STD

    def __post_init__(self):
        for name in ("dim_mult", "temporal_downsample", "latent_mean", "latent_std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("dim", "z_dim", "num_res_blocks"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be positive")
        if not self.dim_mult or min(self.dim_mult) < 1:
            raise ValueError(f"dim_mult={self.dim_mult} must be positive, one number a level")
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise ValueError(
                f"temporal_downsample={self.temporal_downsample} must say something for each of "
                f"the {len(self.dim_mult) - 1} steps between the levels of dim_mult={self.dim_mult}"
            )
        if any(self.dim * mult % 2 for mult in self.dim_mult[1:]):
            raise ValueError(
                f"dim={self.dim} times dim_mult={self.dim_mult} must be even below the first "
                "level: upsampling halves the channels"
            )
        for name in ("latent_mean", "latent_std"):
            if len(getattr(self, name)) != self.z_dim:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} values, z_dim={self.z_dim} channels "
                    "need as many"
                )
        if min(self.latent_std) <= 0:
            raise ValueError(f"latent_std={self.latent_std} must be positive")

    @property
    def spatial_stride(self) -> int:
        return 2 ** len(self.temporal_downsample)

    @property
    def temporal_stride(self) -> int:
        return 2 ** sum(self.temporal_downsample)

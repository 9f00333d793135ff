"""The decoder: latents to pixels."""

import flax.linen as nn

from vidcache_jax.models.wan_vae.blocks import NormSiluConv, ResidualBlock, Upsample, middle
from vidcache_jax.models.wan_vae.causal_conv import CausalConv, NewVideo, Past, Video, run
from vidcache_jax.models.wan_vae.config import WanVAEConfig


class Decoder(nn.Module):
    """Latents ``[B, F, Y, X, z_dim]`` to frames ``[B, f, H, W, 3]``, coarsest level first."""

    config: WanVAEConfig

    def setup(self):
        c = self.config
        widths = [c.dim * mult for mult in reversed(c.dim_mult)]
        temporal = c.temporal_downsample[::-1]
        layers = []
        for level, width in enumerate(widths):
            layers += [ResidualBlock(width) for _ in range(c.num_res_blocks + 1)]
            if level < len(widths) - 1:
                layers.append(Upsample(temporal[level]))
        self.conv1 = CausalConv(widths[0])
        self.middle = middle(widths[0])
        self.upsamples = layers
        self.head = NormSiluConv(3)

    def __call__(self, x: Video, past: Past) -> tuple[NewVideo, Past]:
        return run([self.conv1, *self.middle, *self.upsamples, self.head], x, past)

"""The encoder: pixels to the means and log-variances of latents."""

import flax.linen as nn

from vidcache_jax.models.wan_vae.blocks import Downsample, NormSiluConv, ResidualBlock, middle
from vidcache_jax.models.wan_vae.causal_conv import CausalConv, NewVideo, Past, Video, run
from vidcache_jax.models.wan_vae.config import WanVAEConfig


class Encoder(nn.Module):
    """Frames ``[B, F, H, W, 3]`` to moments ``[B, f, Y, X, 2 z_dim]``, finest level first."""

    config: WanVAEConfig

    def setup(self):
        c = self.config
        widths = [c.dim * mult for mult in c.dim_mult]
        layers = []
        for level, width in enumerate(widths):
            layers += [ResidualBlock(width) for _ in range(c.num_res_blocks)]
            if level < len(widths) - 1:
                layers.append(Downsample(c.temporal_downsample[level]))
        self.conv1 = CausalConv(c.dim)
        self.downsamples = layers
        self.middle = middle(widths[-1])
        self.head = NormSiluConv(2 * c.z_dim)

    def __call__(self, x: Video, past: Past) -> tuple[NewVideo, Past]:
        return run([self.conv1, *self.downsamples, *self.middle, self.head], x, past)

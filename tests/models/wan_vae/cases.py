"""Small autoencoders on both sides: diffusers' module and ours, with the same random weights."""

import copy
import dataclasses
import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from checkpoints_convert.rules import apply_rules
from checkpoints_convert.wan_vae import WAN_VAE_RULES
from tests.models.cases import QUICK
from vidcache_jax.models.wan_vae import WanVAE, WanVAEConfig

encode = jax.jit(WanVAE.encode, static_argnums=0, compiler_options=QUICK)
decode = jax.jit(WanVAE.decode, static_argnums=0, compiler_options=QUICK)


def channels_last(x: Any) -> np.ndarray:
    """[B, C, F, Y, X] -> [B, F, Y, X, C]."""
    return np.moveaxis(np.asarray(x), 1, -1)


def channels_first(x: Any) -> torch.Tensor:
    """[B, F, Y, X, C] -> torch's [B, C, F, Y, X]."""
    return torch.tensor(np.moveaxis(np.asarray(x, np.float32), -1, 1))


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def randomize(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights that keep activations of order one, norms and biases that matter."""
    rng = np.random.default_rng(seed)
    for name, weight in module.named_parameters():
        value = rng.normal(size=tuple(weight.shape))
        if name.endswith("gamma"):
            value = 1 + 0.3 * value
        elif name.endswith("bias"):
            value = 0.1 * value
        else:
            value = value / math.sqrt(math.prod(weight.shape[1:]))
        weight.data = torch.tensor(value, dtype=torch.float32)


def wan_name(name: str, num_res_blocks: int) -> str:
    """diffusers' name of a tensor -> the original Wan name."""
    decoder_level = num_res_blocks + 2

    def upsample(match: re.Match[str]) -> str:
        last = match["kind"] == "upsamplers"
        index = decoder_level - 1 if last else int(match["j"])
        return f"upsamples.{int(match['level']) * decoder_level + index}."

    for pattern, target in (
        (r"^quant_conv", "conv1"),
        (r"^post_quant_conv", "conv2"),
        (r"\.conv1\.", ".residual.2."),
        (r"\.conv2\.", ".residual.6."),
        (r"\.norm1\.", ".residual.0."),
        (r"\.norm2\.", ".residual.3."),
        (r"conv_shortcut", "shortcut"),
        (r"conv_in", "conv1"),
        (r"norm_out", "head.0"),
        (r"conv_out", "head.2"),
        (r"mid_block\.resnets\.0", "middle.0"),
        (r"mid_block\.resnets\.1", "middle.2"),
        (r"mid_block\.attentions\.0", "middle.1"),
        (r"down_blocks", "downsamples"),
        (r"up_blocks\.(?P<level>\d)\.(?P<kind>resnets|upsamplers)\.(?P<j>\d)\.", upsample),
    ):
        name = re.sub(pattern, target, name)
    return name


@dataclasses.dataclass(frozen=True)
class Case:
    """One autoencoder; weights are equal on both sides, in float32."""

    config: WanVAEConfig

    @functools.cached_property
    def module(self) -> AutoencoderKLWan:
        c = self.config
        vae = AutoencoderKLWan(
            base_dim=c.dim, z_dim=c.z_dim, dim_mult=list(c.dim_mult),
            num_res_blocks=c.num_res_blocks, temperal_downsample=list(c.temporal_downsample),
        )  # fmt: skip
        randomize(vae)
        # Pixels within [-1, 1], where clamping changes nothing.
        for weight in vae.decoder.conv_out.parameters():
            weight.data *= 0.1
        return vae.eval().requires_grad_(False)

    def in_dtype(self, dtype: torch.dtype) -> "Case":
        """The same weights, rounded, and torch computing in that dtype."""
        other = Case(self.config)
        other.__dict__["module"] = torch.nn.Module.to(copy.deepcopy(self.module), dtype)
        return other

    @functools.cached_property
    def state(self) -> dict[str, np.ndarray]:
        """Under the original Wan names."""
        blocks = self.config.num_res_blocks
        return {wan_name(k, blocks): v.numpy() for k, v in self.module.state_dict().items()}

    @functools.cached_property
    def vae(self) -> WanVAE:
        return WanVAE(self.config)

    def params(self, dtype=jnp.float32) -> Any:
        return _convert(self, dtype)

    @property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        c = self.config
        return np.array(c.latent_mean, np.float32), np.array(c.latent_std, np.float32)

    def torch_encode(self, frames: np.ndarray) -> np.ndarray:
        """Normalised latents of a whole video, channels last."""
        mean, std = self.moments
        moments = self.module.encode(self._to_torch(frames), return_dict=False)[0]
        return (channels_last(moments.mean.float()) - mean) / std

    def torch_decode(self, latents: np.ndarray) -> np.ndarray:
        """Pixels of a whole video of normalised latents, channels last."""
        mean, std = self.moments
        z = self._to_torch(latents * std + mean)
        return channels_last(self.module.decode(z, return_dict=False)[0].float())

    def _to_torch(self, x: np.ndarray) -> torch.Tensor:
        return channels_first(x).to(self.module.dtype)


@functools.cache
def _convert(it: Case, dtype: Any) -> Any:
    return apply_rules(WAN_VAE_RULES, it.state, it.vae.abstract_params(), dtype)


def case(**fields: Any) -> Case:
    mean, std = (tuple(map(float, normal(seed, fields["z_dim"]))) for seed in (1, 2))
    fields |= {"latent_mean": mean, "latent_std": tuple(1 + abs(x) for x in std)}
    return Case(WanVAEConfig(**fields))


WAN_LIKE = case(dim=4, z_dim=3)
"""Levels, blocks and temporal strides of Wan 2.1."""
SMALL = case(dim=4, z_dim=2, dim_mult=(1, 3, 2), num_res_blocks=1, temporal_downsample=(True, True))

"""Rules for the VAE under its diffusers names (``AutoencoderKLWan``)."""

from checkpoints_convert.rules import Rule
from checkpoints_convert.wan_vae import (
    conv,
    conv2d,
    conv3d,
    gamma2d,
    gamma3d,
    pointwise2d,
    pointwise3d,
)
from vidcache_jax.models.wan_vae import WanVAEConfig

_SIDE = r"(?P<side>encoder|decoder)\."
_MIDDLE = _SIDE + r"mid_block\."
_DOWN = r"encoder\.down_blocks\.(?P<i>\d+)\."
_DOWN_TARGET = r"encoder/downsamples_\g<i>"


def diffusers_vae_rules(config: WanVAEConfig) -> tuple[Rule, ...]:
    """The encoder's blocks are numbered through, as in Wan; those of the decoder by level."""
    up = []
    for level in range(len(config.dim_mult)):
        source, first = rf"decoder\.up_blocks\.{level}\.", level * (config.num_res_blocks + 2)
        last = first + config.num_res_blocks + 1
        for i, target in enumerate(range(first, last)):
            up += _residual(rf"{source}resnets\.{i}\.", f"decoder/upsamples_{target}")
        up += _resample(rf"{source}upsamplers\.0\.", f"decoder/upsamples_{last}")
    return (
        *conv("quant_conv", "conv1", pointwise3d),
        *conv("post_quant_conv", "conv2", pointwise3d),
        *conv(_SIDE + "conv_in", r"\g<side>/conv1", conv3d),
        Rule(_SIDE + r"norm_out\.gamma", r"\g<side>/head/norm/scale", gamma3d),
        *conv(_SIDE + "conv_out", r"\g<side>/head/conv", conv3d),
        *_residual(_MIDDLE + r"resnets\.0\.", r"\g<side>/middle_0"),
        *_residual(_MIDDLE + r"resnets\.1\.", r"\g<side>/middle_2"),
        Rule(_MIDDLE + r"attentions\.0\.norm\.gamma", r"\g<side>/middle_1/norm/scale", gamma2d),
        *conv(_MIDDLE + r"attentions\.0\.(?P<linear>to_qkv|proj)",
              r"\g<side>/middle_1/\g<linear>", pointwise2d),
        *_residual(_DOWN, _DOWN_TARGET),
        *_resample(_DOWN, _DOWN_TARGET),
        *up,
    )  # fmt: skip


def _residual(source: str, target: str) -> list[Rule]:
    return [
        Rule(source + r"norm1\.gamma", target + "/first/norm/scale", gamma3d),
        *conv(source + "conv1", target + "/first/conv", conv3d),
        Rule(source + r"norm2\.gamma", target + "/second/norm/scale", gamma3d),
        *conv(source + "conv2", target + "/second/conv", conv3d),
        *conv(source + "conv_shortcut", target + "/shortcut", pointwise3d),
    ]


def _resample(source: str, target: str) -> list[Rule]:
    return [
        *conv(source + r"resample\.1", target + "/resample", conv2d),
        *conv(source + "time_conv", target + "/time_conv", conv3d),
    ]

"""Rules for the VAE under its original Wan names (``Wan2.1_VAE.pth``)."""

from checkpoints_convert.rules import Rule, Transform, permutation

conv3d = permutation(2, 3, 4, 1, 0)
"""torch Conv3d [out, in, t, y, x] <-> kernel [t, y, x, in, out]."""
conv2d = permutation(2, 3, 1, 0)
"""torch Conv2d [out, in, y, x] <-> kernel [y, x, in, out]."""
pointwise3d = Transform(lambda w: w[:, :, 0, 0, 0].T, lambda k: k.T[:, :, None, None, None])
"""Conv3d [out, in, 1, 1, 1] <-> kernel [in, out] of a matmul over channels."""
pointwise2d = Transform(lambda w: w[:, :, 0, 0].T, lambda k: k.T[:, :, None, None])
"""Conv2d [out, in, 1, 1] <-> kernel [in, out] of a matmul over channels."""
gamma3d = Transform(lambda w: w[:, 0, 0, 0], lambda scale: scale[:, None, None, None])
"""[C, 1, 1, 1] <-> [C]."""
gamma2d = Transform(lambda w: w[:, 0, 0], lambda scale: scale[:, None, None])
"""[C, 1, 1] <-> [C]."""


def conv(source: str, target: str, kernel: Transform) -> list[Rule]:
    """Weight, through ``kernel``, and bias of a torch convolution."""
    return [
        Rule(rf"{source}\.weight", f"{target}/kernel", kernel),
        Rule(rf"{source}\.bias", f"{target}/bias"),
    ]


_SIDE = r"(?P<side>encoder|decoder)\."
_BLOCK = _SIDE + r"(?P<part>downsamples|middle|upsamples)\.(?P<i>\d+)\."
_BLOCK_TARGET = r"\g<side>/\g<part>_\g<i>"

WAN_VAE_RULES: tuple[Rule, ...] = (
    *conv(r"(?P<quant>conv1|conv2)", r"\g<quant>", pointwise3d),
    *conv(_SIDE + "conv1", r"\g<side>/conv1", conv3d),
    Rule(_SIDE + r"head\.0\.gamma", r"\g<side>/head/norm/scale", gamma3d),
    *conv(_SIDE + r"head\.2", r"\g<side>/head/conv", conv3d),
    Rule(_BLOCK + r"residual\.0\.gamma", _BLOCK_TARGET + "/first/norm/scale", gamma3d),
    *conv(_BLOCK + r"residual\.2", _BLOCK_TARGET + "/first/conv", conv3d),
    Rule(_BLOCK + r"residual\.3\.gamma", _BLOCK_TARGET + "/second/norm/scale", gamma3d),
    *conv(_BLOCK + r"residual\.6", _BLOCK_TARGET + "/second/conv", conv3d),
    *conv(_BLOCK + "shortcut", _BLOCK_TARGET + "/shortcut", pointwise3d),
    Rule(_BLOCK + r"norm\.gamma", _BLOCK_TARGET + "/norm/scale", gamma2d),
    *conv(_BLOCK + r"(?P<linear>to_qkv|proj)", _BLOCK_TARGET + r"/\g<linear>", pointwise2d),
    *conv(_BLOCK + r"resample\.1", _BLOCK_TARGET + "/resample", conv2d),
    *conv(_BLOCK + "time_conv", _BLOCK_TARGET + "/time_conv", conv3d),
)

"""The DiT under its original Wan names."""

from collections.abc import Sequence

from einops import rearrange

from checkpoints_convert.rules import Rule, Transform, transpose


def patch_kernel(patch_size: Sequence[int] = (1, 2, 2)) -> Transform:
    """Conv3d [out, c, 1, p, q] <-> kernel [(p q c), out] of one matmul per patch."""
    _, p, q = patch_size
    return Transform(
        lambda weight: rearrange(weight, "o c 1 p q -> (p q c) o"),
        lambda value: rearrange(value, "(p q c) o -> o c 1 p q", p=p, q=q),
    )


def linear(source: str, target: str) -> list[Rule]:
    """Weight (transposed) and bias of a torch Linear."""
    return [
        Rule(rf"{source}\.weight", f"{target}/kernel", transpose),
        Rule(rf"{source}\.bias", f"{target}/bias"),
    ]


_BLOCK = r"blocks\.(?P<layer>\d+)\."


def wan_rules(patch_size: Sequence[int] = (1, 2, 2)) -> tuple[Rule, ...]:
    """Original Wan names (``wan/modules/model.py``)."""
    return (
        Rule(r"patch_embedding\.weight", "patch_embedding/proj/kernel", patch_kernel(patch_size)),
        Rule(r"patch_embedding\.bias", "patch_embedding/proj/bias"),
        *linear(r"text_embedding\.(?P<i>[02])", r"text/text_embedding_\g<i>"),
        *linear(r"time_embedding\.(?P<i>[02])", r"time/time_embedding_\g<i>"),
        *linear(r"time_projection\.1", "time/time_projection_1"),
        *linear(
            _BLOCK + r"(?P<attn>self_attn|cross_attn)\.(?P<p>[qkvo])", r"blocks/\g<attn>/\g<p>"
        ),
        Rule(
            _BLOCK + r"(?P<attn>self_attn|cross_attn)\.(?P<norm>norm_[qk])\.weight",
            r"blocks/\g<attn>/\g<norm>/scale",
        ),
        Rule(_BLOCK + r"norm3\.weight", "blocks/norm3/scale"),
        Rule(_BLOCK + r"norm3\.bias", "blocks/norm3/bias"),
        *linear(_BLOCK + r"ffn\.(?P<i>[02])", r"blocks/ffn_\g<i>"),
        Rule(_BLOCK + "modulation", "blocks/modulation"),
        *linear(r"head\.head", "head/head"),
        Rule(r"head\.modulation", "head/modulation"),
    )


WAN_RULES = wan_rules()

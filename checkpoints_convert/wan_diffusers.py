"""The DiT under its diffusers names (``WanTransformer3DModel``)."""

from collections.abc import Sequence

from checkpoints_convert.rules import Rule
from checkpoints_convert.wan import linear, patch_kernel

_BLOCK = r"blocks\.(?P<layer>\d+)\."
_EMBED = r"condition_embedder\."


def _attention(source: str, target: str) -> list[Rule]:
    return [
        *linear(_BLOCK + source + r"\.to_(?P<p>[qkv])", rf"blocks/{target}/\g<p>"),
        *linear(_BLOCK + source + r"\.to_out\.0", f"blocks/{target}/o"),
        Rule(
            _BLOCK + source + r"\.(?P<norm>norm_[qk])\.weight", rf"blocks/{target}/\g<norm>/scale"
        ),
    ]


def diffusers_rules(patch_size: Sequence[int] = (1, 2, 2)) -> tuple[Rule, ...]:
    """Names of diffusers; its ``norm2`` is Wan's ``norm3``, the norm before cross-attention."""
    return (
        Rule(r"patch_embedding\.weight", "patch_embedding/proj/kernel", patch_kernel(patch_size)),
        Rule(r"patch_embedding\.bias", "patch_embedding/proj/bias"),
        *linear(_EMBED + r"text_embedder\.linear_1", "text/text_embedding_0"),
        *linear(_EMBED + r"text_embedder\.linear_2", "text/text_embedding_2"),
        *linear(_EMBED + r"time_embedder\.linear_1", "time/time_embedding_0"),
        *linear(_EMBED + r"time_embedder\.linear_2", "time/time_embedding_2"),
        *linear(_EMBED + "time_proj", "time/time_projection_1"),
        *_attention("attn1", "self_attn"),
        *_attention("attn2", "cross_attn"),
        Rule(_BLOCK + r"norm2\.weight", "blocks/norm3/scale"),
        Rule(_BLOCK + r"norm2\.bias", "blocks/norm3/bias"),
        *linear(_BLOCK + r"ffn\.net\.0\.proj", "blocks/ffn_0"),
        *linear(_BLOCK + r"ffn\.net\.2", "blocks/ffn_2"),
        Rule(_BLOCK + "scale_shift_table", "blocks/modulation"),
        *linear("proj_out", "head/head"),
        Rule("scale_shift_table", "head/modulation"),
    )

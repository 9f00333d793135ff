"""Rules for the text encoder: original Wan names, and those of transformers."""

from checkpoints_convert.rules import Rule, transpose

_BLOCK = r"blocks\.(?P<layer>\d+)\."

UMT5_RULES: tuple[Rule, ...] = (
    Rule(r"token_embedding\.weight", "token_embedding/embedding"),
    Rule(_BLOCK + r"(?P<norm>norm1|norm2)\.weight", r"blocks/\g<norm>/scale"),
    Rule(_BLOCK + r"attn\.(?P<p>[qkvo])\.weight", r"blocks/attn/\g<p>/kernel", transpose),
    Rule(_BLOCK + r"ffn\.gate\.0\.weight", "blocks/ffn/gate/kernel", transpose),
    Rule(_BLOCK + r"ffn\.(?P<fc>fc1|fc2)\.weight", r"blocks/ffn/\g<fc>/kernel", transpose),
    Rule(_BLOCK + r"pos_embedding\.embedding\.weight", "blocks/pos_embedding/embedding"),
    Rule(r"norm\.weight", "norm/scale"),
)
"""Of ``models_t5_umt5-xxl-enc-bf16.pth``."""

_LAYER = r"encoder\.block\.(?P<layer>\d+)\.layer\."
_ATTENTION, _FFN = _LAYER + r"0\.SelfAttention\.", _LAYER + r"1\.DenseReluDense\."

TRANSFORMERS_UMT5_RULES: tuple[Rule, ...] = (
    Rule(r"shared\.weight", "token_embedding/embedding"),
    Rule(_LAYER + r"0\.layer_norm\.weight", "blocks/norm1/scale"),
    Rule(_LAYER + r"1\.layer_norm\.weight", "blocks/norm2/scale"),
    Rule(_ATTENTION + r"(?P<p>[qkvo])\.weight", r"blocks/attn/\g<p>/kernel", transpose),
    Rule(_ATTENTION + r"relative_attention_bias\.weight", "blocks/pos_embedding/embedding"),
    Rule(_FFN + r"wi_0\.weight", "blocks/ffn/gate/kernel", transpose),
    Rule(_FFN + r"wi_1\.weight", "blocks/ffn/fc1/kernel", transpose),
    Rule(_FFN + r"wo\.weight", "blocks/ffn/fc2/kernel", transpose),
    Rule(r"encoder\.final_layer_norm\.weight", "norm/scale"),
)
"""Of ``UMT5EncoderModel``, whose ``encoder.embed_tokens`` is ``shared`` by another name."""

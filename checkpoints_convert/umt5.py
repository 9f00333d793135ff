"""Rules for the text encoder under its original Wan names (``models_t5_umt5-xxl-enc-bf16.pth``)."""

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

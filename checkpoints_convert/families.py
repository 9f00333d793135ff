"""Which model a checkpoint is of, by the names and shapes of its tensors."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from checkpoints_convert.rules import Rule, source_name
from checkpoints_convert.source import Tensors
from checkpoints_convert.wan import wan_rules
from checkpoints_convert.wan_diffusers import diffusers_rules
from vidcache_jax.checkpoint import CheckpointError
from vidcache_jax.config import WanConfig


@dataclasses.dataclass(frozen=True)
class Family:
    """A way to name the DiT's tensors."""

    name: str
    rules: Callable[[Sequence[int]], tuple[Rule, ...]]
    """Of a patch size."""


WAN = Family("Wan", wan_rules)
DIFFUSERS = Family("diffusers", diffusers_rules)
FAMILIES: Mapping[str, Family] = {"wan": WAN, "diffusers": DIFFUSERS}

IMAGE_NAMES = (
    r"img_emb\..+",
    r"blocks\.\d+\.cross_attn\.(k_img|v_img|norm_k_img)\..+",
    r"condition_embedder\.image_embedder\..+",
    r"blocks\.\d+\.attn2\.(add_k_proj|add_v_proj|norm_added_k|norm_added_q)\..+",
)
"""Tensors that image-to-video models have and text-to-video models have not."""
_IMAGE_CHANNELS = 36

_OTHERS = (
    (r".+\.lora_(A|B|up|down)\..+",
     "a LoRA without its model; name the model first and give this file to --lora"),
    (r"vace_.+", "Wan VACE, which is not supported; convert a text-to-video model"),
    (r"(encoder|decoder)\.(conv1|conv_in|middle|mid_block|downsamples|upsamples)\..+",
     "the Wan VAE, not the DiT; convert it with convert_vae"),
    (r"(token_embedding|shared)\.weight|encoder\.block\.\d+\..+",
     "the UMT5 text encoder, not the DiT; convert it with convert_umt5"),
    (r"(visual|vision_model)\..+", "the CLIP image encoder, which text-to-video does not need"),
)  # fmt: skip
"""What people convert by mistake, and what to do instead."""


def recognise(tensors: Tensors, origin: object) -> Family:
    """The family whose rules know most of the names.

    Raises:
      CheckpointError: it is another model, or an image-to-video one.
    """

    def known(family: Family) -> int:
        patterns = [re.compile(rule.pattern) for rule in family.rules((1, 2, 2))]
        return sum(any(p.fullmatch(name) for p in patterns) for name in tensors)

    image = [name for name in tensors if any(re.fullmatch(p, name) for p in IMAGE_NAMES)]
    patch = tensors.get("patch_embedding.weight")
    if image or (patch is not None and patch.shape[1:2] == (_IMAGE_CHANNELS,)):
        what = f"{len(image)} tensors such as {image[0]}" if image else "36 input channels"
        raise CheckpointError(
            f"{origin} is a Wan image-to-video model ({what}), which is not supported; "
            "convert a text-to-video model"
        )
    best = max(FAMILIES.values(), key=known)
    # Some names are in other models too: the text encoder also has blocks with a norm2.
    if 2 * known(best) > len(tensors):
        return best
    for pattern, what in _OTHERS:
        if any(re.fullmatch(pattern, name) for name in tensors):
            raise CheckpointError(f"{origin} is {what}")
    raise CheckpointError(
        f"{origin} is no Wan DiT: none of its {len(tensors)} tensors is known, the first are "
        f"{list(tensors)[:3]}; give another file, or choose a dict in it with --which"
    )


def config_of(
    family: Family, tensors: Tensors, fields: Mapping[str, Any] | None, origin: object
) -> WanConfig:
    """The model's sizes, from its ``config.json`` or else from its tensors.

    Without a ``config.json``, a width that was released means the released model; at another
    width all sizes are those of the tensors, and heads have 128 channels as in all of Wan.
    That the tensors fit is not checked here but by the rules, tensor by tensor.

    Raises:
      CheckpointError: the ``config.json`` is of another model, or sizes cannot be known.
    """
    if fields is not None:
        try:
            return WanConfig.from_dict(_wan_fields(fields))
        except (TypeError, ValueError, ArithmeticError) as error:
            raise CheckpointError(
                f"the config.json of {origin} is of no supported model: {error}; "
                "give the one that belongs to the weights with --config"
            ) from error
    rules = family.rules((1, 2, 2))

    def shape(target: str, layer: int | None = None) -> tuple[int, ...]:
        name = source_name(rules, target, layer)[1]
        if name not in tensors:
            raise CheckpointError(f"{origin} has no tensor {name}; it is incomplete")
        return tensors[name].shape

    patch = shape("patch_embedding/proj/kernel")
    released = (WanConfig.wan_1_3b(), WanConfig.wan_14b())
    for config in released:
        if patch[:1] == (config.dim,):
            return config
    block = re.compile(r"blocks\.(\d+)\..+")
    layers = {int(match[1]) for name in tensors if (match := block.fullmatch(name))}
    try:
        dim, in_dim, *patch_size = patch
        # A model of another width says itself what it lacks.
        has = lambda target: source_name(rules, target, 0)[1] in tensors
        return WanConfig(
            patch_size=tuple(patch_size),  # pyright: ignore[reportArgumentType]
            in_dim=in_dim,
            dim=dim,
            ffn_dim=shape("blocks/ffn_0/kernel", 0)[0],
            freq_dim=shape("time/time_embedding_0/kernel")[1],
            text_dim=shape("text/text_embedding_0/kernel")[1],
            out_dim=shape("head/head/kernel")[0] // math.prod(patch_size),
            num_heads=dim // 128 if dim % 128 == 0 else 0,
            num_layers=max(layers) + 1,
            qk_norm=has("blocks/self_attn/norm_q/scale"),
            cross_attn_norm=has("blocks/norm3/scale"),
        )
    except (IndexError, ArithmeticError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"the sizes of {origin} cannot be known from its tensors ({error}); "
            "give its config.json with --config"
        ) from error


def _wan_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of Wan's own ``config.json``, from it or from that of diffusers."""
    if "num_attention_heads" not in fields:
        return dict(fields)
    if fields.get("added_kv_proj_dim") is not None or fields.get("image_dim") is not None:
        raise ValueError("it is an image-to-video model")
    heads, head_dim = fields["num_attention_heads"], fields["attention_head_dim"]
    renamed = {
        "dim": heads * head_dim,
        "num_heads": heads,
        "in_dim": fields["in_channels"],
        "out_dim": fields.get("out_channels") or fields["in_channels"],
        "qk_norm": fields.get("qk_norm") is not None,
    }
    same = ("patch_size", "ffn_dim", "freq_dim", "text_dim", "num_layers", "cross_attn_norm", "eps")
    return renamed | {name: fields[name] for name in same if name in fields}

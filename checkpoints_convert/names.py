"""Tensor names without what training wrappers put into them."""

from checkpoints_convert.source import LazyTensor, Tensors
from vidcache_jax.checkpoint import CheckpointError

WRAPPERS = frozenset({"_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module", "module"})
"""Parts of a name that wrappers insert wherever they wrap."""
OWNERS = frozenset({"model", "net", "generator", "diffusion_model", "transformer"})
"""Attributes that held the model, at the start of a name only: diffusers has ``ffn.net`` inside."""


def plain_name(name: str) -> str:
    """``model._fsdp_wrapped_module.blocks.0.ffn.0.weight`` -> ``blocks.0.ffn.0.weight``."""
    parts = [part for part in name.split(".") if part not in WRAPPERS]
    # A name of nothing but owners keeps its last part.
    while len(parts) > 1 and parts[0] in OWNERS:
        parts = parts[1:]
    return ".".join(parts)


def plain_names(tensors: Tensors) -> Tensors:
    """Tensors under their plain names.

    Raises:
      CheckpointError: two names become one.
    """
    renamed: dict[str, LazyTensor] = {}
    origins: dict[str, str] = {}
    for name, tensor in tensors.items():
        plain = plain_name(name)
        if plain in renamed:
            raise CheckpointError(
                f"{tensor.origin}: {origins[plain]} and {name} are both {plain} without their "
                "wrappers; choose one with --which, or save one model only"
            )
        renamed[plain], origins[plain] = tensor, name
    return renamed

"""LoRA files merged into the weights they were trained on: ``W + scale * B A``.

Names as PEFT writes them (``base_model.model.<name>.lora_A.weight``), and the older
``lora_down / lora_up`` with ``alpha`` tensors.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from checkpoints_convert.names import plain_name
from checkpoints_convert.source import LazyTensor, Source, Tensors
from vidcache_jax.checkpoint import CheckpointError

_HALF = re.compile(r"(?:base_model\.)?(?P<name>.+)\.lora_(?P<half>A|B|down|up)(\.\w+)?\.weight")
_ALPHA = re.compile(r"(?:base_model\.)?(?P<name>.+)\.alpha")


@dataclasses.dataclass(frozen=True, eq=False)
class LoraPair:
    """down [rank, in] and up [out, rank] of one torch Linear, and their factor."""

    down: LazyTensor
    up: LazyTensor
    scale: float


def merge_lora(tensors: Tensors, lora: Source, alpha: float | None = None) -> Tensors:
    """Tensors of the model (plain names) with a LoRA added, in float32 where it adds.

    The scale is alpha / rank, with alpha from the argument, else from the ``adapter_config.json``
    beside the file (alpha / sqrt(rank) if that says so), else from the file's alpha tensors,
    else from LongLive's custom of alpha = rank if it is that file.

    Raises:
      CheckpointError: a tensor of the LoRA has no place in the model or the wrong shape, or alpha
        cannot be known.
    """
    pairs = _pairs(lora, alpha)
    if problems := [
        f"{name} {pair.up.shape} x {pair.down.shape}: "
        + (f"the model has {tensors[name].shape}" if name in tensors else "not in the model")
        for name, pair in pairs.items()
        if name not in tensors or tensors[name].shape != (pair.up.shape[0], pair.down.shape[1])
    ]:
        listed = "\n  ".join(problems)
        raise CheckpointError(
            f"the LoRA {lora.path} does not fit the model; give the model it was trained on:\n"
            f"  {listed}"
        )

    def merged(base: LazyTensor, pair: LoraPair) -> LazyTensor:
        def read() -> np.ndarray:
            down, up = (half.read().astype(np.float32) for half in (pair.down, pair.up))
            return base.read().astype(np.float32) + np.float32(pair.scale) * (up @ down)

        return LazyTensor(base.shape, np.dtype(np.float32), read, base.origin)

    return {
        name: merged(tensor, pairs[name]) if name in pairs else tensor
        for name, tensor in tensors.items()
    }


def _pairs(lora: Source, alpha: float | None) -> dict[str, LoraPair]:
    halves: dict[str, dict[str, LazyTensor]] = {}
    alphas: dict[str, float] = {}
    surplus = []
    for name, tensor in lora.tensors.items():
        if match := _HALF.fullmatch(name):
            half = {"A": "down", "B": "up"}.get(match["half"], match["half"])
            own = halves.setdefault(f"{plain_name(match['name'])}.weight", {})
            if half in own:
                surplus.append(name)
            own[half] = tensor
        elif (match := _ALPHA.fullmatch(name)) and tensor.shape in ((), (1,)):
            alphas[f"{plain_name(match['name'])}.weight"] = float(tensor.read().reshape(()))
        else:
            surplus.append(name)
    incomplete = [name for name, own in halves.items() if own.keys() != {"down", "up"}]
    if surplus or incomplete or not halves or alphas.keys() - halves.keys():
        wrong = [*surplus, *incomplete, *sorted(alphas.keys() - halves.keys())]
        raise CheckpointError(
            f"{lora.path} is no LoRA of plain Linear layers: it has {len(halves)} pairs, and "
            f"{len(wrong)} tensors without a pair such as {wrong[:5]}; merge it with the tool "
            "that made it"
        )
    if wrong := [
        name
        for name, own in halves.items()
        if [len(own["up"].shape), len(own["down"].shape)] != [2, 2]
        or own["up"].shape[1] != own["down"].shape[0]
        or not own["down"].shape[0]
    ]:
        raise CheckpointError(
            f"{lora.path}: the two halves of {wrong[:5]} do not fit each other; download it again"
        )
    return {
        name: LoraPair(own["down"], own["up"], _scale(lora, own, alpha, alphas.get(name)))
        for name, own in halves.items()
    }


def _scale(
    lora: Source, own: Mapping[str, LazyTensor], alpha: float | None, own_alpha: float | None
) -> float:
    rank = own["down"].shape[0]
    config: Mapping[str, Any] = lora.config or {}
    for field in ("use_dora", "fan_in_fan_out", "alpha_pattern", "rank_pattern", "modules_to_save"):
        if config.get(field):
            raise CheckpointError(
                f"{lora.path}: its adapter_config.json has {field}, which is not supported; "
                "merge it with PEFT"
            )
    if alpha is None:
        alpha = config.get("lora_alpha", own_alpha)
    if alpha is None and (lora.picked or "").startswith("generator_lora"):
        alpha = rank
    if not isinstance(alpha, (int, float)):
        raise CheckpointError(
            f"{lora.path} does not say its alpha; give it with --lora-alpha (often it is the "
            f"rank, {rank})"
        )
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank

"""Rules that map PyTorch tensor names to parameter paths, and their application.

Every source tensor must match exactly one rule and every target must be filled; otherwise one
error lists what is missing and what is surplus.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from vidcache_jax.array_typing import Params


def transpose(weight: np.ndarray) -> np.ndarray:
    """torch Linear [out, in] -> kernel [in, out]."""
    return weight.T


def identity(weight: np.ndarray) -> np.ndarray:
    return weight


@dataclasses.dataclass(frozen=True)
class Rule:
    """``pattern`` (a full-match regular expression) -> ``target`` path, through ``transform``.

    A group named ``layer`` in the pattern is the index in the stacked target.
    """

    pattern: str
    target: str
    transform: Callable[[np.ndarray], np.ndarray] = identity


def apply_rules(
    rules: Sequence[Rule], source: Mapping[str, np.ndarray], abstract: Params, dtype
) -> Params:
    """Parameters shaped like ``abstract``, filled from ``source``.

    Raises:
      ValueError: names are surplus, missing or ambiguous, or a tensor has the wrong shape; the
        message lists all of them.
    """
    paths, treedef = jax.tree_util.tree_flatten_with_path(abstract)
    shapes = {"/".join(str(key.key) for key in path): leaf.shape for path, leaf in paths}
    parts: dict[str, dict[int | None, np.ndarray]] = {name: {} for name in shapes}
    problems = []
    for name, tensor in source.items():
        matches = [(rule, m) for rule in rules if (m := re.fullmatch(rule.pattern, name))]
        if len(matches) != 1:
            kind = "surplus" if not matches else "matched by several rules"
            problems.append(f"{kind}: {name} {tuple(tensor.shape)}")
            continue
        rule, match = matches[0]
        layer = int(match["layer"]) if "layer" in match.groupdict() else None
        target = match.expand(rule.target)
        value = rule.transform(np.asarray(tensor))
        shape = shapes.get(target)
        if shape is None or (layer is not None and (not shape or layer >= shape[0])):
            problems.append(f"surplus: {name} {tuple(tensor.shape)}")
        elif value.shape != (shape if layer is None else shape[1:]):
            wanted = shape if layer is None else shape[1:]
            problems.append(f"shape: {name} gives {value.shape}, the model needs {wanted}")
        elif layer in parts[target]:
            problems.append(f"twice: {name} {tuple(tensor.shape)} fills {target} again")
        else:
            parts[target][layer] = value
    for target, shape in shapes.items():
        stacked = any(layer is not None for layer in parts[target])
        wanted = range(shape[0]) if stacked else [None]
        if absent := [layer for layer in wanted if layer not in parts[target]]:
            where = f" in layers {absent}" if stacked else ""
            problems.append(f"missing: {target}{where}")
    if problems:
        raise ValueError("the checkpoint does not fit the model:\n  " + "\n  ".join(problems))

    def assemble(layers: dict[int | None, np.ndarray]) -> jax.Array:
        value = (
            layers[None] if None in layers else np.stack([layers[i] for i in range(len(layers))])
        )
        return jnp.asarray(value, dtype)

    return jax.tree.unflatten(treedef, [assemble(parts[name]) for name in shapes])

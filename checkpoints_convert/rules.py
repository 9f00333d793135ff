"""Rules that map PyTorch tensor names to parameter paths and back.

Every source tensor must match exactly one rule and every target must be filled; otherwise one
error lists what is missing and what is surplus. Nothing is read to find that out.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from checkpoints_convert.source import LazyTensor, in_memory
from checkpoints_convert.stacks import LazyLeaf, Part
from vidcache_jax.array_typing import Params
from vidcache_jax.checkpoint import CheckpointError
from vidcache_jax.checkpoint.paths import by_path, from_paths


@dataclasses.dataclass(frozen=True)
class Transform:
    """What a tensor goes through on its way to a parameter, and back."""

    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]

    def __call__(self, weight: np.ndarray) -> np.ndarray:
        return self.forward(weight)


def permutation(*axes: int) -> Transform:
    """Axes in another order, e.g. ``permutation(2, 3, 4, 1, 0)`` for a Conv3d's weight."""
    back = tuple(int(axis) for axis in np.argsort(axes))
    return Transform(lambda weight: weight.transpose(axes), lambda value: value.transpose(back))


identity = Transform(lambda weight: weight, lambda value: value)
transpose = Transform(lambda weight: weight.T, lambda value: value.T)
"""torch Linear [out, in] <-> kernel [in, out]."""


@dataclasses.dataclass(frozen=True)
class Rule:
    r"""``pattern`` (a full-match regular expression) -> ``target`` path, through ``transform``.

    A group named ``layer`` in the pattern is the index in the stacked target. So that the rule can
    be read backwards, the pattern is made of literals, escaped dots and named groups alone, and
    the target uses every group but ``layer`` as ``\g<name>``. Any function will do as transform
    where the way back is not needed.
    """

    pattern: str
    target: str
    transform: Callable[[np.ndarray], np.ndarray] = identity

    def inverse(self, value: np.ndarray) -> np.ndarray:
        """The tensor that `transform` makes ``value`` of."""
        if not isinstance(self.transform, Transform):
            raise TypeError(f"the rule for {self.pattern} has no way back; give it a Transform")
        return self.transform.inverse(value)

    def source_name(self, target: str, layer: int | None) -> str | None:
        """The name that the rule maps to ``target``; None if it maps none to it."""
        match = re.fullmatch(self._target_pattern, target)
        if match is None or (layer is not None) != ("layer" in self._groups):
            return None
        values = match.groupdict() if layer is None else {**match.groupdict(), "layer": str(layer)}
        return "".join(values[name] if name else literal for name, literal in self._pieces)

    @functools.cached_property
    def _pieces(self) -> tuple[tuple[str, str], ...]:
        """(group name, its expression) and ("", literal) in the pattern's order."""
        token = re.compile(r"\(\?P<(\w+)>([^()]*)\)|\\([.\-])|([\w/\-])")
        pieces, end = [], 0
        for match in token.finditer(self.pattern):
            name, expression, escaped, literal = match.groups()
            if match.start() != end:
                break
            pieces.append((name, expression) if name else ("", escaped or literal))
            end = match.end()
        if end != len(self.pattern):
            raise ValueError(f"the pattern {self.pattern} cannot be read backwards")
        return tuple(pieces)

    @property
    def _groups(self) -> dict[str, str]:
        return {name: expression for name, expression in self._pieces if name}

    @functools.cached_property
    def _target_pattern(self) -> str:
        parts = re.split(r"\\g<(\w+)>", self.target)
        literals, names = parts[::2], parts[1::2]
        if set(names) != self._groups.keys() - {"layer"} or len(names) != len(set(names)):
            raise ValueError(f"the target {self.target} must use each group of {self.pattern} once")
        groups = [f"(?P<{name}>{self._groups[name]})" for name in names]
        return "".join(
            re.escape(literal) + group
            for literal, group in zip(literals, [*groups, ""], strict=True)
        )


def lazy_params(
    rules: Sequence[Rule], tensors: Mapping[str, LazyTensor], abstract: Params, dtype: Any
) -> Params:
    """A tree like ``abstract`` of leaves that are read, transformed and cast when asked for.

    Raises:
      CheckpointError: names are surplus, missing or ambiguous, or a tensor has the wrong shape;
        the message lists all of them.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in by_path(abstract).items()}
    parts: dict[str, dict[int | None, Part]] = {name: {} for name in shapes}
    problems = []
    for name, tensor in tensors.items():
        matches = [(rule, m) for rule in rules if (m := re.fullmatch(rule.pattern, name))]
        if len(matches) != 1:
            kind = "surplus" if not matches else "matched by several rules"
            problems.append(f"{kind}: {name} {tensor.shape}")
            continue
        rule, match = matches[0]
        layer = int(match["layer"]) if "layer" in match.groupdict() else None
        target = match.expand(rule.target)
        shape = shapes.get(target)
        if shape is None or (layer is not None and (not shape or layer >= shape[0])):
            problems.append(f"surplus: {name} {tensor.shape}")
            continue
        wanted = shape if layer is None else shape[1:]
        given = _shape_after(rule, tensor.shape)
        if given is None:
            problems.append(f"shape: {name} {tensor.shape}; the model needs {wanted}")
        elif given != wanted:
            problems.append(f"shape: {name} gives {given}, the model needs {wanted}")
        elif layer in parts[target]:
            problems.append(f"twice: {name} {tensor.shape} fills {target} again")
        else:
            parts[target][layer] = Part(name, tensor, rule.transform)
    for target, shape in shapes.items():
        stacked = any(layer is not None for layer in parts[target])
        wanted = range(shape[0]) if stacked else [None]
        if absent := [layer for layer in wanted if layer not in parts[target]]:
            where = f" in layers {absent}" if stacked else ""
            problems.append(f"missing: {target}{where}")
    if problems:
        raise CheckpointError("the checkpoint does not fit the model:\n  " + "\n  ".join(problems))

    def leaf(name: str) -> LazyLeaf:
        layers, is_stacked = parts[name], None not in parts[name]
        ordered = [layers[i] for i in range(len(layers))] if is_stacked else [layers[None]]
        return LazyLeaf(name, shapes[name], np.dtype(dtype), tuple(ordered), is_stacked)

    return from_paths({name: leaf(name) for name in shapes})


def apply_rules(
    rules: Sequence[Rule], source: Mapping[str, np.ndarray], abstract: Params, dtype: Any
) -> Params:
    """Parameters shaped like ``abstract``, filled from the arrays of ``source``.

    Raises:
      CheckpointError: as `lazy_params`, or a tensor is no finite float.
    """
    tree = lazy_params(rules, in_memory(source), abstract, dtype)
    return jax.tree.map(lambda leaf: leaf.materialise(), tree)


def layers_of(path: str, shape: tuple[int, ...]) -> list[int | None]:
    """Layers that a parameter is stacked of; ``[None]`` if it is no stack."""
    return list(range(shape[0])) if path.startswith("blocks/") else [None]


def source_name(rules: Sequence[Rule], target: str, layer: int | None) -> tuple[Rule, str]:
    """The one rule and name of a layer of a parameter.

    Raises:
      CheckpointError: no rule or several map something to it.
    """
    found = [(rule, name) for rule in rules if (name := rule.source_name(target, layer))]
    if len(found) != 1:
        raise CheckpointError(
            f"{len(found)} rules lead to {target}; these parameters are not of the rules' model"
        )
    return found[0]


def _shape_after(rule: Rule, shape: tuple[int, ...]) -> tuple[int, ...] | None:
    """Shape of the transformed tensor; None if the transform does not take such tensors."""
    try:
        # One byte, strides of zero: costs nothing whatever the shape.
        return rule.transform(np.broadcast_to(np.int8(0), shape)).shape
    except Exception:  # each transform refuses in its own way
        return None

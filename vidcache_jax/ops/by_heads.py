"""Work on the heads that a chip has, where the compiler would not see that they are independent."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from vidcache_jax.sharding import HEADS, MODEL_AXES


def compiler_axes() -> set[str]:
    """Axes of the mesh over which the compiler divides, which it cannot do with a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    manual = jax.sharding.AxisType.Manual
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, kind in pairs if kind != manual}


def by_heads(function: Callable[..., Any], *arguments: Any, axis: int = 1) -> Any:
    """``function(*arguments)``; on a mesh, each chip for its own heads.

    On ``axis`` every array of the arguments has N, or 1 for what is the same for all heads, and
    every array of the result N: [B, N, ...], or [L, B, N, ...] for an axis of 2. Chips that differ
    in ``sequence`` have the same arguments and must come to the same result: left to the compiler,
    it would divide tokens among them, and gather them all again in every turn of a loop that looks
    some of them up.
    """
    if HEADS not in compiler_axes():
        return function(*arguments)
    leaves, treedef = jax.tree.flatten(arguments)
    structures = []

    # Arrays pass in and out one by one: what is typed for arrays is not made of their shardings.
    def own(*leaves):
        result, structure = jax.tree.flatten(function(*jax.tree.unflatten(treedef, leaves)))
        structures.append(structure)
        return result

    divided = P(*[None] * axis, HEADS)
    results = jax.shard_map(
        own, axis_names=compiler_axes() & {*MODEL_AXES}, out_specs=divided, check_vma=False,
        in_specs=tuple(divided if leaf.shape[axis] > 1 else P() for leaf in leaves),
    )(*leaves)  # fmt: skip
    return jax.tree.unflatten(structures[0], results)

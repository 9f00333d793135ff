"""Work on the heads that a chip has, where the compiler would not see that they are independent."""

from collections.abc import Callable, Set
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from vidcache_jax.sharding import HEADS


def compiler_axes() -> set[str]:
    """Axes of the mesh over which the compiler divides, which it cannot do with a kernel."""
    mesh = jax.sharding.get_abstract_mesh()
    manual = jax.sharding.AxisType.Manual
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name for name, kind in pairs if kind != manual}


def by_heads(
    function: Callable[..., Any], *arguments: Any, axes: Set[str] = frozenset({HEADS})
) -> Any:
    """``function(*arguments)``; on a mesh, each chip for its own heads.

    Every array of the arguments is [B, N, ...], or [B, 1, ...] for what is the same for all heads,
    and every array of the result [B, N, ...].

    Args:
      axes: taken from the compiler meanwhile; chips that differ in others than `HEADS` all do the
        same.
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

    divided = P(None, HEADS)
    results = jax.shard_map(
        own, axis_names={*axes}, out_specs=divided, check_vma=False,
        in_specs=tuple(divided if leaf.shape[1] > 1 else P() for leaf in leaves),
    )(*leaves)  # fmt: skip
    return jax.tree.unflatten(structures[0], results)

"""Work on the heads that a chip has, where the compiler would not see that they are independent."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from vidcache_jax.sharding import HEADS


def by_heads(function: Callable[..., Any], *arguments: Any) -> Any:
    """``function(*arguments)``; on a mesh, each chip for its own heads.

    Every array of the arguments is [B, N, ...], or [B, 1, ...] for what is the same for all heads,
    and every array of the result [B, N, ...].
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    if kinds.get(HEADS, jax.sharding.AxisType.Manual) == jax.sharding.AxisType.Manual:
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
        own, axis_names={HEADS}, out_specs=divided, check_vma=False,
        in_specs=tuple(divided if leaf.shape[1] > 1 else P() for leaf in leaves),
    )(*leaves)  # fmt: skip
    return jax.tree.unflatten(structures[0], results)

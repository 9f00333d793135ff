"""Leaves of a parameter tree by their paths."""

from typing import Any

from flax.traverse_util import flatten_dict, unflatten_dict

from vidcache_jax.array_typing import Params


def by_path(params: Params) -> dict[str, Any]:
    """``{"blocks/norm3/scale": leaf, ...}`` of a nested dict."""
    return dict(flatten_dict(params, sep="/"))


def from_paths(leaves: dict[str, Any]) -> Params:
    """The inverse of `by_path`."""
    return unflatten_dict(leaves, sep="/")

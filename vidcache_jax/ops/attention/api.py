"""The one public attention call and the choice of its implementation."""

from collections.abc import Callable
from typing import Literal

import jax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.array_typing import Heads
from vidcache_jax.ops.attention import xla
from vidcache_jax.ops.attention.check import is_sound
from vidcache_jax.ops.attention.keys import Keys
from vidcache_jax.ops.attention.ref import AttentionPart
from vidcache_jax.ops.attention.table import IMPLEMENTATIONS
from vidcache_jax.ops.by_heads import compiler_axes
from vidcache_jax.ops.implementations import Implementation, choose, named, undivided
from vidcache_jax.sharding import HEADS, MODEL_AXES, SEQUENCE


def attention(
    q: Heads,
    k: Float[Array, "*L B N S H"],
    v: Float[Array, "*L B N S H"],
    visible: Bool[Array, "#B #N #T S"] | None = None,
    *,
    layer: Int[Array, ""] | None = None,
    lengths: Int[Array, "#B #N"] | None = None,
    slots: Bool[Array, "#B #N K"] | None = None,
    bias: Float[Array, "#B #N K"] | None = None,
    divided: Literal["heads", "tokens"] = "heads",
    implementation: str | None = None,
) -> AttentionPart:
    """``softmax(q k^T / sqrt(H) + bias) v`` of T queries over S keys, with softmax residuals.

    A key counts if every condition given says so. Conditions are data: no value of theirs
    compiles anything anew. A key that does not count, and its value, may hold anything, NaN
    included, without changing a bit. A query for which none counts gets 0 and denominator 0.

    Args:
      q, k, v: already rotated by RoPE.
      visible: which keys count, for each head or for all, for each query or for all. The general
        form, and the slow one: kernels do not take it.
      layer: which layer of stacked k and v [L, B, N, S, H] is meant; no layer is copied.
      lengths: how many keys count, the first ones, for each head or for all: sets of tokens.
      slots: which slots count, when keys are K slots of S / K tokens (a latent frame each, or one).
      bias: added to the logits of a slot.
      divided: what chips of one video share out on a mesh (`sharding`): heads, and queries over
        ``sequence``; or queries alone, each chip with all keys.
      implementation: "xla", "tpu", "gpu", "hopper" or None for the best one that can do this where
        it runs; a kernel of this machine's device is checked first, once (`check`).

    Raises:
      ValueError: no implementation has that name, or the shapes do not fit each other.
      NotImplementedError: the named implementation cannot do this; the message says why.
    """
    keys = Keys(k, v, layer, visible, lengths, slots, bias)
    _check(keys)
    if implementation is None:
        return _best(q, keys, divided)
    chosen = named("attention", IMPLEMENTATIONS, implementation)
    if reason := _reason_against(chosen, q, keys):
        raise NotImplementedError(f"attention on {implementation!r}: {reason}")
    return chosen.call(q, keys)


def _best(q: Heads, keys: Keys, divided: str) -> AttentionPart:
    attend = choose(
        "attention", IMPLEMENTATIONS, None, q, keys,
        is_sound=lambda name, each: is_sound(name, each, q.shape[-1], q.dtype),
    )  # fmt: skip
    axes = compiler_axes()
    if not axes or attend is xla.attention:
        return attend(q, keys)
    return _by_hand(attend, q, keys, axes, divided)


def _by_hand(attend: Callable, q: Heads, keys: Keys, axes: set[str], divided: str):
    """Each chip attends with its own queries over the keys of its heads."""
    by_heads = divided == "heads"
    own = P(None, HEADS, SEQUENCE) if by_heads else P(None, None, MODEL_AXES)

    def spec(x: jax.Array) -> P:
        # The heads of k, v come before tokens and width; of tables, before the last axis.
        axis = x.ndim - 3 if x is keys.k or x is keys.v else 1
        has_heads = by_heads and x.ndim > 1 and x.shape[axis] > 1
        return P(*[None] * axis, HEADS) if has_heads else P()

    leaves, treedef = jax.tree.flatten(keys)

    def on_a_chip(q, leaves):
        part = attend(q, jax.tree.unflatten(treedef, leaves))
        return part.out, part.max, part.denominator

    parts = jax.shard_map(
        on_a_chip, axis_names=axes, in_specs=(own, [*map(spec, leaves)]), out_specs=own,
        check_vma=False,
    )(q, leaves)  # fmt: skip
    return AttentionPart(*parts)


def _reason_against(implementation: Implementation, q: Heads, keys: Keys) -> str | None:
    if implementation is not IMPLEMENTATIONS["xla"] and (axes := compiler_axes()):
        return undivided(axes)
    return implementation.reason_against(q, keys)


def _check(keys: Keys) -> None:
    stacked = keys.k.ndim == 5
    if stacked != (keys.layer is not None):
        raise ValueError(
            f"k of shape {keys.k.shape} {'needs' if stacked else 'has no axis for'} a layer: "
            "stacked keys are [L, B, N, S, H]"
        )
    per_run = {"slots": keys.slots, "bias": keys.bias}
    numbers = {name: x.shape[-1] for name, x in per_run.items() if x is not None}
    for name, number in numbers.items():
        if keys.num_keys % number != 0:
            raise ValueError(f"{name} of {number} slots do not divide {keys.num_keys} keys")
    if len({*numbers.values()}) > 1:
        raise ValueError(f"slots and bias are of different numbers of slots: {numbers}")

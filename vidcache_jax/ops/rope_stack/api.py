"""The public call and the choice of its implementation."""

from jaxtyping import Array, Float, Int

from vidcache_jax.ops.by_heads import by_heads
from vidcache_jax.ops.implementations import choose
from vidcache_jax.ops.rope_stack.check import is_sound
from vidcache_jax.ops.rope_stack.table import IMPLEMENTATIONS


def rotate_stack(
    x: Float[Array, "L B N S H"],
    positions: Int[Array, "*L #B G S 3"],
    *,
    implementation: str | None = None,
) -> Float[Array, "L B N S H"]:
    """Turns each pair (x[2i], x[2i+1]) of all layers by its angle; see `rope.rotate`.

    On a mesh each chip turns the keys of its heads. No gradient is due to it: nothing that is
    trained goes through a cache.

    Args:
      positions: (frame, row, column) of each token, of one head or of all (G is 1 or N).
      implementation: a name in `table`, or None for the best one that can do this where it runs; a
        kernel of this machine's device is checked first, once (`check`).

    Raises:
      ValueError: no implementation has that name.
      NotImplementedError: the named implementation cannot do this; the message says why.
    """
    chosen = choose(
        "rotate_stack", IMPLEMENTATIONS, implementation, x,
        is_sound=lambda name, each: is_sound(name, each, x.shape[-1], x.dtype),
    )  # fmt: skip
    return by_heads(chosen, x, positions, axis=2)

"""What is attended to: keys, values, and which of them count."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Keys:
    """Keys and values, perhaps those of all layers, and four ways to say which of them count.

    Every condition that is given must hold. ``slots`` and ``bias`` cut the S keys into K runs of
    S / K: run i holds the keys ``[i S / K, (i + 1) S / K)``.
    """

    k: Float[Array, "*L B N S H"]
    v: Float[Array, "*L B N S H"]
    layer: Int[Array, ""] | None = None
    """Which layer of a stack [L, B, N, S, H]; None: there is no axis L."""
    visible: Bool[Array, "#B #N #T S"] | None = None
    """Any mask."""
    lengths: Int[Array, "#B #N"] | None = None
    """The first ``lengths`` keys count."""
    slots: Bool[Array, "#B #N K"] | None = None
    """Whether the keys of a run count."""
    bias: Float[Array, "#B #N K"] | None = None
    """Added to the logits of a run."""

    @property
    def num_keys(self) -> int:
        return self.k.shape[-2]

    @property
    def num_runs(self) -> int:
        """K; one run, if nothing is said of runs."""
        per_run = self.slots if self.slots is not None else self.bias
        return 1 if per_run is None else per_run.shape[-1]

    @property
    def run_size(self) -> int:
        """Keys in a run, S / K."""
        return self.num_keys // self.num_runs

    def mask(self) -> Bool[Array, "#B #N #T S"] | None:
        """All conditions as one mask; None if there is none."""
        masks = [] if self.visible is None else [self.visible]
        if self.slots is not None:
            masks.append(self._of_keys(self.slots))
        if self.lengths is not None:
            number = jnp.arange(self.num_keys, dtype=jnp.int32)
            masks.append(number[None, None, None] < self.lengths[..., None, None])
        return functools.reduce(jnp.logical_and, masks) if masks else None

    def run_lengths(self) -> Int[Array, "#B #N K"]:
        """How many keys of each run count, its first ones; ``visible`` is not asked."""
        start = jnp.arange(self.num_runs, dtype=jnp.int32) * self.run_size
        end = self.num_keys if self.lengths is None else self.lengths[..., None]
        lengths = jnp.clip(end - start[None, None], 0, self.run_size)
        return lengths if self.slots is None else jnp.where(self.slots, lengths, 0)

    def key_bias(self) -> Float[Array, "#B #N 1 S"] | None:
        """The bias of each key."""
        return None if self.bias is None else self._of_keys(self.bias)

    def take(self, start: Int[Array, ""], size: int) -> tuple[jax.Array, jax.Array]:
        """Keys and values ``[start, start + size)`` [B, N, size, H], straight from the stack."""
        return self._slice(self.k, start, size), self._slice(self.v, start, size)

    def _of_keys(self, per_run: Array) -> Array:
        return jnp.repeat(per_run, self.run_size, axis=-1)[:, :, None]

    def _slice(self, stored: Array, start: Int[Array, ""], size: int) -> Array:
        if self.layer is None:
            return jax.lax.dynamic_slice_in_dim(stored, start, size, axis=-2)
        zero = jnp.zeros((), jnp.int32)
        corner = (self.layer.astype(jnp.int32), zero, zero, start, zero)
        sizes = (1, *stored.shape[1:3], size, stored.shape[4])
        return jax.lax.dynamic_slice(stored, corner, sizes)[0]

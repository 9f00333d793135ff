"""What a linear map can take over of the history: statistics, ridge solution, residual.

For one layer and video, with rows over tokens, passes and chunks (heads concatenated, channel =
head * head_dim + index):

    A_local   attention over sink and own chunk          A_full   over all that the layer sees
    G = A_local^T A_local      C = A_local^T A_full      F = A_full^T A_full
    dW = argmin ||A_full W - A_local (W + dW)||^2 + mu ||dW||^2 = (G + mu I)^-1 (C - G) W

W is the kernel of the attention output projection. The equations of ISPA (arXiv 2607.00712) are
not public; these are our reading of its figure 1 and of its title of section 3.2, "full attention
reconstruction". The ridge's scale is that of PatchKV, which does the same to language models.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float

from vidcache_jax.array_typing import Heads

Ridge = Literal["frobenius", "trace"]
Matrix = Float[Array, "D D"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StreamStatistics:
    """Products of the local and the full stream summed over rows, float32."""

    local_local: Float[Array, "*LB D D"]
    """G."""
    local_full: Float[Array, "*LB D D"]
    """C."""
    full_full: Float[Array, "*LB D D"]
    """F."""


def empty_statistics(*shape: int) -> StreamStatistics:
    """Zeros of shape [*stack, D, D]."""
    return StreamStatistics(*(jnp.zeros(shape, jnp.float32) for _ in range(3)))


def stream_statistics(local: Heads, full: Heads) -> StreamStatistics:
    """Those of one pass, [B, D, D]."""
    local, full = (rearrange(x, "b n t h -> b t (n h)") for x in (local, full))

    def product(one: Array, two: Array) -> Float[Array, "B D D"]:
        # The streams differ by little: products of rounded operands would lose the difference.
        return jnp.einsum(
            "btd,bte->bde", one, two,
            precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32,
        )  # fmt: skip

    return StreamStatistics(product(local, local), product(local, full), product(full, full))


def ridge_of(gram: Matrix, ridge: Ridge, mu0: float | Float[Array, ""]) -> Float[Array, ""]:
    """mu: ``mu0 ||G||_F^2 / tr(G)`` ("frobenius") or ``mu0 tr(G) / D`` ("trace")."""
    trace = jnp.trace(gram)
    if ridge == "trace":
        return mu0 * trace / gram.shape[0]
    return mu0 * jnp.sum(gram**2) / jnp.maximum(trace, jnp.finfo(jnp.float32).tiny)


def solve(
    statistics: StreamStatistics, kernel: Matrix, mu: Float[Array, ""], rank: int | None
) -> Matrix:
    """dW of one layer and video.

    With ``rank`` r, dW is projected onto the r directions of the output in which ``A_local dW``
    is largest (the leading eigenvectors of ``dW^T G dW``; reduced-rank regression).
    """
    gram, cross = statistics.local_local, statistics.local_full
    factor = jax.scipy.linalg.cho_factor(gram + mu * jnp.eye(len(gram), dtype=gram.dtype))
    delta = jax.scipy.linalg.cho_solve(factor, _product(cross - gram, kernel))
    if rank is None:
        return delta
    _, directions = jnp.linalg.eigh(_product(delta.T, _product(gram, delta)))
    leading = directions[:, -rank:]
    return _product(_product(delta, leading), leading.T)


def residual(statistics: StreamStatistics, kernel: Matrix, absorbed: Matrix) -> Float[Array, ""]:
    """``||A_full W - A_local W'||^2 / ||A_full W||^2``, from the statistics alone."""
    full = jnp.sum(kernel * _product(statistics.full_full, kernel))
    both = jnp.sum(absorbed * _product(statistics.local_full, kernel))
    local = jnp.sum(absorbed * _product(statistics.local_local, absorbed))
    return (full - 2 * both + local) / jnp.maximum(full, jnp.finfo(jnp.float32).tiny)


@functools.partial(jax.jit, static_argnames=("ridge", "rank"))
def absorb(
    statistics: StreamStatistics,
    kernels: Float[Array, "L D D"],
    ridge: Ridge,
    mu0: float | Float[Array, ""],
    rank: int | None,
) -> tuple[Float[Array, "L B D D"], Float[Array, "L B"], Float[Array, "L B"]]:
    """dW of every layer and video [L, B], and `residual` without it and with it."""

    def layer(inputs):
        statistics, kernel = inputs

        def video(own: StreamStatistics):
            delta = solve(own, kernel, ridge_of(own.local_local, ridge, mu0), rank)
            return delta, residual(own, kernel, kernel), residual(own, kernel, kernel + delta)

        return jax.vmap(video)(statistics)

    return jax.lax.map(layer, (statistics, kernels.astype(jnp.float32)))


def smallest(scores: Float[np.ndarray, "L B"], count: int) -> Bool[np.ndarray, "L B"]:
    """The ``count`` layers of smallest score of each video; of equals, the lower layers."""
    order = np.argsort(scores, axis=0, kind="stable")
    return np.argsort(order, axis=0) < count


def _product(one: Float[Array, "I J"], two: Float[Array, "J K"]) -> Float[Array, "I K"]:
    return jnp.matmul(one, two, precision=jax.lax.Precision.HIGHEST)

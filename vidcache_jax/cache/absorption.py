"""What a linear map can take over of the history: statistics, ridge solution, residual.

For one layer and video, with rows over tokens, passes and chunks (heads concatenated, channel =
head * head_dim + index):

    A_local   attention over sink and own chunk          A_full   over all that the layer sees
    G = A_local^T A_local      C = A_local^T A_full      F = A_full^T A_full
    dW = argmin ||A_full W - A_local (W + dW)||^2 + mu ||dW||^2 = (G + mu I)^-1 (C - G) W

W is the kernel of the attention output projection. With ``affine``, A_local has a column of ones
behind it wherever dW is concerned, whose last row is then a change of the bias: I = D + 1 inputs
instead of D. The equations of ISPA (arXiv 2607.00712) are not public; these are our reading of its
figure 1 and of its title of section 3.2, "full attention reconstruction". The ridge's scale is that
of PatchKV, which does the same to language models.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vidcache_jax.array_typing import Heads

Ridge = Literal["frobenius", "trace"]
Matrix = Float[Array, "D D"]
Gram = Float[Array, "I I"]
Change = Float[Array, "I D"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StreamStatistics:
    """Products of the local and the full stream summed over rows, float32."""

    local_local: Float[Array, "*LB I I"]
    """G."""
    local_full: Float[Array, "*LB I D"]
    """C."""
    full_full: Float[Array, "*LB D D"]
    """F."""


def empty_statistics(*stack: int, width: int, affine: bool = False) -> StreamStatistics:
    """Zeros, for D = ``width``."""
    inputs = width + affine
    shapes = ((inputs, inputs), (inputs, width), (width, width))
    return StreamStatistics(*(jnp.zeros((*stack, *shape), jnp.float32) for shape in shapes))


def stream_statistics(local: Heads, full: Heads, affine: bool = False) -> StreamStatistics:
    """Those of one pass, stacked over B."""
    local, full = (rearrange(x, "b n t h -> b t (n h)") for x in (local, full))
    if affine:
        local = jnp.pad(local, ((0, 0), (0, 0), (0, 1)), constant_values=1)

    def product(one: Float[Array, "B T I"], two: Float[Array, "B T J"]) -> Float[Array, "B I J"]:
        # The streams differ by little: products of rounded operands would lose the difference.
        return jnp.einsum(
            "btd,bte->bde", one, two,
            precision=jax.lax.Precision.HIGHEST, preferred_element_type=jnp.float32,
        )  # fmt: skip

    return StreamStatistics(product(local, local), product(local, full), product(full, full))


def ridge_of(gram: Gram, ridge: Ridge, mu0: float | Float[Array, ""]) -> Float[Array, ""]:
    """mu: ``mu0 ||G||_F^2 / tr(G)`` ("frobenius") or ``mu0 tr(G) / I`` ("trace")."""
    trace = jnp.trace(gram)
    if ridge == "trace":
        return mu0 * trace / gram.shape[0]
    return mu0 * jnp.sum(gram**2) / jnp.maximum(trace, jnp.finfo(jnp.float32).tiny)


def missed(gram: Gram, cross: Change, kernel: Matrix) -> Change:
    """``A_local^T (A_full - A_local) W = (C - G) W``, what dW should give of A_local."""
    return _product(cross - gram[:, : kernel.shape[0]], kernel)


def solve(gram: Gram, missed: Change, mu: Float[Array, ""], rank: int | None) -> Change:
    """dW of one layer and video: ``(G + mu I)^-1 missed``.

    With ``rank`` r, dW is projected onto the r directions of the output in which ``A_local dW``
    is largest (the leading eigenvectors of ``dW^T G dW``; reduced-rank regression).
    """
    factor = jax.scipy.linalg.cho_factor(gram + mu * jnp.eye(len(gram), dtype=gram.dtype))
    delta = jax.scipy.linalg.cho_solve(factor, missed)
    if rank is None:
        return delta
    _, directions = jnp.linalg.eigh(_product(delta.T, _product(gram, delta)))
    leading = directions[:, -rank:]
    return _product(_product(delta, leading), leading.T)


def gain(gram: Gram, missed: Change, delta: Change) -> Float[Array, ""]:
    """By how much any dW lowers ``||A_full W - A_local (W + dW)||^2``.

    ``2 <dW, missed> - <dW, G dW>``: with this, residuals take one product of matrices instead of
    the four of ``A_full W`` and ``A_local (W + dW)`` written out.
    """
    return jnp.sum(delta * (2 * missed - _product(gram, delta)))


@jax.jit
def energies(
    statistics: StreamStatistics, kernels: Float[Array, "L D D"]
) -> tuple[Float[Array, "L B"], Float[Array, "L B"]]:
    """``||A_full W||^2`` and ``||(A_full - A_local) W||^2`` of every layer and video."""

    def layer(inputs: tuple[StreamStatistics, Matrix]):
        own, kernel = inputs
        width = kernel.shape[0]
        kernel = kernel.astype(jnp.float32)
        outer = _product(kernel, kernel.T)[None]
        energy = lambda gram: jnp.sum(gram * outer, axis=(1, 2))
        cross = own.local_full[:, :width]
        difference = own.full_full - cross - cross.mT + own.local_local[:, :width, :width]
        return energy(own.full_full), energy(difference)

    return jax.lax.map(layer, (statistics, kernels))


@functools.partial(jax.jit, static_argnames=("ridge", "rank"))
def solve_layers(
    grams: Float[Array, "L B I I"],
    crosses: Float[Array, "L B I D"],
    kernels: Float[Array, "L D D"],
    layers: Int[Array | np.ndarray, "R B"],
    ridge: Ridge,
    mu0: float | Float[Array, ""],
    rank: int | None,
) -> tuple[Float[Array, "R B I D"], Float[Array, "R B"]]:
    """dW and `gain` of the ``layers`` of each video, one row after the other."""

    def video(gram, cross, layer):
        gram, cross, kernel = (x[layer].astype(jnp.float32) for x in (gram, cross, kernels))
        due = missed(gram, cross, kernel)
        delta = solve(gram, due, ridge_of(gram, ridge, mu0), rank)
        return delta, gain(gram, due, delta)

    videos = jax.vmap(video, in_axes=(1, 1, 0))
    return jax.lax.map(lambda row: videos(grams, crosses, row), jnp.asarray(layers))


def smallest(scores: Float[np.ndarray, "L B"], count: int) -> Bool[np.ndarray, "L B"]:
    """The ``count`` layers of smallest score of each video; of equals, the lower layers."""
    order = np.argsort(scores, axis=0, kind="stable")
    return np.argsort(order, axis=0) < count


def _product(one: Float[Array, "I J"], two: Float[Array, "J K"]) -> Float[Array, "I K"]:
    return jnp.matmul(one, two, precision=jax.lax.Precision.HIGHEST)

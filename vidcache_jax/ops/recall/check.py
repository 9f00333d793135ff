"""Whether a kernel computes on this very device what it should."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidcache_jax.ops import soundness
from vidcache_jax.ops.implementations import Implementation
from vidcache_jax.ops.recall import ref
from vidcache_jax.ops.recall.moments import frame_moments


def is_sound(
    what: str, name: str, implementation: Implementation, head_dim: int, dtype: Any
) -> bool:
    """Whether a kernel for recalling or storing may be chosen; see `soundness.is_sound`.

    It does a small example, an empty slot of which is NaN, and agrees with "xla" to 4 units of
    ``dtype``'s precision or 1e-5, relative to the largest number.
    """
    return soundness.is_sound(
        what, name, implementation.platform,
        _disagreement, what, implementation, head_dim, jnp.dtype(dtype),
    )  # fmt: skip


def _disagreement(what: str, chosen: Implementation, head_dim: int, dtype: Any) -> str | None:
    """Two videos, two heads, six slots of 200 tokens, three frames."""
    random = np.random.default_rng(0)
    frames = random.normal(size=(2, 2, 9, 200, head_dim))
    frames += random.normal(size=(2, 2, 9, 1, head_dim))
    frames[:, :, 5] = np.nan
    x, new = (
        jnp.asarray(part.reshape(2, 2, -1, head_dim), dtype)
        for part in (frames[:, :, :6], frames[:, :, 6:])
    )
    places = jnp.array([[3, 0, 2], [1, 4, 3]], jnp.int32)
    if what == "store":
        reference, given = ref.store, (new, places)
    else:
        admitted = jnp.array([[1, 0, 1], [0, 1, 1]]) > 0
        trusted = jnp.array([[0, 1, 0, 0, 1, 0], [1, 0, 1, 0, 0, 0]]) > 0
        reference, given = ref.recall, (places, admitted, trusted)
    options = {} if what == "store" else {"tau": 0.6}
    actual, expected = (
        jax.jit(functools.partial(each, **options))(x, frame_moments(x, 6), *given)
        for each in (chosen.call, reference)
    )
    for part, one, two in (
        ("frames", actual[0][:, :, :1000], expected[0][:, :, :1000]),
        ("means", actual[1].mean[:, :, :5], expected[1].mean[:, :, :5]),
        ("variances", actual[1].variance[:, :, :5], expected[1].variance[:, :, :5]),
    ):
        if reason := soundness.disagreement(part, one, two, dtype):
            return reason
    return None

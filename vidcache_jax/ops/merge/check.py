"""Whether a routing kernel computes on this very device what it should."""

import jax
import jax.numpy as jnp
import numpy as np

from vidcache_jax.ops import soundness
from vidcache_jax.ops.implementations import Implementation
from vidcache_jax.ops.merge import ref


def is_sound(name: str, implementation: Implementation, horizon: int) -> bool:
    """Whether a kernel may be chosen; see `soundness.is_sound`.

    It routes a small example, with equal profiles and with some that are not retained and NaN, to
    the same ones as "xla", and agrees in their cosines to 1e-5.
    """
    return soundness.is_sound(
        "routing", name, implementation.platform, _disagreement, implementation, horizon
    )


def _disagreement(chosen: Implementation, horizon: int) -> str | None:
    """Two heads, 200 evicted profiles and 320, of which half come twice."""
    random = np.random.default_rng(0)
    profiles = lambda count: random.normal(size=(1, 2, horizon, count)).astype(np.float32)
    rank = np.stack([random.permutation(320) for _ in range(2)])[None].astype(np.int32)
    rank[random.random(rank.shape) < 0.2] = -1
    evicted, other = profiles(200), profiles(160)
    retained = np.where(rank[:, :, None] < 0, np.nan, np.concatenate([other, other], axis=-1))
    given = tuple(map(jnp.asarray, (evicted, retained.astype(np.float32), rank)))
    nearest, cosine = jax.jit(chosen.call)(*given)
    expected, cosine_expected = ref.route(*given)
    error = float(jnp.max(jnp.abs(cosine - cosine_expected)))
    if not error <= 1e-5:  # NaN is not
        return f"it disagrees in cosines by {error:.2g}, more than 1e-05"
    if number := int(jnp.sum(nearest != expected)):
        return f"it routes {number} of {nearest.size} profiles elsewhere"
    return None

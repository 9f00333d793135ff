"""TAME, trusted alignment: a recalled frame is moved towards the frames that are trusted.

Per video, head and channel, keys and values separately (TetherCache, arXiv 2606.13035, Eqs. 11 to
13): with the frame's moments (mu_x, sigma_x) and the trusted pool's (mu_T, sigma_T),

    aligned = (1 - tau) x + tau (sigma_T (x - mu_x) / sigma_x + mu_T)

in float32; standard deviations are those of the population and at least 1e-6, as in the released
``tame.py``.
"""

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vidcache_jax.cache.moments import Moments

PAPER_TAU = 0.6
"""The paper's strength, its optimum over 240 s."""
CODE_TAU = 0.35
"""The default of the released code."""
SMALLEST_STD = 1e-6


def align(
    x: Float[Array, "B N T H"], own: Moments, trusted: Moments, tau: float
) -> Float[Array, "B N T H"]:
    """Frames x with moments ``own`` ([B, N, F, H]), aligned to ``trusted`` ([B, N, 1, H])."""
    frames = rearrange(x.astype(jnp.float32), "b n (f t) h -> b n f t h", f=own.mean.shape[2])
    per_frame = lambda moment: moment[:, :, :, None]
    mean, spread = per_frame(own.mean), per_frame(_std(own))
    trusted_mean, trusted_spread = per_frame(trusted.mean), per_frame(_std(trusted))
    moved = trusted_spread * ((frames - mean) / spread) + trusted_mean
    aligned = (1 - tau) * frames + tau * moved
    return rearrange(aligned, "b n f t h -> b n (f t) h").astype(x.dtype)


def _std(moments: Moments) -> Float[Array, "B N K H"]:
    return jnp.maximum(jnp.sqrt(moments.variance), SMALLEST_STD)

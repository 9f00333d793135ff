"""Flow-matching schedule: shifted timesteps, flow to clean latents, fresh noise.

``x_t = (1 - sigma) x0 + sigma eps`` with ``sigma = t / 1000`` and ``flow = eps - x0``
(Self-Forcing ``utils/scheduler.py``).
"""

import numpy as np
from jaxtyping import Float

from vidcache_jax.config import RolloutConfig


def warp(steps, shift: float) -> Float[np.ndarray, " steps"]:
    """``t = 1000 shift s / (1 + (shift - 1) s)`` with ``s = step / 1000``, in float64.

    Example: steps 1000, 750, 500, 250 and shift 5 give 1000, 937.5, 833.3, 625.
    """
    s = np.asarray(steps, np.float64) / 1000
    return 1000 * shift * s / (1 + (shift - 1) * s)


def rollout_timesteps(config: RolloutConfig) -> Float[np.ndarray, " steps"]:
    """Warped timesteps of a chunk's denoise passes, float64."""
    return warp(config.denoise_timesteps, config.timestep_shift)

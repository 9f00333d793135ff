"""Both ways of noising a clean estimate again, against the formulas written out."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.toy import toy_model
from vidcache_jax.cache import FullCache
from vidcache_jax.config import RolloutConfig
from vidcache_jax.models import wan_dit
from vidcache_jax.sampling.rollout import Rollout

STEPS, SHIFT = (1000, 600, 200), 3.0


def one_chunk(renoise: Literal["fresh", "implied"], seed: int = 0):
    """(clean chunk of `Rollout.step`, its noise and fresh noise, flow(x, t) of an empty past)."""
    model = toy_model()
    policy = FullCache(3)
    config = RolloutConfig(denoise_timesteps=STEPS, timestep_shift=SHIFT, renoise=renoise)
    rollout = Rollout(model.config, config, policy)
    state = rollout.init(1, model.latent_size, jnp.float32)
    text_kv = wan_dit.encode_text(model.params, model.config, model.embed_text("a circle")[None])
    keys = jax.random.split(jax.random.key(seed))
    noise = jax.random.normal(keys[0], (1, 3, *model.latent_size, 16))
    fresh = jax.random.normal(keys[1], (2, *noise.shape))
    _, chunk = jax.jit(rollout.step)(model.params, state, text_kv, noise, fresh)

    def flow(x, t):
        timestep = jnp.full((1, 3), t, jnp.float32)
        flow, _ = wan_dit.denoise(
            model.params, model.config, policy, x, timestep, text_kv, state.cache, jnp.int32(0)
        )
        return flow

    return chunk.latents, noise, fresh, flow


def sigmas() -> list[float]:
    return [SHIFT * s / (1 + (SHIFT - 1) * s) for s in (step / 1000 for step in STEPS)]


def test_implied_noise_is_an_euler_solver():
    """x' = x + (sigma' - sigma) flow, down to sigma 0."""
    clean, x, _, flow = one_chunk("implied")
    for sigma, next_sigma in zip(sigmas(), [*sigmas()[1:], 0.0], strict=True):
        x = x + (next_sigma - sigma) * flow(x, 1000 * sigma)
    np.testing.assert_allclose(clean, x, atol=2e-4, rtol=2e-4)


def test_fresh_noise_is_new_at_every_step():
    clean, x, fresh, flow = one_chunk("fresh")
    for index, sigma in enumerate(sigmas()):
        x0 = x - sigma * flow(x, 1000 * sigma)
        if index < 2:
            x = (1 - sigmas()[index + 1]) * x0 + sigmas()[index + 1] * fresh[index]
    np.testing.assert_allclose(clean, x0, atol=2e-4, rtol=2e-4)


def test_the_word_is_checked():
    config = RolloutConfig()
    # By hand: in tests the annotation itself already refuses the word.
    vars(config).update(renoise="stale")
    with pytest.raises(ValueError, match="renoise='stale' must be 'fresh' or 'implied'"):
        config.__post_init__()

"""A chunk's noise: one key per (seed, chunk, step)."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.models.cases import QUICK
from vidcache_jax.sampling.rollout import chunk_noise
from vidcache_jax.testing import same_bits

SHAPE = (2, 3, 4, 6, 5)
draw = jax.jit(chunk_noise, static_argnums=(2, 3), compiler_options=QUICK)


def test_noise_depends_on_seed_chunk_and_step_alone():
    noise, renoise = draw(jax.random.key(7), jnp.int32(3), 4, SHAPE)
    assert noise.shape == SHAPE and renoise.shape == (3, *SHAPE)
    assert noise.dtype == renoise.dtype == jnp.float32
    again = draw(jax.random.key(7), jnp.int32(3), 4, SHAPE)
    assert same_bits(again[0], noise) and same_bits(again[1], renoise)
    others = [draw(jax.random.key(8), jnp.int32(3), 4, SHAPE)]
    others += [draw(jax.random.key(7), jnp.int32(chunk), 4, SHAPE) for chunk in (0, 2, 4)]
    steps = [noise, *renoise]
    for other in others:
        steps += [other[0], *other[1]]
    flat = np.stack([np.asarray(step).ravel() for step in steps])
    correlation = np.corrcoef(flat) - np.eye(len(flat))
    # 720 numbers each: chance alone gives 0.04, the largest of 190 pairs four times that.
    assert np.abs(correlation).max() < 0.2


def test_noise_of_a_step_does_not_depend_on_the_number_of_steps():
    long, short = (draw(jax.random.key(7), jnp.int32(3), steps, SHAPE) for steps in (4, 2))
    assert same_bits(long[0], short[0]) and same_bits(long[1][:1], short[1])
    first, none = draw(jax.random.key(7), jnp.int32(3), 1, SHAPE)
    assert same_bits(first, long[0]) and none.shape == (0, *SHAPE)


def test_noise_is_standard_normal():
    noise, _ = draw(jax.random.key(0), jnp.int32(0), 1, (1, 3, 40, 40, 4))
    values = np.asarray(noise).ravel()
    assert abs(values.mean()) < 0.03 and abs(values.std() - 1) < 0.03
    assert abs((np.abs(values) < 1).mean() - 0.6827) < 0.02

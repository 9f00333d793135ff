"""The training objective: its noise, its weights, its clips."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.toy import random_like
from vidcache_jax.config import WanConfig
from vidcache_jax.models.wan_dit import abstract_params
from vidcache_jax.tiny import training

CLIPS = training.ClipConfig(num_frames=9, jump_probability=0.5)
SMALL = dataclasses.replace(
    WanConfig.tiny(), dim=24, ffn_dim=32, num_heads=2, num_layers=1, freq_dim=8
)


def test_clips_jump_after_the_first_chunk_or_not_at_all():
    clips = jax.jit(training.sample_clips, static_argnums=(1, 2))(jax.random.key(0), 12, CLIPS)
    assert clips.frames.shape == (12, 9, 64, 64, 3)
    jumps = np.asarray(clips.jumps)
    assert 0 < (jumps > 0).sum() < 12 and jumps.max() < CLIPS.max_jump


@pytest.fixture(scope="module")
def batch():
    """Random latents of two clips, the second of which jumps."""
    latents = jax.random.normal(jax.random.key(1), (2, 9, 2, 2, 16))
    text = jax.random.normal(jax.random.key(2), (2, SMALL.text_len, SMALL.text_dim))
    frames = jnp.zeros((2, 9, 64, 64, 3))
    return latents, training.Clip(frames, text, jnp.asarray([0, 7], jnp.int32))


flow_loss = jax.jit(training.flow_loss, static_argnums=(1, 5))


def loss_of(params, latents, clip, seed=3, config=CLIPS):
    return flow_loss(params, SMALL, latents, clip, jax.random.key(seed), config)


def test_a_zero_flow_costs_the_variance_of_noise_and_data(batch):
    params = jax.tree.map(jnp.zeros_like, random_like(abstract_params(SMALL), 0))
    losses = [float(loss_of(params, *batch, seed=seed)) for seed in range(20)]
    assert np.mean(losses) == pytest.approx(2.0, abs=0.1)  # 1 of the noise, 1 of the latents


def test_second_chunk_of_a_jumping_clip_has_no_loss(batch):
    """Its target may be anything; that of a clip without a jump may not."""
    latents, clip = batch
    config = dataclasses.replace(CLIPS, context_noise=0.0)
    params = random_like(abstract_params(SMALL), 0)
    # Only the target: the flow itself depends on the clip's frames, so compare with zero params.
    params = jax.tree.map(jnp.zeros_like, params)
    base = loss_of(params, latents, clip, config=config)
    jumping = loss_of(params, latents.at[1, 3:6].add(5.0), clip, config=config)
    steady = loss_of(params, latents.at[0, 3:6].add(5.0), clip, config=config)
    assert float(jumping) == pytest.approx(float(base), rel=1e-5)
    assert float(steady) > float(base) + 1


def test_gradient_reaches_every_parameter(batch):
    params = random_like(abstract_params(SMALL), 0)
    gradient = jax.jit(jax.grad(loss_of))(params, *batch)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        # Shifting all keys alike changes no softmax; their norm makes that only nearly true.
        if "cross_attn']['k']['bias" not in name:
            assert np.abs(leaf).max() > 0, name

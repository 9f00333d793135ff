"""Training's one pass over a clip equals the rollout's passes chunk by chunk."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.cases import QUICK, case
from vidcache_jax.cache import FullCache
from vidcache_jax.models import wan_dit
from vidcache_jax.models.teacher_forcing import teacher_forcing
from vidcache_jax.testing import assert_close, same_bits

CASE = case(batch=2, latent_size=(2, 6))
FRAMES = 6
denoise = jax.jit(wan_dit.denoise, static_argnums=(1, 2), compiler_options=QUICK)
commit = jax.jit(wan_dit.commit, static_argnums=(1, 2), compiler_options=QUICK)
forced = jax.jit(teacher_forcing, static_argnums=(1, 7), compiler_options=QUICK)


@functools.cache
def clip() -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """clean, clean_timestep, noisy, noisy_timestep; times differ from frame to frame."""
    rng = np.random.default_rng(5)
    clean, noisy = (CASE.latents(seed, CASE.batch, FRAMES) for seed in (1, 2))
    context, noise = (
        rng.uniform(0, highest, (CASE.batch, FRAMES)).astype("f4") for highest in (40, 1000)
    )
    return jnp.asarray(clean), jnp.asarray(context), jnp.asarray(noisy), jnp.asarray(noise)


def flow_of(clean, clean_timestep, noisy, noisy_timestep, frames_per_chunk):
    return forced(
        CASE.params, CASE.config, clean, clean_timestep, noisy, noisy_timestep, CASE.text_kv,
        frames_per_chunk,
    )  # fmt: skip


@pytest.mark.parametrize("frames_per_chunk", [1, 3])
def test_equals_denoise_and_commit_chunk_by_chunk(frames_per_chunk):
    clean, clean_timestep, noisy, noisy_timestep = clip()
    policy = FullCache(FRAMES)
    spec = wan_dit.cache_spec(CASE.config, CASE.batch, CASE.latent_size, frames_per_chunk, "f4")
    cache = policy.init_layers(spec, CASE.config.num_layers)
    model = (CASE.params, CASE.config, policy)
    flows = []
    for index in range(0, FRAMES, frames_per_chunk):
        own, start = slice(index, index + frames_per_chunk), jnp.int32(index)
        flow, _ = denoise(*model, noisy[:, own], noisy_timestep[:, own], CASE.text_kv, cache, start)
        flows.append(flow)
        cache, _ = commit(*model, clean[:, own], clean_timestep[:, own], CASE.text_kv, cache, start)
    flow = flow_of(*clip(), frames_per_chunk)
    assert flow.dtype == jnp.float32
    assert_close(flow, np.concatenate(flows, axis=1))


def test_equals_the_oracle():
    """Directly, so that a fault shared with the rollout would show."""
    clean, clean_timestep, noisy, noisy_timestep = map(np.asarray, clip())
    flow = flow_of(*clip(), 3)
    for b in range(CASE.batch):
        run = lambda x, t, own, past, b=b: CASE.oracle.forward(
            x[b, own], t[b, own], CASE.text[b], range(FRAMES)[own], past
        )
        first, _ = run(noisy, noisy_timestep, slice(0, 3), None)
        _, own = run(clean, clean_timestep, slice(0, 3), None)
        past = [list(zip(range(3), k, v, strict=True)) for k, v in own]
        second, _ = run(noisy, noisy_timestep, slice(3, 6), past)
        assert_close(flow[b], np.concatenate([first, second]))


def test_a_chunk_sees_its_own_noise_and_the_clean_past_only():
    clean, clean_timestep, noisy, noisy_timestep = clip()
    flow = flow_of(*clip(), 3)
    changed = lambda x, own: x.at[:, own].multiply(2.0)
    late, early = slice(3, 6), slice(0, 3)
    # Its own clean frames, and later ones, would give the answer away.
    after = flow_of(changed(clean, late), clean_timestep, noisy, noisy_timestep, 3)
    assert same_bits(after, flow)
    after = flow_of(clean, clean_timestep, changed(noisy, early), noisy_timestep, 3)
    assert same_bits(after[:, late], flow[:, late]) and not same_bits(
        after[:, early], flow[:, early]
    )
    after = flow_of(changed(clean, early), clean_timestep, noisy, noisy_timestep, 3)
    assert np.abs(after - flow)[:, late].max() > 1e-3
    assert same_bits(after[:, early], flow[:, early])


def test_gradients_are_finite_and_reach_every_parameter():
    clean, clean_timestep, noisy, noisy_timestep = clip()

    @functools.partial(jax.jit, compiler_options=QUICK)
    def gradient(params, text):
        def loss(params):
            text_kv = wan_dit.encode_text(params, CASE.config, text)
            flow = teacher_forcing(
                params, CASE.config, clean, clean_timestep, noisy, noisy_timestep, text_kv, 3
            )
            return jnp.mean(flow**2)

        return jax.value_and_grad(loss)(params)

    value, gradients = gradient(CASE.params, jnp.asarray(CASE.text))
    assert 0.1 < value < 100
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path)
        assert np.isfinite(leaf).all(), name
        if "['k']['bias']" not in name:
            assert np.abs(leaf).max() > 0, name

    # Along one direction, against a central difference of the value.
    rng = np.random.default_rng(0)
    step = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), gradients)
    moved = lambda h: jax.tree.map(lambda x, d: x + h * d, CASE.params, step)
    values = [float(gradient(moved(h), jnp.asarray(CASE.text))[0]) for h in (1e-3, -1e-3)]
    slope = sum(
        float(jnp.vdot(g, d)) for g, d in zip(*map(jax.tree.leaves, (gradients, step)), strict=True)
    )
    np.testing.assert_allclose((values[0] - values[1]) / 2e-3, slope, rtol=2e-2)


def test_several_noise_levels_share_the_clean_stream():
    clean, clean_timestep, noisy, noisy_timestep = clip()
    again, other_time = -noisy, noisy_timestep[::-1] / 2
    both = forced(
        CASE.params, CASE.config, clean, clean_timestep, jnp.concatenate([noisy, again]),
        jnp.concatenate([noisy_timestep, other_time]), CASE.text_kv, 3,
    )  # fmt: skip
    assert_close(both[: CASE.batch], flow_of(*clip(), 3))
    assert_close(both[CASE.batch :], flow_of(clean, clean_timestep, again, other_time, 3))


@pytest.mark.parametrize("num_noisy", [1, 3])
def test_noisy_clips_that_are_no_multiple_are_refused(num_noisy):
    clean, clean_timestep, noisy, noisy_timestep = clip()
    pick = jnp.arange(num_noisy) % 2
    with pytest.raises(ValueError, match=f"{num_noisy} noisy clips are no multiple of 2 clean"):
        teacher_forcing(
            CASE.params, CASE.config, clean, clean_timestep, noisy[pick], noisy_timestep[pick],
            CASE.text_kv, 3,
        )  # fmt: skip


@pytest.mark.parametrize("frames_per_chunk", [4, 5, 7])
def test_clips_that_do_not_split_are_refused(frames_per_chunk):
    with pytest.raises(
        ValueError, match=f"6 frames do not split into chunks of {frames_per_chunk}"
    ):
        teacher_forcing(
            CASE.params, CASE.config, *clip(), CASE.text_kv, frames_per_chunk
        )  # fmt: skip

"""One chunk as one compiled program, against plain loops in float64 NumPy."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from tests.models.cases import QUICK, case
from tests.sampling.rollout_oracle import rollout as oracle_rollout
from vidcache_jax.cache import FullCache, SlidingWindow
from vidcache_jax.config import RolloutConfig
from vidcache_jax.models import wan_dit
from vidcache_jax.ops.rope import axis_pairs
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.testing import cache_sized_copies, same_bits

CASE = case(batch=2, latent_size=(2, 4))
CHUNKS = 6


def rollout_of(policy, chunk=3, steps=(1000, 750, 500, 250), shift=5.0, context=0.0):
    return Rollout(
        CASE.config,
        RolloutConfig(
            frames_per_chunk=chunk, denoise_timesteps=tuple(steps), timestep_shift=shift,
            context_timestep=context,
        ),
        policy,
    )  # fmt: skip


@functools.cache
def inputs(chunk, num_steps, chunks=CHUNKS):
    """noise [chunks, B, f, Y, X, C], renoise [chunks, steps - 1, B, f, Y, X, C]."""
    return (
        CASE.latents(1, chunks, CASE.batch, chunk),
        CASE.latents(2, chunks, num_steps - 1, CASE.batch, chunk),
    )


@functools.cache
def compiled(rollout):
    """The jitted step, and a list that grows with every trace."""
    traces = []

    def step(params, state, text_kv, noise, renoise):
        traces.append(None)
        return rollout.step(params, state, text_kv, noise, renoise)

    return jax.jit(step, compiler_options=QUICK), traces


def run(rollout, noise, renoise, state=None, text_kv=None, step=None):
    """(final state, results) of all chunks, which share one trace if they are traced at all."""
    traces = compiled(rollout)[1]
    traces_before = len(traces)
    state = rollout.init(noise.shape[1], CASE.latent_size, jnp.float32) if state is None else state
    step, results = step or compiled(rollout)[0], []
    for own_noise, own_renoise in zip(noise, renoise, strict=True):
        state, result = step(
            CASE.params, state, CASE.text_kv if text_kv is None else text_kv,
            jnp.asarray(own_noise), jnp.asarray(own_renoise),
        )  # fmt: skip
        results.append(result)
    assert len(traces) - traces_before <= 1, "traced again after the first chunk"
    return state, results


SETTINGS = {
    "full-by-three": (rollout_of(FullCache(20)), {}),
    "absolute-window-by-one": (
        rollout_of(SlidingWindow(4, 1, rope="absolute"), 1, (1000, 400), shift=3.0, context=12.5),
        dict(window=4, sink=1),
    ),
    "relative-window-by-four": (
        rollout_of(SlidingWindow(9, 3), 4, (900,)), dict(window=9, sink=3, relative=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_equals_plain_loops(name):
    """Six chunks: warm-up, boundary and steady state of the windows, several chunk sizes."""
    rollout, window = SETTINGS[name]
    config = rollout.rollout
    chunk, steps = config.frames_per_chunk, config.denoise_timesteps
    noise, renoise = inputs(chunk, len(steps))
    state, results = run(rollout, noise, renoise)
    assert int(state.next_frame) == CHUNKS * chunk and len(compiled(rollout)[1]) >= 1
    for b in range(CASE.batch):
        latents, flow_first, _ = oracle_rollout(
            CASE.oracle, np.concatenate(noise[:, b]), renoise[:, :, b], CASE.text[b],
            steps=steps, shift=config.timestep_shift, context=config.context_timestep,
            chunk=chunk, **window,
        )  # fmt: skip
        actual = np.concatenate([result.latents[b] for result in results])
        # Rounding is fed back chunk after chunk; measured 2e-5 after six.
        np.testing.assert_allclose(actual, latents, rtol=0, atol=5e-5)
        actual = np.stack([result.flow_first[b] for result in results])
        np.testing.assert_allclose(actual, flow_first, rtol=0, atol=5e-5)


def test_settings_tell_layouts_apart():
    """The loops above would notice a wrong window, sink, position rule or context timestep."""
    assert axis_pairs(CASE.config.head_dim)[0] > 0
    rollout, window = SETTINGS["relative-window-by-four"]
    noise, renoise = inputs(4, 1)
    flow_of = lambda context=0.0, **window: oracle_rollout(
        CASE.oracle, np.concatenate(noise[:, 0]), renoise[:, :, 0], CASE.text[0],
        steps=(900,), shift=5.0, context=context, chunk=4, **window,
    )[1]  # fmt: skip
    right = flow_of(**window)
    for wrong in (
        flow_of(), flow_of(**{**window, "relative": False}), flow_of(**{**window, "sink": 2}),
        flow_of(**{**window, "window": 10}), flow_of(100.0, **window),
    ):  # fmt: skip
        assert np.abs(wrong - right)[-1].max() > 1e-2


def test_a_resumed_rollout_continues_bit_for_bit():
    rollout, _ = SETTINGS["full-by-three"]
    noise, renoise = inputs(3, 4)
    whole, results = run(rollout, noise, renoise)
    half, _ = run(rollout, noise[:2], renoise[:2])
    stored = [np.asarray(leaf) for leaf in jax.tree.leaves(half)]
    restored = jax.tree.unflatten(jax.tree.structure(half), map(jnp.asarray, stored))
    resumed, rest = run(rollout, noise[2:], renoise[2:], restored)
    assert all(map(same_bits, jax.tree.leaves(resumed), jax.tree.leaves(whole)))
    assert all(map(same_bits, jax.tree.leaves(rest), jax.tree.leaves(results[2:])))


def test_videos_of_a_batch_are_independent():
    """Whatever becomes of the other video, NaN included, changes no bit of this one."""
    rollout, _ = SETTINGS["relative-window-by-four"]
    noise, renoise = inputs(4, 1)
    spoilt = noise.copy()
    spoilt[:, 1] = np.nan
    _, clean = run(rollout, noise, renoise)
    _, other = run(rollout, spoilt, renoise)
    for one, two in zip(clean, other, strict=True):
        assert same_bits(one.latents[0], two.latents[0])
        assert np.isnan(two.latents[1]).any()


def test_a_video_alone_is_the_video_of_the_batch():
    rollout, _ = SETTINGS["relative-window-by-four"]
    noise, renoise = inputs(4, 1)
    _, both = run(rollout, noise, renoise)
    own_text = jax.tree.map(lambda x: x[:, 1:], CASE.text_kv)
    _, alone = run(rollout, noise[:, 1:], renoise[:, :, 1:], text_kv=own_text)
    for one, two in zip(both, alone, strict=True):
        np.testing.assert_allclose(one.latents[1], two.latents[0], rtol=0, atol=5e-5)


def test_donated_state_is_updated_in_place(monkeypatch):
    """Compiled as users run it: same bits, the old buffers gone, no copy of the cache made."""
    rollout, _ = SETTINGS["relative-window-by-four"]
    noise, renoise = inputs(4, 1)
    expected, results = run(rollout, noise, renoise)
    step = jax.jit(rollout.step, donate_argnums=1, compiler_options=QUICK)
    first = rollout.init(CASE.batch, CASE.latent_size, jnp.float32)
    arguments = (CASE.params, first, CASE.text_kv, jnp.asarray(noise[0]), jnp.asarray(renoise[0]))
    with monkeypatch.context() as patch:
        # What `lower` puts into the cache's fields are no arrays.
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        program = step.lower(*arguments).compile()
    assert cache_sized_copies(program, first.cache) == []
    state, donated = run(rollout, noise, renoise, first, step=program)
    assert first.cache.k.is_deleted() and first.cache.v.is_deleted()
    assert all(map(same_bits, jax.tree.leaves(state), jax.tree.leaves(expected)))
    assert all(map(same_bits, jax.tree.leaves(donated), jax.tree.leaves(results)))


def executed(jaxpr, primitive, times=1):
    """Output shapes of a primitive, each as often as a run of the program executes it."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == primitive:
            yield from [eqn.outvars[0].aval.shape] * times
        for inner in jaxprs_in_params(eqn.params):
            yield from executed(inner, primitive, times * eqn.params.get("length", 1))


def test_cached_keys_are_rotated_once_for_all_denoise_passes():
    """And once more in the commit pass; the chunk's own in every pass."""
    rollout, _ = SETTINGS["absolute-window-by-one"]
    noise, renoise = (jnp.asarray(x[0]) for x in inputs(1, 2))
    empty = rollout.empty(CASE.batch, CASE.latent_size, jnp.float32)
    text_kv = CASE.text_kv
    step = jax.make_jaxpr(lambda *x: rollout.step(CASE.params, empty, text_kv, *x)[1].latents)
    cosines = collections.Counter(shape[2:] for shape in executed(step(noise, renoise), "cos"))
    layers, tokens, pairs = CASE.config.num_layers, 2, CASE.config.head_dim // 2
    assert cosines[4 * tokens, pairs] == 2 * layers
    assert cosines[tokens, pairs] >= 3 * layers


def test_bfloat16_params_keep_float32_latents():
    """Types only; that the numbers stay close is tested on the model."""
    rollout, _ = SETTINGS["full-by-three"]
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), CASE.params)
    text_kv = wan_dit.encode_text(params, CASE.config, jnp.asarray(CASE.text))
    state = rollout.init(CASE.batch, CASE.latent_size, jnp.bfloat16)

    def step(noise, renoise):
        after, result = rollout.step(params, state, text_kv, noise, renoise)
        return after.cache.k, after.cache.v, after.next_frame, result.latents, result.flow_first

    k, v, frame, *latents = jax.eval_shape(step, *(jnp.asarray(x[0]) for x in inputs(3, 4)))
    assert k.dtype == v.dtype == jnp.bfloat16 and frame.dtype == jnp.int32
    assert all(x.dtype == jnp.float32 for x in latents)


def test_init_is_empty_and_refuses_what_cannot_work():
    state = rollout_of(FullCache(5)).init(2, (2, 4), jnp.bfloat16)
    assert (np.asarray(state.cache.frame_index) == -1).all() and int(state.next_frame) == 0
    assert state.cache.k.dtype == jnp.bfloat16 and state.next_frame.dtype == jnp.int32
    with pytest.raises(ValueError, match="do not split into patches"):
        rollout_of(FullCache(5)).init(1, (3, 4), jnp.float32)
    with pytest.raises(ValueError, match="capacity=2 does not hold one chunk of 3"):
        rollout_of(FullCache(2)).init(1, (2, 4), jnp.float32)


def test_check_length():
    rollout = rollout_of(FullCache(21))
    rollout.check_length(21)
    with pytest.raises(ValueError, match="capacity=21.* holds 21 latent frames.*needs 24: raise"):
        rollout.check_length(24)
    rollout_of(SlidingWindow(6)).check_length(10**9)


def test_rollouts_are_values():
    """Equal ones share one compilation."""
    one, two = rollout_of(FullCache(5)), rollout_of(FullCache(5))
    assert one == two and hash(one) == hash(two)
    traces = []
    program = jax.jit(lambda rollout, x: traces.append(rollout) or x, static_argnums=0)
    for rollout in (one, two, rollout_of(FullCache(6)), rollout_of(FullCache(5), shift=4.0)):
        program(rollout, 0.0)
    assert len(traces) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.policy = FullCache(6)  # type: ignore[misc]

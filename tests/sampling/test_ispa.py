"""ISPA's whole life: warm-up, transition, afterwards."""

import dataclasses
import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vidcache_jax as vj
from tests.cache.against_oracle import tiny_spec
from tests.models.cases import QUICK, case
from tests.sampling.ispa_oracle import IspaOracle
from tests.sampling.rollout_oracle import rollout as oracle_rollout
from tests.toy import toy_model
from vidcache_jax.cache import absorption
from vidcache_jax.cache.absorbed import AbsorbedCache, AbsorbedISPA, split_layers
from vidcache_jax.config import RolloutConfig
from vidcache_jax.models import wan_dit
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sampling.session import make_chunk
from vidcache_jax.testing import (
    assert_close,
    cache_sized_copies,
    compile_commit,
    random_chunk,
    same_bits,
)

CASE = case(batch=2, latent_size=(2, 4), num_layers=5)
CHUNK, STEPS, WARM, CHUNKS = 3, (1000, 500), 2, 5
WINDOW = vj.SlidingWindow(8, 2)
POLICY = vj.ISPA(WINDOW, warmup_frames=WARM * CHUNK, ratio=0.6)


@functools.cache
def inputs():
    """noise [chunks, B, f, Y, X, C], renoise [chunks, 1, B, f, Y, X, C]."""
    return CASE.latents(1, CHUNKS, CASE.batch, CHUNK), CASE.latents(2, CHUNKS, 1, CASE.batch, CHUNK)


def chunks(which: slice):
    """The inputs of some chunks."""
    noise, renoise = inputs()
    return noise[which], renoise[which]


@functools.cache
def program():
    """The jitted step, and a list that grows with every trace."""
    traces = []

    def step(rollout, *args):
        traces.append(rollout.policy)
        return rollout.step(*args)

    return jax.jit(step, static_argnums=0, compiler_options=QUICK), traces


def run(policy=POLICY, given=None, videos=(0, 1), state=None, first=0):
    """(state, policy, latents [B, F, Y, X, C]) after all chunks, ``first`` having been made."""
    noise, renoise = given or inputs()
    config = RolloutConfig(frames_per_chunk=CHUNK, denoise_timesteps=STEPS)
    rollout = Rollout(CASE.config, config, policy)
    text_kv = jax.tree.map(lambda x: x[:, list(videos)], CASE.text_kv)
    state = state or rollout.init(len(videos), CASE.latent_size, jnp.float32)
    latents = []
    for index in range(len(noise)):
        rollout, state = rollout.advance(CASE.params, state, (first + index) * CHUNK)
        chunk = (jnp.asarray(x[index][..., list(videos), :, :, :, :]) for x in (noise, renoise))
        state, result = program()[0](rollout, CASE.params, state, text_kv, *chunk)
        latents.append(np.asarray(result.latents))
    return state, rollout.policy, np.concatenate(latents, axis=1)


@functools.cache
def made():
    return run()


def oracle_of(video, **options):
    passes = len(STEPS) + 1
    oracle = IspaOracle(
        CASE.state, CASE.config, warm_passes=WARM * passes, passes_per_chunk=passes, mu0=1e-3,
        count=3, **options,
    )  # fmt: skip
    noise, renoise = inputs()
    latents, _, _ = oracle_rollout(
        oracle, np.concatenate(noise[:, video]), renoise[:, :, video], CASE.text[video],
        steps=STEPS, shift=5.0, context=0.0, chunk=CHUNK, window=WINDOW.window_size,
        sink=WINDOW.sink_size, relative=True,
    )  # fmt: skip
    return oracle, latents


def chosen_by(oracle):
    return [f"blocks.{i}.self_attn.o" in oracle.absorbed for i in range(CASE.config.num_layers)]


def test_equals_plain_loops_over_the_rows_themselves():
    state, policy, latents = made()
    assert isinstance(policy, AbsorbedISPA) and state.statistics is None
    chosen = []
    for video in range(CASE.batch):
        oracle, expected = oracle_of(video)
        chosen.append(chosen_by(oracle))
        assert np.asarray(state.cache.is_local)[:, video].tolist() == chosen[-1]
        before, absorbed = zip(*oracle.residuals.values(), strict=True)
        # Differences of float32 sums that are of order one.
        np.testing.assert_allclose(state.cache.residual_before[:, video], before, atol=1e-5)
        np.testing.assert_allclose(state.cache.residual_after[:, video], absorbed, atol=1e-5)
        # Rounding is fed back chunk after chunk, and dW is solved for in float32.
        np.testing.assert_allclose(latents[video], expected, rtol=0, atol=1e-3)
    # Each video decides for itself, or this test could not tell.
    assert chosen[0] != chosen[1]


@pytest.mark.parametrize(
    "passes, first, observed",
    [
        ("denoise", True, lambda i: i % 3 < 2),
        ("context", True, lambda i: i % 3 == 2),
        ("all", False, lambda i: i >= 3),
    ],
)
def test_what_is_gathered_can_be_told(passes, first, observed):
    policy = dataclasses.replace(POLICY, passes=passes, include_first_chunk=first)
    state, _, _ = run(policy, chunks(slice(WARM + 1)))
    oracle, _ = oracle_of(0, observed=observed)
    expected = [absorbed for _, absorbed in oracle.residuals.values()]
    np.testing.assert_allclose(state.cache.residual_after[:, 0], expected, atol=1e-5)


def test_each_phase_is_one_program_of_fixed_shapes():
    state, policy, _ = made()
    traces = program()[1]
    assert traces.count(POLICY) == traces.count(policy) == 1
    first, _, _ = run(given=chunks(slice(WARM + 1)))
    shapes = lambda state: [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)]
    assert shapes(first) == shapes(state)
    assert traces.count(policy) == 1


@functools.cache
def warm():
    """Leaves and structure of the state at the transition."""
    state = run(given=chunks(slice(WARM)))[0]
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)], jax.tree.structure(state)


def after(policy):
    """(cache, latents) of the chunks after a transition that another policy decides."""
    leaves, treedef = warm()
    state = jax.tree.unflatten(treedef, map(jnp.array, leaves))
    state, _, latents = run(policy, chunks(slice(WARM, None)), state=state, first=WARM)
    return state.cache, latents


def test_no_absorption_is_the_limit_of_a_large_ridge():
    """The layers are given, for a large ridge would choose others."""
    given = dataclasses.replace(POLICY, layers=(1, 3))
    _, limit = after(dataclasses.replace(given, mu0=1e9))
    cache, none = after(dataclasses.replace(given, absorb=False))
    assert cache.output_delta is None
    np.testing.assert_allclose(limit, none, rtol=0, atol=5e-5)
    cache, absorbed = after(given)
    assert np.flatnonzero(cache.is_local[:, 1]).tolist() == [1, 3]
    assert np.abs(absorbed - none).max() > 1e-2


@pytest.mark.parametrize("select, score", [("post", "residual_after"), ("pre", "residual_before")])
def test_the_best_layers_by_either_score_are_chosen(select, score):
    cache, _ = after(dataclasses.replace(POLICY, select=select))
    expected = absorption.smallest(np.asarray(getattr(cache, score)), 3)
    np.testing.assert_array_equal(cache.is_local, expected)


def test_no_sink_equals_plain_loops():
    _, _, latents = run(dataclasses.replace(POLICY, sink_frames=0))
    _, expected = oracle_of(0, sink_frames=0)
    np.testing.assert_allclose(latents[0], expected, rtol=0, atol=1e-3)


def test_videos_of_a_batch_are_independent():
    """Whatever becomes of the other video, NaN included, changes no bit of this one."""
    noise, renoise = inputs()
    spoilt = noise.copy()
    spoilt[:, 1] = np.nan
    state, _, latents = run(given=(spoilt, renoise))
    assert same_bits(latents[0], made()[2][0]) and np.isnan(latents[1]).any()
    assert same_bits(state.cache.is_local[:, 0], made()[0].cache.is_local[:, 0])


def test_a_video_alone_is_the_video_of_the_batch_and_the_next_begins_anew():
    for video in (1, 0):
        _, _, latents = run(videos=(video,))
        np.testing.assert_allclose(latents[0], made()[2][video], rtol=0, atol=1e-3)


def test_frames_lie_where_the_table_says_and_old_buffers_are_gone():
    """The transition by itself, from a cache whose keys tell layer, video and frame."""
    layers, batch, spec = 4, 2, tiny_spec(3, batch=2)
    policy = vj.ISPA(WINDOW, warmup_frames=9, ratio=0.5, sink_frames=2)
    cache = policy.init_layers(spec, layers)
    frame = jnp.asarray([0, 1, 8, 3, 4, 5, 6, 7], jnp.int32)  # the window's ring after 9 frames
    name = 1000 * jnp.arange(layers)[:, None, None] + 100 * jnp.arange(batch)[None, :, None]
    name = jnp.repeat(name + frame[None, None], spec.tokens_per_frame, axis=-1)
    k = jnp.broadcast_to(name[:, :, None, :, None].astype(jnp.float32), cache.k.shape)
    index = jnp.broadcast_to(frame, cache.frame_index.shape)
    cache = dataclasses.replace(cache, k=k, v=-k, frame_index=index)
    is_local = np.array([[True, False], [False, False], [True, True], [False, True]])
    residuals = jnp.zeros((layers, batch)), jnp.ones((layers, batch))
    split = split_layers(cache, is_local, sink_frames=2, deltas=None, residuals=residuals)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(cache))
    for layer, video in np.ndindex(layers, batch):
        slab = split.sinks if is_local[layer, video] else split.windows
        row = int(split.row[layer, video])
        held = [0, 1] if is_local[layer, video] else frame.tolist()
        expected = np.repeat(1000 * layer + 100 * video + np.array(held), spec.tokens_per_frame)
        assert slab.frame_index[row, video].tolist() == held
        assert (np.asarray(slab.k[row, video, :, :, 0]) == expected).all()
        assert (np.asarray(slab.v[row, video, :, :, 0]) == -expected).all()


@pytest.mark.parametrize("ratio, share", [(0.3, 72.5), (0.4, 63.3), (0.5, 54.2)])
def test_cache_shrinks_by_the_formula(ratio, share):
    """Bytes of the buffers on the device, thirty layers, against the paper's percentages."""
    spec, layers = tiny_spec(3, grid=(4, 4)), 30
    policy = vj.ISPA(vj.SlidingWindow(12, 3), ratio=ratio)
    cache = policy.init_layers(spec, layers)
    full = on_device(cache)
    statistics, kernels = random_statistics(spec, layers)
    _, cache, statistics = policy.advance(12, cache, statistics, kernels)
    assert isinstance(cache, AbsorbedCache) and statistics is None
    now = on_device((cache.windows, cache.sinks))
    assert now / full == pytest.approx(1 - ratio * (1 - 1 / 12), rel=0.01)
    assert 100 * now / full == pytest.approx(share, abs=0.1)
    # dW is beside the formula, and counted.
    assert wan_dit.cache_nbytes(cache) == on_device(cache) > now


def on_device(tree) -> int:
    shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
    return sum(shard.data.nbytes for shard in shards)


def random_statistics(spec, layers):
    """Of random streams of 200 rows, and random kernels."""
    width, rng = spec.num_heads * spec.head_dim, np.random.default_rng(0)
    local = rng.normal(size=(layers, spec.batch, 1, 200, width)).astype(np.float32)
    full = local + 0.1 * rng.normal(size=local.shape).astype(np.float32)
    statistics = jax.vmap(absorption.stream_statistics)(jnp.asarray(local), jnp.asarray(full))
    return statistics, jnp.asarray(rng.normal(size=(layers, width, width)), jnp.float32)


def test_commits_after_the_transition_are_in_place():
    config = dataclasses.replace(CASE.config, num_layers=5, patch_size=(1, 1, 1))
    spec = wan_dit.cache_spec(config, 2, (1, 5), CHUNK, jnp.float32)
    cache = POLICY.init_layers(spec, config.num_layers)
    policy, cache, _ = POLICY.advance(
        POLICY.warmup_frames, cache, *random_statistics(spec, config.num_layers)
    )
    assert isinstance(cache, AbsorbedCache)
    compiled, leaves = compile_commit(policy, config, spec, cache)
    assert cache_sized_copies(compiled, [cache.windows.k]) == []
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes >= sum(leaf.nbytes for leaf in leaves)


def test_garbage_in_empty_slots_changes_no_bit():
    """C3 in both phases; most of a window of twelve is empty after three frames."""
    spec, layers, rng = tiny_spec(3), 2, np.random.default_rng(0)
    policy = vj.ISPA(vj.SlidingWindow(12, 2), warmup_frames=3, ratio=0.5)
    cache = policy.init_layers(spec, layers)
    update = jax.jit(policy.update, static_argnums=3, compiler_options=QUICK)
    for layer in range(layers):
        _, cache = update(cache, jnp.int32(layer), random_chunk(rng, spec, 0), 3)
    chunk = random_chunk(rng, spec, 3)

    def spoilt(slots):
        hidden = jnp.repeat(slots.frame_index < 0, spec.tokens_per_frame, axis=-1)
        fill = lambda x: jnp.where(hidden[:, :, None, :, None], jnp.nan, x)
        return dataclasses.replace(slots, k=fill(slots.k), v=fill(slots.v))

    def same(policy, clean, other):
        for layer in map(jnp.int32, range(layers)):
            attend = jax.jit(policy.attend, static_argnums=3, compiler_options=QUICK)
            out, expected = (attend(c, layer, chunk, 3).out for c in (other, clean))
            assert same_bits(out, expected) and np.isfinite(out).all()

    same(policy, cache, spoilt(cache))
    absorbed, cache, _ = policy.advance(3, cache, *random_statistics(spec, layers))
    assert isinstance(cache, AbsorbedCache)
    same(absorbed, cache, dataclasses.replace(cache, windows=spoilt(cache.windows)))


def test_parts_make_the_whole():
    """What goes on to the projection is the base window's attention, to rounding."""
    spec = tiny_spec(3, batch=2, grid=(2, 2))
    policy = vj.ISPA(vj.SlidingWindow(8, 2), warmup_frames=6, ratio=0.5)
    rng, caches = np.random.default_rng(0), [policy.init_layers(spec, 2)] * 2
    layer = jnp.int32(1)
    attend, update = (
        [jax.jit(method, static_argnums=3, compiler_options=QUICK) for method in methods]
        for methods in ((policy.attend, policy.base.attend), (policy.update, policy.base.update))
    )
    for start in range(0, 15, 3):
        chunk = random_chunk(rng, spec, start)
        parts, whole = (
            each(cache, layer, chunk, 3) for each, cache in zip(attend, caches, strict=True)
        )
        assert whole.local is None
        assert_close(parts.out, whole.out)
        differs = np.abs(parts.local - whole.out).max()
        assert differs < 1e-5 if start == 0 else differs > 1e-2
        (one, caches[0]), (two, caches[1]) = (
            each(cache, layer, chunk, 3) for each, cache in zip(update, caches, strict=True)
        )
        assert_close(one.out, two.out)
        assert all(map(same_bits, *map(jax.tree.leaves, caches)))


def num_programs() -> int:
    """Chunk programs that sessions have compiled."""
    return cast(Any, make_chunk)._cache_size()


@pytest.fixture(scope="module")
def model() -> vj.VideoModel:
    return toy_model()


def test_sessions_compile_once_more_and_do_not_influence_each_other(model):
    policy = vj.ISPA(vj.SlidingWindow(9, 2), warmup_frames=6, ratio=0.5)
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(model.params)]

    def video(seed: int) -> np.ndarray:
        session = vj.Session(model, policy, prompt="a red circle bounces", seed=seed)
        full = session.cache_nbytes
        frames = list(session.generate(15 / 8))
        assert session.cache_nbytes < full and 0 < session.cache_fill <= 1
        return np.concatenate(frames)

    programs = num_programs()
    first = video(1)
    assert num_programs() == programs + 2
    other = video(2)
    np.testing.assert_array_equal(video(1), first)
    assert (other != first).any()
    assert num_programs() == programs + 2
    assert all(map(same_bits, jax.tree.leaves(model.params), before))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"warmup_frames": 0}, "warmup_frames=0 must be at least 1"),
        ({"ratio": 0.0}, "ratio=0.0 must lie between 0 and 1"),
        ({"ratio": 1.0}, "ratio=1.0 must lie between 0 and 1"),
        ({"sink_frames": -1}, "sink_frames=-1 must be at least 0"),
        ({"warmup_frames": 15, "sink_frames": 4}, "sink_frames=4.*still holds 3 after.*raise"),
        ({"warmup_frames": 3, "sink_frames": 4}, "sink_frames=4.*still holds 3 after"),
        ({"mu0": 0.0}, "mu0=0.0 must be positive"),
        ({"rank": 0}, "rank=0 must be at least 1"),
        ({"layers": ()}, r"layers=\(\) must be different"),
        ({"layers": (1, 1)}, "must be different layers"),
        ({"layers": (-1,)}, "counted from 0"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        vj.ISPA(**fields)


@pytest.mark.parametrize("field", ["select", "ridge", "passes"])
def test_other_words_are_refused(field):
    # Past `__init__`, whose annotations already refuse the word while tests check types.
    policy = object.__new__(vj.ISPA)
    vars(policy).update({**dataclasses.asdict(vj.ISPA()), "base": WINDOW, field: "some"})
    with pytest.raises(ValueError, match=f"{field}='some' must be one of"):
        policy.__post_init__()


@pytest.mark.parametrize(
    "policy, layers, message",
    [
        (vj.ISPA(ratio=0.1), 2, "ratio=0.1 makes 0 of 2 layers local"),
        (vj.ISPA(ratio=0.9), 2, "ratio=0.9 makes 2 of 2 layers local"),
        (vj.ISPA(layers=(0, 2)), 2, r"layers=\(0, 2\): the model has 2 layers"),
        (vj.ISPA(warmup_frames=10), 4, "warmup_frames=10 must be a multiple of the chunk of 3"),
        (vj.ISPA(vj.SlidingWindow(4, 2)), 4, "too few for a chunk of 3"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_any_work(policy, layers, message):
    with pytest.raises(ValueError, match=message):
        policy.init_layers(tiny_spec(3), layers)


def test_a_ridge_too_small_for_float32_is_refused():
    spec = tiny_spec(3)
    statistics, kernels = random_statistics(spec, 2)
    # Two tokens say nothing of most of the width.
    two = jnp.ones((1, 1, 2, spec.num_heads * spec.head_dim))
    few = absorption.stream_statistics(two, -two)
    statistics = jax.tree.map(lambda x: jnp.repeat(x[None], 2, axis=0), few)
    policy = vj.ISPA(mu0=1e-30)
    with pytest.raises(ValueError, match="mu0=1e-30 is too small to solve"):
        policy.advance(12, policy.init_layers(spec, 2), statistics, kernels)


def test_a_video_does_not_begin_with_the_second_phase():
    config = RolloutConfig(frames_per_chunk=CHUNK)
    rollout = Rollout(CASE.config, config, POLICY.absorbed)
    with pytest.raises(TypeError, match="has no empty cache"):
        rollout.init(1, CASE.latent_size, jnp.float32)

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
from tests.cache.oracle import Oracle
from tests.models.cases import QUICK, case
from tests.sampling.ispa_oracle import IspaOracle
from tests.sampling.rollout_oracle import rollout as oracle_rollout
from tests.toy import toy_model
from vidcache_jax.cache import absorption
from vidcache_jax.cache.absorbed import AbsorbedCache, AbsorbedISPA, split_layers
from vidcache_jax.cache.policy import take_layer
from vidcache_jax.config import RolloutConfig
from vidcache_jax.models import wan_dit
from vidcache_jax.sampling.rollout import Rollout
from vidcache_jax.sampling.session import make_chunk
from vidcache_jax.testing import (
    Trial,
    assert_close,
    cache_sized_copies,
    chunk_of,
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


def run(policy=POLICY, given=None, state=None, first=0):
    """(state, policy, latents [B, F, Y, X, C]) after all chunks, ``first`` having been made."""
    noise, renoise = given or inputs()
    config = RolloutConfig(frames_per_chunk=CHUNK, denoise_timesteps=STEPS)
    rollout = Rollout(CASE.config, config, policy)
    state = state or rollout.init(CASE.batch, CASE.latent_size, jnp.float32)
    latents = []
    for index in range(len(noise)):
        rollout, state = rollout.advance(CASE.params, state, (first + index) * CHUNK)
        chunk = (jnp.asarray(x[index]) for x in (noise, renoise))
        state, result = program()[0](rollout, CASE.params, state, CASE.text_kv, *chunk)
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
    state, _, _ = run(policy, chunks(slice(WARM)))
    kernels = wan_dit.output_kernels(CASE.params)
    _, cache, _ = policy.advance(WARM * CHUNK, state.cache, state.statistics, kernels)
    oracle, _ = oracle_of(0, observed=observed)
    expected = [absorbed for _, absorbed in oracle.residuals.values()]
    np.testing.assert_allclose(cache.residual_after[:, 0], expected, atol=1e-5)


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


def chosen(**options):
    """The cache at a transition of random statistics, and which layers are local in it."""
    policy, spec = dataclasses.replace(POLICY, **options), tiny_spec(CHUNK, batch=2)
    cache, given = policy.init_layers(spec, 5), random_statistics(spec, 5)
    _, cache, _ = policy.advance(policy.warmup_frames, cache, *given)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given[0]))
    return cache, np.asarray(cache.is_local)


def test_layers_are_chosen_by_either_score_or_by_place():
    cache, is_local = chosen()
    reference, solutions = np.asarray(cache.residual_after), cache.output_delta.kernel
    np.testing.assert_array_equal(is_local, absorption.smallest(reference, 3))
    cache, by_loss = chosen(select="pre")
    losses = np.asarray(cache.residual_before)
    np.testing.assert_array_equal(by_loss, absorption.smallest(losses, 3))
    # Solved for in the chosen layers alone, to the same end.
    expected = np.where(by_loss, reference, np.nan)
    np.testing.assert_allclose(cache.residual_after, expected, rtol=1e-6)
    for layer in np.flatnonzero((is_local & by_loss)[:, 0]):
        one, two = (int(each[:layer, 0].sum()) for each in (is_local, by_loss))
        assert_close(cache.output_delta.kernel[two, 0], solutions[one, 0])
    first, last = chosen(select="first")[1], chosen(select="last", absorb=False)[1]
    assert first.tolist() == [[layer < 3] * 2 for layer in range(5)]
    assert last.tolist() == [[layer >= 2] * 2 for layer in range(5)]
    draws = {tuple(chosen(select="random", select_seed=seed)[1][:, 0]) for seed in range(8)}
    assert len(draws) > 3 and all(sum(draw) == 3 for draw in draws)
    cache, again = chosen(select="random", select_seed=1, absorb=False)
    np.testing.assert_array_equal(again, chosen(select="random", select_seed=1)[1])
    assert cache.output_delta is None and np.isnan(cache.residual_after).all()


def test_a_warm_up_of_which_nothing_is_gathered_is_refused():
    spec = tiny_spec(CHUNK)
    given = POLICY.init_statistics(spec, 5), random_statistics(spec, 5)[1]
    with pytest.raises(ValueError, match="no chunk of which attention is gathered .*'all'"):
        POLICY.advance(POLICY.warmup_frames, POLICY.init_layers(spec, 5), *given)


def test_no_sink_and_a_bias_that_changes_equal_plain_loops():
    state, _, latents = run(dataclasses.replace(POLICY, sink_frames=0, affine=True))
    oracle, expected = oracle_of(0, sink_frames=0, affine=True)
    np.testing.assert_allclose(latents[0], expected, rtol=0, atol=1e-3)
    assert np.abs(state.cache.output_delta.bias).max() > 1e-2


def test_videos_of_a_batch_are_independent():
    """Whatever becomes of the other video, NaN included, changes no bit of this one."""
    noise, renoise = inputs()
    spoilt = noise.copy()
    spoilt[:, 1] = np.nan
    state, _, latents = run(given=(spoilt, renoise))
    assert same_bits(latents[0], made()[2][0]) and np.isnan(latents[1]).any()
    assert same_bits(state.cache.is_local[:, 0], made()[0].cache.is_local[:, 0])


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
    residuals = np.zeros((layers, batch), np.float32), np.ones((layers, batch), np.float32)
    split = split_layers(cache, is_local, sink_frames=2, output_delta=None, residuals=residuals)
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
    assert cache.share_kept == pytest.approx(1 - ratio * (1 - 1 / 12))
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


def attend_alone(policy, cache, layer, chunk, num_frames):
    """A pass that shares nothing with others."""
    prepared = policy.prepare(cache, chunk.start_frame, num_frames)
    return policy.attend(prepared, layer, chunk, num_frames)


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
        attend = jax.jit(attend_alone, static_argnums=(0, 4), compiler_options=QUICK)
        for layer in map(jnp.int32, range(layers)):
            out, expected = (attend(policy, c, layer, chunk, 3).out for c in (other, clean))
            assert same_bits(out, expected) and np.isfinite(out).all()

    same(policy, cache, spoilt(cache))
    absorbed, cache, _ = policy.advance(3, cache, *random_statistics(spec, layers))
    assert isinstance(cache, AbsorbedCache)
    other = dataclasses.replace(cache, windows=spoilt(cache.windows))
    same(absorbed, cache, other)
    # Mapped over caches, a branch is a choice between two results.
    attend = lambda cache, layer: attend_alone(absorbed, cache, layer, chunk, 3).out
    both = jax.tree.map(lambda *leaves: jnp.stack(leaves), cache, other)
    mapped = jax.jit(jax.vmap(attend, in_axes=(0, None)), compiler_options=QUICK)
    for layer in map(jnp.int32, range(layers)):
        assert_close(mapped(both, layer), [attend(cache, layer)] * 2)


class LocalOracle(Oracle):
    """Sees the first frames, at their numbers, and its own chunk, as the last of ``seen``."""

    seen = 0

    def positions(self):
        sink = self.buffer[: self.sink_size]
        return [*(f.number for f in sink), *range(self.seen - CHUNK, self.seen)][
            -len(self.buffer) :
        ]

    def attended(self, heads, seen):
        self.seen = seen
        q, k, v = heads
        out, _ = self.chunk(q, k, v, CHUNK)
        # Of the chunk itself nothing is kept but the sink.
        self.buffer = self.buffer[: self.sink_size]
        return out


@pytest.mark.parametrize(
    "base, is_absolute",
    [
        (vj.FullCache(15), True),
        (vj.TetherCache(2, 4, 3), False),
    ],
)
def test_layers_attend_as_under_the_base_or_to_sink_and_chunk(base, is_absolute):
    """Layer 0 keeps its history, layer 1 loses it after two chunks of five."""
    spec = tiny_spec(CHUNK, batch=2, grid=(2, 1))
    policy = vj.ISPA(base, warmup_frames=6, layers=(1,))
    assert policy.max_frames == AbsorbedISPA(base).max_frames == base.max_frames
    cache, base_cache = policy.init_layers(spec, 2), base.init_layers(spec, 2)
    history = Trial(base, spec, 2).random_history(0, 5)
    oracles = [LocalOracle(spec.grid, sink_size=1) for _ in range(spec.batch)]
    for index, heads in enumerate(history):
        start = CHUNK * index
        if index == 2:
            policy, cache, _ = policy.advance(start, cache, *random_statistics(spec, 2))
        visible = base.read(take_layer(base_cache, jnp.int32(1)), jnp.int32(start), CHUNK).visible
        seen = start if is_absolute else int(visible[0].sum())
        theirs, base_cache = both_passes(base, spec, base_cache, heads, start)
        mine, cache = both_passes(policy, spec, cache, heads, start)
        is_warm = isinstance(policy, vj.ISPA)
        local = [
            oracle.attended(heads[:, 1, video], seen + CHUNK)
            for video, oracle in enumerate(oracles)
        ]
        for own, full in zip(mine, theirs, strict=True):
            assert_close(own.out[0], full.out[0])
            assert_close(own.out[1], full.out[1] if is_warm else local)
            if is_warm:
                assert_close(own.local[1], local)
    assert isinstance(cache, AbsorbedCache)
    kept = jax.tree.map(lambda leaf: leaf[:1], base_cache)
    assert all(map(same_bits, jax.tree.leaves(cache.windows), jax.tree.leaves(kept)))


@functools.partial(jax.jit, static_argnums=(0, 1), compiler_options=QUICK)
def both_passes(policy, spec, cache, heads, start):
    """What each layer attends to when it denoises and when it commits; the cache after that."""
    attended = []
    for layer in range(heads.shape[1]):
        q, k, v = heads[:, layer]
        chunk = chunk_of(spec, q, k, v, start)
        denoised = attend_alone(policy, cache, jnp.int32(layer), chunk, CHUNK)
        committed, cache = policy.update(cache, jnp.int32(layer), chunk, CHUNK)
        attended.append((denoised, committed))
    return [
        jax.tree.map(lambda *x: jnp.stack(x), *each) for each in zip(*attended, strict=True)
    ], cache


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
        assert int(session.cache.is_local.sum()) == policy.count(model.config.num_layers)
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
        ({"base": vj.TetherCache(1, 4, 4), "sink_frames": 2}, "sink_frames=2.*still holds 1"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        vj.ISPA(**fields)


@pytest.mark.parametrize(
    "field, value, message",
    [
        *((field, "some", "'some' must be one of") for field in ("select", "ridge", "passes")),
        ("base", vj.FutureForcing(7), "ISPA wraps SlidingWindow, FullCache, TetherCache"),
    ],
)
def test_what_annotations_refuse_is_refused_without_them(field, value, message):
    # Past `__init__`, which checks types in tests.
    policy = object.__new__(vj.ISPA)
    vars(policy).update({**dataclasses.asdict(vj.ISPA()), "base": WINDOW, field: value})
    with pytest.raises(ValueError, match=f"{field}=.*{message}"):
        policy.__post_init__()


@pytest.mark.parametrize(
    "policy, layers, message",
    [
        (vj.ISPA(ratio=0.1), 2, "ratio=0.1 makes 0 of 2 layers local"),
        (vj.ISPA(ratio=0.9), 2, "ratio=0.9 makes 2 of 2 layers local"),
        (vj.ISPA(layers=(0, 2)), 2, r"layers=\(0, 2\): the model has 2 layers"),
        (vj.ISPA(warmup_frames=10), 4, "warmup_frames=10 must be a multiple of the chunk of 3"),
        (vj.ISPA(vj.SlidingWindow(4, 2)), 4, "too few for a chunk of 3"),
        (vj.ISPA(vj.TetherCache(2, 3, 3)), 4, "budget of 8 frames must be a multiple of the chunk"),
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
    rollout = Rollout(CASE.config, config, AbsorbedISPA(POLICY.base))
    with pytest.raises(TypeError, match="has no empty cache"):
        rollout.init(1, CASE.latent_size, jnp.float32)

import chex
import jax
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.cache.against_oracle import assert_agrees, tiny_spec
from tests.cache.commit_program import compile_donated_commit
from tests.cache.tether_oracle import TetherOracle
from vidcache_jax.cache import FullCache, SlidingWindow, TetherCache
from vidcache_jax.ops.recall.moments import frame_moments
from vidcache_jax.testing import (
    Trial,
    assert_close,
    cache_sized_copies,
    random_chunk,
    same_bits,
)


def assert_agrees_with_the_paper(policy, spec, num_chunks, seed):
    assert_agrees(
        policy, spec, num_chunks, seed, TetherOracle, sink=policy.sink_size,
        memory=policy.memory_size, recent=policy.recent_size, alpha=policy.alpha, tau=policy.tau,
        temperature=policy.score_temperature,
    )  # fmt: skip


@st.composite
def tethers(draw):
    """(policy, chunk size) that fit."""
    chunk = draw(st.sampled_from([1, 3, 4]))
    policy = TetherCache(
        sink_size=draw(st.integers(0, 4)),
        memory_size=draw(st.integers(0, 6)),
        recent_size=draw(st.integers(chunk, chunk + 2)),
        alpha=draw(st.sampled_from([0.0, 0.35, 2.0])),
        tau=draw(st.sampled_from([0.0, 0.35, 0.6, 1.0])),
        score_temperature=draw(st.sampled_from([0.1, 1.0])),
    )
    return policy, chunk


@settings(max_examples=8, phases=[Phase.generate])  # each example compiles: no shrinking
@given(case=tethers(), seed=st.integers(0, 2**16))
def test_attention_equals_the_oracle(case, seed):
    policy, chunk = case
    num_chunks = policy.budget // chunk + 5
    assert_agrees_with_the_paper(policy, tiny_spec(chunk, grid=(1, 3)), num_chunks, seed)


def test_videos_of_a_batch_decide_for_themselves():
    policy = TetherCache(2, 4, 4, score_temperature=0.1)
    spec = tiny_spec(3, batch=3, grid=(2, 2))
    assert_agrees_with_the_paper(policy, spec, 9, seed=0)
    trial = Trial(policy, spec)
    leaves, _ = trial.run(trial.random_history(0, 9))
    frames = jax.tree.unflatten(trial.treedef, leaves).slots.frame_index
    assert len({tuple(sorted(video)) for video in frames[0].tolist()}) == 3


def test_without_memory_it_is_a_sliding_window_with_a_sink():
    spec = tiny_spec(3, batch=2)
    tether, window = Trial(TetherCache(2, 0, 4), spec), Trial(SlidingWindow(6, 2), spec)
    history = tether.random_history(0, 8)
    for ours, theirs in zip(tether.run(history)[1], window.run(history)[1], strict=True):
        chex.assert_trees_all_equal(ours.before.query_position, theirs.before.query_position)
        assert_close(ours.attended.denoised, theirs.attended.denoised)
        assert_close(ours.attended.committed, theirs.attended.committed)


def test_a_budget_that_holds_everything_is_full_attention():
    spec = tiny_spec(3)
    tether, full = Trial(TetherCache(3, 5, 4), spec), Trial(FullCache(12), spec)
    history = tether.random_history(0, 4)
    for ours, theirs in zip(tether.run(history)[1], full.run(history)[1], strict=True):
        chex.assert_trees_all_equal(ours.attended, theirs.attended)
        chex.assert_trees_all_equal(ours.after.visible, theirs.after.visible)


@pytest.fixture(scope="module", params=[0.0, 0.6])
def filmed(request):
    """(policy, chunks, the cache after each of them), ten chunks of three frames."""
    policy, spec = TetherCache(2, 4, 4, tau=request.param, score_temperature=0.1), tiny_spec(3)
    rng, commit = np.random.default_rng(1), jax.jit(policy.commit)
    chunks = [random_chunk(rng, spec, start) for start in range(0, 30, 3)]
    caches = [policy.init(spec)]
    for chunk in chunks:
        caches.append(commit(caches[-1], chunk))
    return policy, chunks, caches[1:]


def stored(cache, frame):
    slot = cache.slots.frame_index[0].tolist().index(frame)
    own = slice(2 * slot, 2 * slot + 2)
    return cache.slots.k[:, :, own], cache.slots.v[:, :, own]


def committed(chunks, frame):
    chunk, own = chunks[frame // 3], slice(2 * (frame % 3), 2 * (frame % 3) + 2)
    return chunk.k[:, :, own], chunk.v[:, :, own]


def regions(policy, cache):
    """(sink, memory, recent) as sets of frame numbers."""
    frames = set(cache.slots.frame_index[0].tolist()) - {-1}
    end = max(frames) + 1
    sink = {f for f in frames if f < policy.sink_size}
    recent = {f for f in frames - sink if f >= end - policy.recent_size}
    return sink, frames - sink - recent, recent


def test_sink_and_recent_frames_keep_their_bits(filmed):
    policy, chunks, caches = filmed
    for cache in caches:
        sink, _, recent = regions(policy, cache)
        for frame in sink | recent:
            assert same_bits(stored(cache, frame), committed(chunks, frame))
    assert regions(policy, caches[-1])[::2] == ({0, 1}, {26, 27, 28, 29})


def test_memory_comes_from_memory_and_from_what_was_displaced(filmed):
    policy, _, caches = filmed
    for before, after in zip(caches, caches[1:], strict=False):
        _, old, recent = regions(policy, before)
        _, new, still_recent = regions(policy, after)
        assert new <= old | (recent - still_recent)
        assert len(new) == min(policy.memory_size, len(old | (recent - still_recent)))


def test_a_frame_is_edited_once_when_it_is_recalled(filmed):
    """And not at all with tau = 0, or when it found a place before anything was chosen."""
    policy, chunks, caches = filmed
    joined = {}
    for cache in caches:
        for frame in regions(policy, cache)[1]:
            joined.setdefault(frame, stored(cache, frame))
            assert same_bits(stored(cache, frame), joined[frame])
    kept = [f for f, bits in joined.items() if same_bits(bits, committed(chunks, f))]
    # The warm-up ends with chunk 2: frames 2 to 4 have left the recent ones and found a place.
    assert sorted(kept) == (sorted(joined) if policy.tau == 0 else [2, 3, 4])
    assert len(joined) > 6


def test_moments_are_those_of_what_is_stored(filmed):
    cache = filmed[2][-1]
    for kept, x in ((cache.k, cache.slots.k), (cache.v, cache.slots.v)):
        expected = frame_moments(x, cache.slots.frame_index.shape[1])
        assert_close(kept.mean, expected.mean)
        assert_close(kept.variance, expected.variance)


def test_memory_index_is_empty_until_the_cache_has_been_full(filmed):
    policy, _, caches = filmed
    index = [
        policy.memory_index(jax.tree.map(lambda x: x[None], cache))[0].tolist() for cache in caches
    ]
    assert index[:3] == [[-1] * 4] * 3
    # Twelve frames, two more than fit: for the first time one of the displaced frames is lost.
    for row, cache in zip(index[3:], caches[3:], strict=True):
        assert row == sorted(regions(policy, cache)[1])


def test_the_chunk_goes_where_frames_were_dropped_and_nothing_else_moves(filmed):
    _, _, caches = filmed
    for before, after in zip(caches, caches[1:], strict=False):
        old, new = (cache.slots.frame_index[0].tolist() for cache in (before, after))
        moved = [slot for slot in range(10) if old[slot] != new[slot]]
        assert len(moved) == 3 and all(new[slot] > max(old) for slot in moved)


def test_commit_moves_nothing_it_keeps():
    compiled, cache = compile_donated_commit(TetherCache(2, 29, 4), tiny_spec(3, grid=(2, 4)))
    leaves = jax.tree.leaves(cache)
    assert cache_sized_copies(compiled, [cache.slots.k, cache.slots.v]) == []
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes >= sum(leaf.nbytes for leaf in leaves)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"sink_size": -1}, "sink_size=-1 must be at least 0"),
        ({"memory_size": -1}, "memory_size=-1 must be at least 0"),
        ({"recent_size": 0}, "recent_size=0 must be at least 1"),
        ({"tau": 1.5}, "tau=1.5 must lie between 0"),
        ({"tau": float("nan")}, "tau=nan must lie between 0"),
        ({"alpha": -0.1}, "alpha=-0.1 must be 0"),
        ({"score_temperature": 0.0}, "score_temperature=0.0 must be positive"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TetherCache(**fields)


def test_too_few_recent_frames_for_a_chunk_are_refused():
    with pytest.raises(ValueError, match="recent_size=2 is too small for a chunk of 3"):
        TetherCache(recent_size=2).init(tiny_spec(3))


def test_defaults_are_the_papers():
    policy = TetherCache()
    assert (policy.sink_size, policy.memory_size, policy.recent_size) == (3, 14, 4)
    assert (policy.alpha, policy.tau, policy.score_temperature) == (0.35, 0.6, 1.0)
    assert policy.budget == 21 and policy.max_frames is None

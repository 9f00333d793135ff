import dataclasses
import functools

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from scripts.bench_future import update_memory
from tests.cache.against_oracle import tiny_spec
from tests.cache.future_oracle import FutureOracle
from vidcache_jax.cache import FullCache, FutureForcing
from vidcache_jax.testing import (
    Trial,
    assert_close,
    random_chunk,
    same_bits,
)
from vidcache_jax.testing.trial import commit_attention, quick_jit

SPEC = tiny_spec(3, batch=2, grid=(2, 2))


@functools.cache
def programs(policy, num_frames):
    """(commit, attend, evict), compiled."""

    def attend(cache, chunk):
        return commit_attention(chunk.q, policy.read(cache, chunk.start_frame, num_frames))

    return quick_jit(policy.commit), quick_jit(attend), quick_jit(policy.evict)


def play(policy, spec, chunks):
    """(chunk, what it attended to, cache after commit, cache after eviction) of each chunk."""
    commit, attend, evict = programs(policy, spec.frames_per_chunk)
    cache = policy.init(spec)
    for chunk in chunks:
        committed = commit(cache, chunk)
        attended = attend(committed, chunk)
        cache = evict(committed, chunk, attended)
        yield chunk, attended, committed, cache


def random_chunks(spec, count, seed=0):
    rng = np.random.default_rng(seed)
    size = spec.frames_per_chunk
    return [random_chunk(rng, spec, start) for start in range(0, count * size, size)]


def held(tokens, video, head):
    """Slots of a head by (frame, place)."""
    frame, place = (np.asarray(x)[video, head] for x in (tokens.frame, tokens.place))
    slots = np.flatnonzero(frame >= 0)
    return sorted(slots, key=lambda s: (frame[s], place[s]))


CASES = {
    "paper": FutureForcing(7, proxy_token_stride=1),
    "merging much": FutureForcing(6, delta_max=3, query_frames=2, tau=0.5, proxy_token_stride=3),
    "future": FutureForcing(5, lam=1.0, delta_max=3, tau=0.8, profile="attention"),
    "history": FutureForcing(6, lam=0.0, delta_max=2, tau=0.5, history_norm="t"),
    "not merging": FutureForcing(6, delta_max=2, merge=False, rope_remap="none"),
    "shared and protected": FutureForcing(
        8, delta_max=2, tau=0.5, head_mode="shared", protect_sink_frames=2, protect_recent_frames=2
    ),
    "many queries": FutureForcing(
        6, delta_max=2, query_frames=7, proxy_token_stride=2, rope_remap="frame_rank"
    ),
}


@pytest.mark.parametrize("policy", CASES.values(), ids=CASES.keys())
def test_equals_the_oracle_over_long_histories(policy):
    """Attention, counts, and of every head the kept sets, positions, values and history."""
    oracles = [FutureOracle(policy, SPEC.grid, SPEC.num_heads) for _ in range(SPEC.batch)]
    for chunk, attended, _, cache in play(policy, SPEC, random_chunks(SPEC, 12)):
        for video, oracle in enumerate(oracles):
            _, out = oracle.chunk(chunk.q[video], chunk.k[video], chunk.v[video], 3)
            assert_close(attended.out[video], out)
            for name in ("num_merged", "num_dropped"):
                assert getattr(cache, name)[video].tolist() == getattr(oracle, name), name
            for head, expected in enumerate(oracle.heads):
                slots = held(cache.tokens, video, head)
                own = lambda x, at=(video, head, slots): np.asarray(x)[at]
                for name in ("frame", "place", "position"):
                    actual = own(getattr(cache.tokens, name)).tolist()
                    assert actual == [getattr(token, name) for token in expected], name
                assert_close(own(cache.tokens.v), np.array([token.v for token in expected]))
                assert_close(own(cache.history), np.array([token.history for token in expected]))


def test_chunks_of_another_size_under_sink_and_fifo():
    """The paper's ablation without scores, which merges all the same."""
    spec = tiny_spec(2, grid=(1, 3))
    policy = FutureForcing(
        5, score="sink_fifo", protect_sink_frames=1, delta_max=2, tau=0.5, proxy_token_stride=2
    )
    oracle = FutureOracle(policy, spec.grid, spec.num_heads)
    cache = policy.init(spec)
    for chunk, attended, _, after in play(policy, spec, random_chunks(spec, 9)):
        cache = after
        assert_close(attended.out[0], oracle.chunk(chunk.q[0], chunk.k[0], chunk.v[0], 2)[1])
    assert {*np.asarray(cache.tokens.frame).flat} == {-1, 0, 16, 17}
    assert int(np.sum(cache.num_merged)) > 0


def test_a_budget_that_holds_everything_is_full_attention():
    spec = tiny_spec(3)
    future, full = Trial(FutureForcing(12), spec), Trial(FullCache(12), spec)
    history = future.random_history(0, 4)
    for ours, theirs in zip(future.run(history)[1], full.run(history)[1], strict=True):
        assert_close(ours.attended.denoised, theirs.attended.denoised)
        assert_close(ours.attended.committed, theirs.attended.committed)
        chex.assert_trees_all_equal(ours.after.visible.sum(), 2 * theirs.after.visible.sum())


def filmed(policy, count=8):
    return list(play(policy, SPEC, random_chunks(SPEC, count)))


def test_tau_above_one_is_plain_eviction():
    plain = CASES["not merging"]
    policy = dataclasses.replace(plain, merge=True, tau=1.5)
    for (*_, one), (*_, two) in zip(filmed(policy), filmed(plain), strict=True):
        chex.assert_trees_all_equal(one, two)


def test_without_merging_survivors_keep_the_bits_they_came_with():
    chunks = {}
    for chunk, _, _, cache in filmed(CASES["not merging"]):
        chunks[int(chunk.start_frame)] = chunk
        check_bits(cache.tokens, chunks, ("k", "v"))


def test_merging_changes_values_and_never_keys():
    chunks = {}
    for chunk, _, _, cache in filmed(CASES["merging much"]):
        chunks[int(chunk.start_frame)] = chunk
        check_bits(cache.tokens, chunks, ("k",))
    with pytest.raises(AssertionError):
        check_bits(cache.tokens, chunks, ("v",))


def check_bits(tokens, chunks, names):
    frame, place = np.asarray(tokens.frame), np.asarray(tokens.place)
    for index in np.argwhere(frame >= 0):
        video, head, slot = index
        number = frame[tuple(index)]
        chunk, own = chunks[number // 3 * 3], number % 3 * 4 + place[tuple(index)]
        for name in names:
            stored = np.asarray(getattr(tokens, name))[video, head, slot]
            assert same_bits(stored, np.asarray(getattr(chunk, name))[video, head, own])


def test_lambda_mixes_future_and_history_and_nothing_else():
    policy = CASES["paper"]
    chunk, attended, committed, _ = filmed(policy)[-1]
    merit = quick_jit(policy.merit)(committed, chunk, attended)
    visible = np.asarray(committed.tokens.frame) >= 0
    age = chunk.start_frame // 3 - committed.tokens.frame // 3 + 1
    future = np.mean(merit.future.weight, axis=2)
    mixed = 0.5 * future + 0.5 * np.asarray(merit.history) / np.asarray(age)
    assert_close(np.asarray(merit.score)[visible], mixed[visible])
    assert_close(future.sum(axis=-1), np.ones((2, 2)))
    assert not future[~visible].any()
    # Every chunk's queries have given weights that sum to 1, and some of it left with the evicted.
    assert (np.asarray(merit.history).sum(axis=-1) < 8).all()


@pytest.mark.parametrize("name", ["paper", "many queries"])
def test_remap_keeps_places_and_ends_right_before_the_next_chunk(name):
    policy = CASES[name]
    read = quick_jit(functools.partial(policy.read, num_frames=3))
    for chunk, _, committed, cache in filmed(policy):
        end = chunk.start_frame + 3
        after, before = read(cache, end), read(committed, chunk.start_frame)
        visible = np.asarray(after.visible)
        # Rows and columns of what is left are what they were.
        moved = np.asarray(after.position)[visible] - np.asarray(before.position)[visible]
        assert not moved[:, 1:].any()
        frames = np.where(visible, np.asarray(after.position[..., 0]), -1)
        assert (frames.max(axis=-1) == np.asarray(after.query_position[:, :, 0, 0]) - 1).all()
        for head in frames.reshape(-1, frames.shape[-1]):
            # Contiguous from 0.
            assert sorted({*head} - {-1}) == list(range(head.max() + 1))
        if policy.rope_remap == "slot":
            counts = [np.bincount(head[head >= 0]) for head in frames.reshape(-1, frames.shape[-1])]
            assert all((count == 4).all() for count in counts)
            assert int(after.query_position[0, 0, -1, 0]) < policy.budget_frames


def test_of_equal_scores_the_first_tokens_stay():
    """Every token is given the same weight."""
    policy = CASES["future"]
    chunks = [
        dataclasses.replace(c, q=jnp.zeros_like(c.q), k=jnp.zeros_like(c.k))
        for c in random_chunks(SPEC, 4)
    ]
    *_, (_, _, _, cache) = play(policy, SPEC, chunks)
    for video, head in np.ndindex(2, 2):
        frames = np.asarray(cache.tokens.frame)[video, head, held(cache.tokens, video, head)]
        assert frames.tolist() == [0] * 4 + [1] * 4


def test_the_chunk_goes_into_freed_slots_and_nothing_else_moves():
    last = None
    for _, _, committed, cache in filmed(CASES["not merging"]):
        if last is not None:
            stays = np.asarray(last.tokens.frame) >= 0
            for name in ("k", "v", "frame", "place"):
                one, two = (np.asarray(getattr(c.tokens, name))[stays] for c in (last, committed))
                assert same_bits(one, two)
        last = cache


def test_an_update_takes_less_than_a_quarter_of_the_cache_at_the_shape_of_wan():
    """Compiled and not run: 1,560 tokens a frame, 12 heads, 18 frames."""
    shares = [share for _, share in update_memory(FutureForcing(), (60, 104)).values()]
    assert len(shares) == 2 and max(shares) < 0.25


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"budget_frames": 1}, "budget_frames=1 must be at least 2"),
        ({"delta_max": 0}, "delta_max=0 must be at least 1"),
        ({"query_frames": 0}, "query_frames=0 must be at least 1"),
        ({"proxy_token_stride": 0}, "proxy_token_stride=0 must be at least 1"),
        ({"protect_sink_frames": -1}, "protect_sink_frames=-1 must be at least 0"),
        ({"lam": 1.5}, "lam=1.5 must lie between 0"),
        ({"tau": float("nan")}, "tau=nan must be a cosine"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FutureForcing(**fields)


@pytest.mark.parametrize("name", ["score", "profile", "head_mode", "history_norm", "rope_remap"])
def test_other_words_are_refused(name):
    # Around the type check, which refuses them first in tests.
    policy = object.__new__(FutureForcing)
    vars(policy).update(dataclasses.asdict(FutureForcing()) | {name: "other"})
    with pytest.raises(ValueError, match=f"{name}='other' must be one of"):
        policy.__post_init__()


def test_budgets_that_do_not_fit_the_chunk_are_refused():
    with pytest.raises(ValueError, match="budget_frames=3 leaves nothing of the past"):
        FutureForcing(3).init(tiny_spec(3))
    with pytest.raises(ValueError, match="protect_sink_frames=2 .* do not fit into the 3 frames"):
        FutureForcing(6, protect_sink_frames=2, protect_recent_frames=2).init(tiny_spec(3))


def test_defaults_are_the_papers():
    policy = FutureForcing()
    assert (policy.budget_frames, policy.lam, policy.delta_max) == (18, 0.5, 6)
    assert (policy.tau, policy.merge, policy.head_mode) == (0.95, True, "per_head")
    assert policy.max_frames is None

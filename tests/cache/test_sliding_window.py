import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.cache.against_oracle import assert_agrees, tiny_spec
from tests.cache.commit_program import compile_donated_commit
from vidcache_jax.cache import FullCache, SlidingWindow
from vidcache_jax.testing import Trial, assert_close, cache_sized_copies, random_chunk


@st.composite
def windows(draw):
    """(policy, chunk size) that fit, windows to 14 and sinks to 5, multiples of nothing."""
    chunk = draw(st.sampled_from([1, 3, 4]))
    sink = draw(st.integers(0, 5))
    window = draw(st.integers(sink + chunk, 14))
    rope = draw(st.sampled_from(["relative", "absolute"]))
    return SlidingWindow(window, sink, rope), chunk


@settings(max_examples=12, phases=[Phase.generate])  # each example compiles: no shrinking
@given(case=windows(), num_chunks=st.integers(1, 8), seed=st.integers(0, 2**16))
def test_attention_equals_the_oracle(case, num_chunks, seed):
    policy, chunk = case
    num_chunks = max(num_chunks, policy.window_size // chunk + 2)
    assert_agrees(
        policy, tiny_spec(chunk), num_chunks, seed, window_size=policy.window_size,
        sink_size=policy.sink_size, relative=policy.rope == "relative",
    )  # fmt: skip


def test_attention_equals_the_oracle_in_a_batch_on_a_grid():
    policy = SlidingWindow(7, 2)
    spec = tiny_spec(3, batch=2, grid=(2, 2))
    assert_agrees(policy, spec, 5, seed=0, window_size=7, sink_size=2, relative=True)


@pytest.fixture(scope="module")
def filled():
    """The cache of ``SlidingWindow(6, 2)`` after each of four chunks of three frames."""
    rng, spec, policy = np.random.default_rng(0), tiny_spec(3), SlidingWindow(6, 2)
    caches = [policy.init(spec)]
    for start in (0, 3, 6, 9):
        caches.append(policy.commit(caches[-1], random_chunk(rng, spec, start)))
    return caches


def test_sink_stays_and_recent_frames_take_turns(filled):
    assert [cache.frame_index[0].tolist() for cache in filled] == [
        [-1, -1, -1, -1, -1, -1],
        [0, 1, 2, -1, -1, -1],
        [0, 1, 2, 3, 4, 5],
        [0, 1, 6, 7, 8, 5],
        [0, 1, 10, 11, 8, 9],
    ]


def shown(policy, cache, start):
    """{frame number: RoPE position} of what is visible, and the chunk's own positions."""
    view = policy.read(cache, jnp.asarray(start, jnp.int32), 3)
    first_tokens = slice(None, None, 2)
    visible = np.asarray(view.visible[0, 0])
    numbers = np.asarray(cache.frame_index[0])[visible].tolist()
    positions = np.asarray(view.position[0, 0, first_tokens, 0])[visible].tolist()
    own = view.query_position[0, 0, first_tokens, 0].tolist()
    return dict(zip(numbers, positions, strict=True)), own


@pytest.mark.parametrize(
    "chunk, past, own",
    [
        (0, {}, [0, 1, 2]),
        (1, {0: 0, 1: 1, 2: 2}, [3, 4, 5]),
        (2, {0: 0, 1: 1, 5: 2}, [3, 4, 5]),
        (3, {0: 0, 1: 1, 8: 2}, [3, 4, 5]),
    ],
)
def test_relative_positions_close_the_gap(filled, chunk, past, own):
    policy, start = SlidingWindow(6, 2), 3 * chunk
    # What the chunk will displace is hidden from it already.
    assert shown(policy, filled[chunk], start) == (past, own)
    with_own = past | dict(zip(range(start, start + 3), own, strict=True))
    assert shown(policy, filled[chunk + 1], start) == (with_own, own)


@pytest.mark.parametrize("chunk, past", [(0, []), (1, [0, 1, 2]), (2, [0, 1, 5]), (3, [0, 1, 8])])
def test_absolute_positions_are_frame_numbers(filled, chunk, past):
    policy, own = SlidingWindow(6, 2, rope="absolute"), [3 * chunk + i for i in range(3)]
    assert shown(policy, filled[chunk], 3 * chunk) == ({f: f for f in past}, own)
    assert shown(policy, filled[chunk + 1], 3 * chunk) == ({f: f for f in past + own}, own)


@pytest.mark.parametrize("rope", ["relative", "absolute"])
def test_a_window_over_everything_is_a_full_cache(rope):
    spec = tiny_spec(3)
    full, window = Trial(FullCache(12), spec), Trial(SlidingWindow(12, 3, rope=rope), spec)
    history = full.random_history(0, 4)
    chex.assert_trees_all_equal(full.run(history)[1], window.run(history)[1])


def test_a_relative_window_without_sink_forgets_when_the_video_began():
    trial = Trial(SlidingWindow(6), tiny_spec(3))
    history = trial.random_history(0, 9)
    late, early = trial.run(history)[1][-1], trial.run(history[-3:])[1][-1]
    assert_close(late.attended.denoised, early.attended.denoised)
    assert_close(late.attended.committed, early.attended.committed)
    assert late.after.query_position.tolist() == early.after.query_position.tolist()


def test_an_absolute_window_with_sink_does_not():
    trial = Trial(SlidingWindow(6, 1, rope="absolute"), tiny_spec(3))
    history = trial.random_history(0, 9)
    late, early = trial.run(history)[1][-1], trial.run(history[-3:])[1][-1]
    with pytest.raises(AssertionError):
        assert_close(late.attended.committed, early.attended.committed)


@pytest.mark.parametrize("first_frame", [10**6 - 1, 2**30 - 1])
def test_relative_attention_is_the_same_an_hour_and_a_decade_later(first_frame):
    trial = Trial(SlidingWindow(6), tiny_spec(3))
    history = trial.random_history(0, 5)
    now, later = trial.run(history)[1], trial.run(history, first_frame=first_frame)[1]
    assert_close(now[-1].attended.denoised, later[-1].attended.denoised)


def test_commit_moves_nothing_it_keeps():
    compiled, cache = compile_donated_commit(SlidingWindow(35, 2), tiny_spec(3))
    leaves = jax.tree.leaves(cache)
    assert cache_sized_copies(compiled, leaves) == []
    memory = compiled.memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes >= sum(leaf.nbytes for leaf in leaves)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"window_size": 0}, "window_size=0 must be at least 1"),
        ({"window_size": -3}, "window_size=-3 must be at least 1"),
        ({"sink_size": -1}, "sink_size=-1 must be at least 0"),
        ({"window_size": 6, "sink_size": 6}, "sink_size=6 .*window_size=6: lower the sink"),
        ({"window_size": 6, "sink_size": 9}, "sink_size=9 .*window_size=6: lower the sink"),
    ],
)
def test_impossible_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SlidingWindow(**fields)


def test_another_rope_is_refused():
    # Past `__init__`, whose annotations already refuse the word while tests check types.
    policy = object.__new__(SlidingWindow)
    vars(policy).update(window_size=6, sink_size=2, rope="relativ")
    with pytest.raises(ValueError, match="rope='relativ' must be 'relative' or 'absolute'"):
        policy.__post_init__()


def test_too_few_recent_frames_for_a_chunk_are_refused():
    with pytest.raises(ValueError, match="leaves 2 recent frames.*chunk of 3: widen the window"):
        SlidingWindow(6, 4).init(tiny_spec(3))


def test_there_is_no_limit_of_length():
    assert SlidingWindow().max_frames is None


def test_equal_policies_are_one_key():
    assert {SlidingWindow(6, 2): 1}[SlidingWindow(window_size=6, sink_size=2, rope="relative")] == 1

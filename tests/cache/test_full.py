import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from tests.cache.against_oracle import assert_agrees, tiny_spec
from vidcache_jax.cache import FullCache
from vidcache_jax.testing import Trial, assert_close, random_chunk


@settings(max_examples=5, phases=[Phase.generate])  # each example compiles: no shrinking
@given(chunk=st.sampled_from([1, 3, 4]), num_chunks=st.integers(1, 5), seed=st.integers(0, 2**16))
def test_attention_equals_the_oracle(chunk, num_chunks, seed):
    assert_agrees(FullCache(20), tiny_spec(chunk), num_chunks, seed)


def test_frames_lie_at_their_number_and_are_seen_from_then_on():
    spec, policy = tiny_spec(3), FullCache(7)
    cache = policy.init(spec)
    for start, before, after in (
        (0, [-1] * 7, [0, 1, 2, -1, -1, -1, -1]),
        (3, [0, 1, 2, -1, -1, -1, -1], [0, 1, 2, 3, 4, 5, -1]),
    ):
        for index, expected in enumerate((before, after)):
            view = policy.read(cache, jnp.asarray(start, jnp.int32), 3)
            assert cache.frame_index[0].tolist() == expected
            assert view.visible[0, 0].tolist() == [frame >= 0 for frame in expected]
            assert view.position[0, 0, ::2, 0].tolist() == expected
            assert view.query_position[0, 0].tolist() == [
                [start + frame, 0, column] for frame in range(3) for column in range(2)
            ]
            if index == 0:
                cache = policy.commit(cache, random_chunk(np.random.default_rng(0), spec, start))


def test_spare_capacity_changes_nothing():
    trials = [Trial(FullCache(capacity), tiny_spec(3)) for capacity in (6, 20)]
    history = trials[0].random_history(0, 2)
    tight, roomy = (trial.run(history)[1][-1].attended for trial in trials)
    assert_close(tight.denoised, roomy.denoised)
    assert_close(tight.committed, roomy.committed)


def test_the_capacity_is_the_longest_video():
    assert FullCache(21).max_frames == 21


@pytest.mark.parametrize("capacity", [0, -4])
def test_no_capacity_is_refused(capacity):
    with pytest.raises(ValueError, match=f"capacity={capacity} must be at least 1 latent frame"):
        FullCache(capacity)


def test_a_capacity_below_one_chunk_is_refused():
    with pytest.raises(ValueError, match="capacity=2 does not hold one chunk of 3.*raise the cap"):
        FullCache(2).init(tiny_spec(3))

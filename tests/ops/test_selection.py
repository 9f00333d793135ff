"""Selection by rank against NumPy's sorts, alone and with heads divided over a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidcache_jax.ops.by_heads import by_heads
from vidcache_jax.ops.selection import descending, is_among_first, where_true
from vidcache_jax.sharding import HEADS

B, N, S = 2, 2, 40
COUNTS = (0, 1, 17, S)


def select(score, frame, place):
    """For each of `COUNTS`: as `token_eviction.split` asks."""
    keys = (descending(score), frame, place)
    return [is_among_first(keys, count) for count in COUNTS]


def scored(seed=0):
    """Many equal scores, both infinities, and each (frame, place) once, also below 0."""
    rng = np.random.default_rng(seed)
    values = np.array([-np.inf, -3e38, -1.5, -1e-40, 0.0, 1e-40, 0.25, 3e38, np.inf], np.float32)
    token = np.stack([rng.permutation(S) for _ in range(B * N)]).reshape(B, N, S)
    frame, place = token // 4 - 3, token % 4
    return rng.choice(values, (B, N, S)), frame.astype(np.int32), place.astype(np.int32)


def check(chosen, score, frame, place):
    order = np.lexsort((place, frame, -score.astype(np.float64)), axis=-1)
    rank = np.argsort(order, axis=-1)
    for mask, count in zip(chosen, COUNTS, strict=True):
        np.testing.assert_array_equal(mask, rank < count)


def test_the_first_by_several_keys_are_those_of_a_sort():
    check(jax.jit(select)(*map(jnp.asarray, scored())), *scored())


def test_heads_divided_over_a_mesh_choose_the_same():
    given = scored(1)
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((N,), (HEADS,), axis_types=auto)
    divided = jax.jit(lambda *arrays: by_heads(select, *arrays))
    with jax.set_mesh(mesh):
        check(divided(*map(jnp.asarray, given)), *given)
    # With no mesh it is the function itself.
    assert by_heads(lambda *arrays: arrays, *given) == given


def test_of_entries_equal_in_every_key_all_stay_or_none():
    same = jnp.zeros((1, 1, 4), jnp.int32)
    for count, stay in ((3, False), (4, True)):
        assert (np.asarray(is_among_first((same,), count)) == stay).all()


@pytest.mark.parametrize("count", [0, 3, S])
def test_places_of_what_is_true_come_first_and_in_order(count):
    mask = np.random.default_rng(2).random((B, N, S)) < 0.2
    places = where_true(jnp.asarray(mask), count)
    np.testing.assert_array_equal(places, np.argsort(~mask, axis=-1, kind="stable")[..., :count])

"""Routing and merging against loops in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidcache_jax.ops.merge import merge_values, ref, route
from vidcache_jax.ops.merge.api import IMPLEMENTATIONS
from vidcache_jax.testing import assert_close, same_bits

D, B, N, S, H, E, R = 3, 2, 2, 20, 12, 8, 12


def profiles(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda count: rng.standard_normal((B, N, D, count)).astype(np.float32)
    is_retained = rng.random((B, N, R)) < 0.8
    is_retained[..., -1] = True
    rank = np.stack([rng.permutation(R) for _ in range(B * N)]).reshape(B, N, R)
    return draw(E), draw(R), np.where(is_retained, rank, -1).astype(np.int32)


def nearest(evicted, retained, rank):
    place, cosine = np.zeros((B, N, E), int), np.full((B, N, E), -np.inf)
    for b, n, e, r in np.ndindex(B, N, E, R):
        if rank[b, n, r] >= 0:
            x, y = (p[b, n, :, i].astype(np.float64) for p, i in ((evicted, e), (retained, r)))
            norms = np.linalg.norm(x) * np.linalg.norm(y)
            value = x @ y / norms if norms else 0.0
            if (value, -rank[b, n, r]) > (cosine[b, n, e], -place[b, n, e]):
                place[b, n, e], cosine[b, n, e] = rank[b, n, r], value
    return place, cosine


@pytest.mark.parametrize("implementation", [None, *IMPLEMENTATIONS])
def test_route_finds_the_highest_cosine(implementation):
    given = profiles()
    place, cosine = route(*map(jnp.asarray, given), implementation=implementation)
    expected = nearest(*given)
    np.testing.assert_array_equal(place, expected[0])
    assert_close(cosine, expected[1])


def test_route_in_blocks_and_of_equals_the_lowest_rank():
    evicted, retained, rank = profiles(1)
    retained[..., 7:] = 2 * retained[..., 1:6]
    rank[:] = np.arange(R)[::-1]
    place, _ = ref.route(
        *map(jnp.asarray, (evicted, retained, rank)), most_evicted=3, most_retained=4
    )
    np.testing.assert_array_equal(place, nearest(evicted, retained, rank)[0])
    # Of the equal ones those from 7 on have the lower ranks.
    assert not {*np.asarray(place).flat} & {*range(R - 6, R - 1)}


def test_a_profile_of_norm_0_is_at_a_right_angle_to_all():
    evicted, retained, rank = profiles(2)
    evicted[0, 0, :, 0] = 0
    place, cosine = route(*map(jnp.asarray, (evicted, retained, rank)))
    assert cosine[0, 0, 0] == 0
    assert place[0, 0, 0] == rank[0, 0][rank[0, 0] >= 0].min()


def test_where_nothing_is_retained_nothing_is_near():
    evicted, retained, rank = profiles()
    _, cosine = route(*map(jnp.asarray, (evicted, retained, np.full_like(rank, -1))))
    assert (np.asarray(cosine) == -np.inf).all()


def pairs(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    v = rng.standard_normal((B, N, S, H)).astype(dtype)
    weight = rng.random((B, N, D, S)).astype(np.float32)
    slots = np.stack([[rng.permutation(S) for _ in range(N)] for _ in range(B)]).astype(np.int32)
    source = slots[..., :E]
    # Few targets, so that several sources meet in one.
    target = np.take_along_axis(slots[..., E:], rng.integers(0, 4, (B, N, E)), axis=2)
    return v, weight, source, target, rng.random((B, N, E)) < 0.8


def blended(v, weight, source, target, is_merged):
    """Eq. 3 as it is printed: one blend for each step of the horizon, then their mean."""
    out = v.astype(np.float64)
    for b, n in np.ndindex(B, N):
        for i in set(target[b, n][is_merged[b, n]]):
            members = [i, *source[b, n][is_merged[b, n] & (target[b, n] == i)]]
            blends = []
            for a in weight[b, n].astype(np.float64):
                total = a[members].sum()
                parts = a[members] @ v[b, n, members].astype(np.float64)
                blends.append(parts / total if total else v[b, n, i])
            out[b, n, i] = np.mean(blends, axis=0)
    return out


@pytest.mark.parametrize("implementation", [None, *IMPLEMENTATIONS])
def test_merged_values_are_the_stated_blend(implementation):
    given = pairs()
    merged = merge_values(*map(jnp.asarray, given), implementation=implementation)
    assert_close(merged, blended(*given))


def test_every_value_that_is_no_target_keeps_its_bits():
    v, weight, source, target, is_merged = pairs(1)
    merged = np.asarray(merge_values(*map(jnp.asarray, (v, weight, source, target, is_merged))))
    for b, n in np.ndindex(B, N):
        others = sorted(set(range(S)) - set(target[b, n][is_merged[b, n]].tolist()))
        assert same_bits(merged[b, n, others], v[b, n, others])


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_with_nothing_routed_values_keep_their_bits(dtype):
    v, weight, source, target, is_merged = pairs(dtype=dtype)
    given = (v, weight, source, target, np.zeros_like(is_merged))
    assert same_bits(merge_values(*map(jnp.asarray, given)), v)


def test_merged_values_are_convex_combinations():
    """Constant values stay; others lie between the least and the greatest of their group."""
    v, weight, source, target, is_merged = pairs(2)
    run = lambda v: np.asarray(
        merge_values(*map(jnp.asarray, (v, weight, source, target, is_merged)))
    )
    assert_close(run(np.ones_like(v)), np.ones_like(v))
    merged = run(v)
    for b, n in np.ndindex(B, N):
        for i in set(target[b, n][is_merged[b, n]].tolist()):
            members = [i, *source[b, n][is_merged[b, n] & (target[b, n] == i)]]
            group = v[b, n, members]
            assert (merged[b, n, i] >= group.min(axis=0) - 1e-6).all()
            assert (merged[b, n, i] <= group.max(axis=0) + 1e-6).all()


def test_a_step_without_weight_leaves_the_value():
    v, weight, source, target, is_merged = pairs(3)
    weight[:, :, 0] = 0
    given = (v, weight, source, target, is_merged)
    assert_close(merge_values(*map(jnp.asarray, given)), blended(*given))
    weight[:] = 0
    assert_close(merge_values(*map(jnp.asarray, (v, weight, *given[2:]))), v)


def test_garbage_that_is_not_merged_reaches_nothing():
    v, weight, source, target, is_merged = pairs(4)
    is_merged[..., :2] = False
    unused = np.zeros((B, N, S), bool)
    np.put_along_axis(unused, source[..., :2], True, axis=2)
    spoilt = np.where(unused[..., None], np.float32(np.nan), v)
    given = (weight, source, target, is_merged)
    clean, other = (np.asarray(merge_values(*map(jnp.asarray, (x, *given)))) for x in (v, spoilt))
    assert same_bits(clean[~unused], other[~unused])


def test_sums_are_float32_whatever_the_values_are():
    v, weight, source, target, is_merged = pairs(5, jnp.bfloat16)
    merged = merge_values(*map(jnp.asarray, (v, weight, source, target, is_merged)))
    expected = blended(v, weight, source, target, is_merged)
    assert merged.dtype == jnp.bfloat16
    # Rounded once: within half of bfloat16's last place.
    np.testing.assert_allclose(np.float64(merged), expected, rtol=2**-8, atol=1e-6)


def test_pairs_in_blocks():
    """Sources of one target lie in several blocks."""
    given = pairs(6)
    merged = ref.merge_values(*map(jnp.asarray, given), most_pairs=2)
    assert_close(merged, blended(*given))


def test_works_mapped_and_donated():
    given = tuple(map(jnp.asarray, pairs(7)))
    expected = np.asarray(merge_values(*given))
    twice = jax.jit(jax.vmap(merge_values))(*(jnp.stack([x, x]) for x in given))
    assert_close(twice[1], expected)
    donated = jax.jit(merge_values, donate_argnums=0)(jnp.copy(given[0]), *given[1:])
    assert same_bits(donated, expected)


def test_unknown_implementation_is_named():
    with pytest.raises(ValueError, match=r"no merge implementation 'fast'; there are \['xla'"):
        route(*map(jnp.asarray, profiles()), implementation="fast")

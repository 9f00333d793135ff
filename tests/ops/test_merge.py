"""Routing and merging against float64 NumPy.

The TPU kernel is interpreted, in tiles so small that there are several and ragged ones.
"""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from vidcache_jax.ops.implementations import Implementation
from vidcache_jax.ops.merge import check as soundness_of_routing
from vidcache_jax.ops.merge import merge_values, ref, route, tpu
from vidcache_jax.ops.merge.table import ROUTING
from vidcache_jax.sharding import make_mesh
from vidcache_jax.testing import assert_close, same_bits

D, B, N, E, R = 3, 2, 3, 140, 300
S, H, P = 20, 12, 8
# Two blocks of evicted profiles and two of retained ones, of two pieces each; none is full.
KERNEL = jax.jit(functools.partial(tpu.route, tiling=tpu.Tiling(128, 256, 128), interpret=True))
BOTH = pytest.mark.parametrize("routing", [route, KERNEL], ids=["xla", "tpu"])


def profiles(seed=0):
    """What is not retained is NaN."""
    rng = np.random.default_rng(seed)
    draw = lambda count: rng.standard_normal((B, N, D, count)).astype(np.float32)
    is_retained = rng.random((B, N, R)) < 0.8
    is_retained[..., -1] = True
    rank = np.stack([rng.permutation(R) for _ in range(B * N)]).reshape(B, N, R)
    retained = np.where(is_retained[:, :, None], draw(R), np.float32(np.nan))
    return draw(E), retained, np.where(is_retained, rank, -1).astype(np.int32)


def nearest(evicted, retained, rank):
    """(rank, cosine), from the whole matrix in float64, with columns in the order of ranks."""
    place, cosine = np.zeros((B, N, E), int), np.full((B, N, E), -np.inf)
    for b, n in np.ndindex(B, N):
        order = np.argsort(rank[b, n])[np.sum(rank[b, n] < 0) :]
        unit = lambda x: x / np.where((norm := np.linalg.norm(x, axis=0)) > 0, norm, 1)
        x, y = (unit(p.astype(np.float64)) for p in (evicted[b, n], retained[b, n][:, order]))
        cosines = x.T @ y
        # Of equal ones, up to rounding, the first.
        best = np.argmax(cosines > cosines.max(axis=1, keepdims=True) - 1e-9, axis=1)
        place[b, n], cosine[b, n] = rank[b, n, order[best]], cosines.max(axis=1)
    return place, cosine


def check(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    assert_close(found[1], expected[1])


@BOTH
def test_route_finds_the_highest_cosine(routing):
    given = profiles()
    found, again = (routing(*map(jnp.asarray, given)) for _ in range(2))
    check(found, nearest(*given))
    assert all(map(same_bits, found, again))


def with_equals():
    """Every profile has two others in its direction, longer, in blocks of their own."""
    evicted, retained, rank = profiles(1)
    retained = np.nan_to_num(retained)
    rank[:] = np.stack([np.random.default_rng(n).permutation(R) for n in range(N)])
    retained[..., 100:200], retained[..., 200:] = 2 * retained[..., :100], 4 * retained[..., :100]
    evicted[..., :10] = retained[..., :10]
    return evicted, retained, rank


@pytest.mark.parametrize(
    "routing",
    [functools.partial(ref.route, most_evicted=35, most_retained=75), KERNEL],
    ids=["xla", "tpu"],
)
def test_of_equals_the_lowest_rank_whatever_block_it_is_in(routing):
    given = with_equals()
    check(routing(*map(jnp.asarray, given)), nearest(*given))


@BOTH
def test_a_profile_of_norm_0_is_at_a_right_angle_to_all(routing):
    evicted, retained, rank = profiles(2)
    evicted[0, 0, :, 0] = 0
    place, cosine = routing(*map(jnp.asarray, (evicted, retained, rank)))
    assert cosine[0, 0, 0] == 0
    assert place[0, 0, 0] == rank[0, 0][rank[0, 0] >= 0].min()


@BOTH
def test_where_nothing_is_retained_nothing_is_near(routing):
    evicted, retained, rank = profiles()
    place, cosine = routing(*map(jnp.asarray, (evicted, retained, np.full_like(rank, -1))))
    assert (np.asarray(cosine) == -np.inf).all() and not np.asarray(place).any()


def test_kernel_on_a_simulated_tpu():
    """Memory is NaN until written, reads out of bounds and races are errors."""
    given = tuple(x[:1, :1] for x in profiles())
    simulated = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    found = tpu.route(
        *map(jnp.asarray, given), tiling=tpu.Tiling(128, 256, 128), interpret=simulated
    )
    check(found, [x[:1, :1] for x in nearest(*profiles())])


@pytest.mark.parametrize(
    ("evicted", "retained", "expected"),
    [
        (4680, 28080, (2432, 1408, 512)),
        (10800, 64800, (2176, 1664, 512)),
        (200, 320, (256, 384, 512)),
    ],
)
def test_tiling(evicted, retained, expected):
    assert tpu.choose_tiling(evicted, retained) == expected


def lowered_text(routing, platform, num_heads=2):
    array = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct((1, num_heads, *shape), dtype)
    given = array(D, E), array(D, R), array(R, dtype=jnp.int32)
    return jax.jit(routing).trace(*given).lower(lowering_platforms=(platform,)).as_text()


def test_none_is_the_best_for_the_platform_lowered_for():
    assert "tpu_custom_call" in lowered_text(route, "tpu")
    assert "tpu_custom_call" not in lowered_text(route, "cpu")


def test_each_chip_calls_the_kernel_on_its_heads():
    """As in `Rollout.step`: `data` by hand, heads and tokens left to the compiler."""
    mesh = make_mesh(data=1, heads=2, sequence=2, devices=jax.devices()[:4])
    spec = jax.sharding.PartitionSpec()
    over_mesh = lambda by_hand: jax.shard_map(
        route, mesh=mesh, axis_names=by_hand, in_specs=spec, out_specs=spec, check_vma=False
    )
    text = lowered_text(over_mesh({"data"}), "tpu")
    [call] = [line for line in text.splitlines() if "@tpu_custom_call" in line]
    assert f"1x1x{D}x{R}xf32" in call and f"1x2x{D}x{R}xf32" not in call
    # The compiler would have to divide the videos as well.
    assert "tpu_custom_call" not in lowered_text(over_mesh({"sequence"}), "tpu")


def test_a_program_is_built_without_a_kernel_that_is_wrong_here(monkeypatch):
    """It would be chosen: nothing but the check, made while tracing, stands against it."""

    def wrong(*given):
        place, cosine = ref.route(*given)
        return place + 1, cosine

    planted = Implementation(wrong, lambda evicted: None, "cpu")
    monkeypatch.setitem(ROUTING, "planted", planted)
    given = profiles()
    with pytest.warns(
        RuntimeWarning, match="routing on 'xla' instead of 'planted': it routes 400 of 400"
    ):
        check(route(*map(jnp.asarray, given)), nearest(*given))


def test_the_check_lets_a_sound_kernel_pass():
    sound = Implementation(functools.partial(tpu.route, interpret=True), tpu.reason_against, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert soundness_of_routing.is_sound("sound", sound, D)


def test_a_name_means_that_or_an_error_that_says_why():
    given = tuple(map(jnp.asarray, profiles()))
    check(route(*given, implementation="xla"), nearest(*profiles()))
    with pytest.raises(ValueError, match=r"no routing implementation 'fast'; there are \['xla'"):
        route(*given, implementation="fast")
    half = (given[0].astype(jnp.bfloat16), *given[1:])
    with pytest.raises(
        NotImplementedError, match="routing on 'tpu': float32 is needed, not bfloat"
    ):
        route(*half, implementation="tpu")


def pairs(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    v = rng.standard_normal((B, N, S, H)).astype(dtype)
    weight = rng.random((B, N, D, S)).astype(np.float32)
    slots = np.stack([[rng.permutation(S) for _ in range(N)] for _ in range(B)]).astype(np.int32)
    source = slots[..., :P]
    # Few targets, so that several sources meet in one.
    target = np.take_along_axis(slots[..., P:], rng.integers(0, 4, (B, N, P)), axis=2)
    return v, weight, source, target, rng.random((B, N, P)) < 0.8


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


@pytest.mark.parametrize("implementation", [None, "xla"])
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
    with pytest.raises(ValueError, match=r"no merging implementation 'fast'; there are \['xla'"):
        merge_values(*map(jnp.asarray, pairs()), implementation="fast")

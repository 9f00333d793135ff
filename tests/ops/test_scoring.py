"""Every implementation of column means against the dense softmax in float64 NumPy.

The TPU kernel is interpreted, in tiles so small that there are several and ragged ones.
"""

import collections
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from tests.cache.oracle import as_complex
from vidcache_jax.ops.attention import attention
from vidcache_jax.ops.implementations import Implementation
from vidcache_jax.ops.mosaic import reason_against_heads
from vidcache_jax.ops.rope import axis_pairs, rotate
from vidcache_jax.ops.scoring import check as soundness_of_scoring
from vidcache_jax.ops.scoring import column_means, tpu
from vidcache_jax.ops.scoring.ref import column_means as reference
from vidcache_jax.ops.scoring.table import IMPLEMENTATIONS
from vidcache_jax.sharding import make_mesh
from vidcache_jax.testing import assert_close, same_bits

B, N, T, S, H = 2, 3, 12, 150, 14
Means = collections.namedtuple("Means", "weight logit")
# Two blocks of queries and two of keys, neither of them full.
KERNEL = jax.jit(
    functools.partial(tpu.column_means, tiling=tpu.Tiling(8, 128, 128), interpret=True),
    static_argnames="ahead",
)
BOTH = pytest.mark.parametrize("scoring", [column_means, KERNEL], ids=["xla", "tpu"])


def inputs(seed=0, scale=1.0, groups=N):
    rng = np.random.default_rng(seed)
    draw = lambda count: (scale * rng.standard_normal((B, N, count, H))).astype(np.float32)
    place = lambda count: rng.integers(0, 20, (B, groups, count, 3)).astype(np.int32)
    visible = rng.random((B, groups, S)) < 0.7
    visible[..., 0] = True
    return draw(T), place(T), draw(S), place(S), visible


def means_of(arrays, scoring=column_means, **options):
    """At one step."""
    q, q_position, k, k_position, visible = map(jnp.asarray, arrays)
    return at_step(scoring(q, q_position, k, k_position, visible, **options), 0)


def at_step(means, step):
    return Means(means.weight[:, :, step], means.logit[:, :, step])


def turned(x, position):
    """Complex pairs, rotated in float64: the first by frame, then by row, then by column."""
    angles = np.concatenate(
        [
            position[..., axis, None] * 10000.0 ** (-np.arange(n) / n)
            for axis, n in enumerate(axis_pairs(x.shape[-1]))
        ],
        axis=-1,
    )
    return as_complex(x) * np.exp(1j * angles)


def oracle(q, q_position, k, k_position, visible):
    """(weight, logit), from the whole query-by-key matrix."""
    q, k = turned(q, q_position), turned(k, k_position)
    z = np.einsum("bntp,bnsp->bnts", q, k.conj()).real / np.sqrt(2 * q.shape[-1])
    seen = np.broadcast_to(visible[:, :, None], z.shape)
    z_seen = np.where(seen, z, -np.inf)
    # A query that sees no key gives no weight.
    weights = np.exp(z_seen - z_seen.max(axis=-1, keepdims=True, initial=-1e9))
    weights = weights / np.maximum(weights.sum(axis=-1, keepdims=True), 1e-300)
    return weights.mean(axis=2), np.where(seen[:, :, 0], z.mean(axis=2), 0)


def check(means, expected):
    np.testing.assert_allclose(means.weight, expected[0], rtol=0, atol=1e-6)
    np.testing.assert_allclose(means.logit, expected[1], rtol=0, atol=1e-5)
    total = np.sum(expected[0], axis=-1)
    np.testing.assert_allclose(np.sum(means.weight, axis=-1), total, rtol=1e-5)


def check_steps(scoring, given, ahead=(0,), **options):
    """Each step of a horizon as if it were alone."""
    q, q_position, *keys = given
    means = scoring(*map(jnp.asarray, given), ahead=ahead, **options)
    for step, frames in enumerate(ahead):
        moved = q_position + np.array([frames, 0, 0])
        check(at_step(means, step), oracle(q, moved, *keys))


@BOTH
@pytest.mark.parametrize("groups", [1, N])
def test_equals_the_dense_column_means(scoring, groups):
    given = inputs(groups=groups)
    check(means_of(given, scoring), oracle(*given))


@pytest.mark.parametrize("blocks", [(5, 7), (1, 150)])
def test_blocks_change_nothing(blocks):
    given = inputs(seed=1)
    means = means_of(given, reference, most_queries=blocks[0], most_keys=blocks[1])
    check(means, oracle(*given))


@jax.jit
def attended_of(q, q_position, k, k_position, visible):
    return attention(rotate(q, q_position), rotate(k, k_position), k, visible[:, :, None])


@pytest.mark.parametrize(
    "scoring", [functools.partial(reference, most_queries=4, most_keys=10), KERNEL],
    ids=["xla", "tpu"],
)  # fmt: skip
def test_known_residuals_save_a_pass_and_change_nothing(scoring):
    given = inputs(seed=2)
    means = means_of(given, scoring, attended=attended_of(*map(jnp.asarray, given)))
    check(means, oracle(*given))


@pytest.mark.parametrize(
    "scoring", [*(functools.partial(reference, most_queries=most) for most in (4, 48)), KERNEL],
    ids=["part of a step", "all steps", "tpu"],
)  # fmt: skip
def test_each_step_of_a_horizon_is_as_if_alone(scoring):
    check_steps(scoring, inputs(seed=3), ahead=(0, 1, 2, 5))


@BOTH
def test_one_winner_takes_all_without_overflow(scoring):
    given = inputs(scale=30.0)
    means = means_of(given, scoring)
    # Logits of 1e3 carry float32 rounding of 1e-4, which the exponential passes on.
    np.testing.assert_allclose(means.weight, oracle(*given)[0], atol=1e-3)


@BOTH
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
def test_invisible_keys_change_no_bit_and_receive_nothing(scoring, garbage):
    q, q_position, k, k_position, visible = inputs()
    spoilt = np.where(visible[..., None], k, np.float32(garbage))
    clean, again, other = (
        means_of((q, q_position, keys, k_position, visible), scoring) for keys in (k, k, spoilt)
    )
    assert all(map(same_bits, jax.tree.leaves(clean), jax.tree.leaves(again)))
    assert all(map(same_bits, jax.tree.leaves(clean), jax.tree.leaves(other)))
    assert not np.asarray(other.weight)[~visible].any()


@BOTH
def test_queries_that_see_nothing_give_nothing(scoring):
    """Heads that see no key at all, the first block alone, and the last alone."""
    given = inputs()
    visible = given[-1]
    visible[0, 0] = False
    visible[0, 1, 128:] = visible[0, 2, :128] = False
    check(means_of(given, scoring), oracle(*given))


def test_the_query_by_key_matrix_is_never_whole():
    """Temporaries grow with the queries and with the keys, not with their product."""
    shape = lambda tokens: jax.ShapeDtypeStruct((1, 2, tokens, 16), jnp.float32)
    place = lambda tokens: jax.ShapeDtypeStruct((1, 2, tokens, 3), jnp.int32)
    seen = jax.ShapeDtypeStruct((1, 2, 8192), jnp.bool_)
    lowered = reference.lower(shape(4096), place(4096), shape(8192), place(8192), seen)
    memory = lowered.compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < 2 * 4096 * 8192 * 4 / 10


def wan_inputs(dtype):
    """One head as wide as Wan's."""
    rng = np.random.default_rng(4)
    draw = lambda count: jnp.asarray(rng.standard_normal((1, 1, count, 128)), dtype)
    place = lambda count: jnp.asarray(rng.integers(0, 20, (1, 1, count, 3)), jnp.int32)
    return draw(T), place(T), draw(S), place(S), jnp.asarray(rng.random((1, 1, S)) < 0.7)


def check_bfloat16(scoring):
    given = wan_inputs(jnp.bfloat16)
    expected = oracle(*map(np.asarray, (given[0].astype(np.float32), given[1])),
                      *map(np.asarray, (given[2].astype(np.float32), *given[3:])))  # fmt: skip
    for actual, wanted in zip(means_of(given, scoring), expected, strict=True):
        # Weights are of the order of 1 / S.
        largest = np.max(np.abs(wanted))
        assert_close(actual / largest, wanted / largest, jnp.bfloat16)


@BOTH
def test_bfloat16(scoring):
    check_bfloat16(scoring)


def test_kernel_on_a_simulated_tpu():
    """Memory is NaN until written, reads out of bounds and races are errors."""
    given = tuple(x[:1, :1] for x in inputs())
    simulated = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    scoring = functools.partial(
        tpu.column_means, tiling=tpu.Tiling(8, 128, 128), interpret=simulated
    )
    check(means_of(given, scoring), oracle(*given))


@pytest.mark.parametrize(
    ("queries", "keys", "expected"),
    [
        (1560, 28080, (1560, 1408, 256)),
        (4680, 28080, (1560, 1408, 256)),
        (390, 28080, (392, 1408, 256)),
        (100, 300, (104, 384, 256)),
    ],
)
def test_tiling(queries, keys, expected):
    assert tpu.choose_tiling(queries, keys, 128, jnp.dtype(jnp.bfloat16)) == expected


def lowered_text(scoring, platform, num_heads=2, head_dim=128):
    array = lambda *shape, dtype=jnp.float32: jax.ShapeDtypeStruct((1, num_heads, *shape), dtype)
    place = lambda tokens: array(tokens, 3, dtype=jnp.int32)
    seen = array(S, dtype=jnp.bool_)
    given = array(T, head_dim), place(T), array(S, head_dim), place(S), seen
    return jax.jit(scoring).trace(*given).lower(lowering_platforms=(platform,)).as_text()


def weights(*given, **options):
    return column_means(*given, **options).weight


def test_none_is_the_best_for_the_platform_lowered_for():
    assert "tpu_custom_call" in lowered_text(weights, "tpu")
    assert "tpu_custom_call" not in lowered_text(weights, "cpu")
    assert "tpu_custom_call" not in lowered_text(weights, "tpu", head_dim=14)


def over_mesh(function, by_hand):
    mesh = make_mesh(data=1, heads=2, sequence=2, devices=jax.devices()[:4])
    spec = jax.sharding.PartitionSpec()
    return jax.shard_map(
        function, mesh=mesh, axis_names=by_hand, in_specs=spec, out_specs=spec, check_vma=False
    )


def test_each_chip_calls_the_kernel_on_its_heads():
    """As in `Rollout.step`: `data` by hand, heads and tokens left to the compiler."""
    text = lowered_text(over_mesh(weights, {"data"}), "tpu")
    [call] = [line for line in text.splitlines() if "@tpu_custom_call" in line]
    assert f"1x1x{S}x128xf32" in call and f"1x2x{S}x128xf32" not in call
    # Half of the twelve queries, of which a block has eight.
    assert "1x1x1x8x128xf32" in call and "1x1x1x16x128xf32" not in call
    # The compiler would have to divide the videos as well.
    assert "tpu_custom_call" not in lowered_text(over_mesh(weights, {"sequence"}), "tpu")
    named = functools.partial(weights, implementation="tpu")
    with pytest.raises(
        NotImplementedError, match="over \\['data', 'heads'\\]; call it in a jax.sh"
    ):
        lowered_text(over_mesh(named, {"sequence"}), "tpu")


def test_a_name_means_that_or_an_error_that_says_why():
    check(means_of(inputs(), implementation="xla"), oracle(*inputs()))
    with pytest.raises(ValueError, match=r"no scoring implementation 'fast'; there are \['xla'"):
        means_of(inputs(), implementation="fast")
    with pytest.raises(NotImplementedError, match="scoring on 'tpu': head_dim=14 is no multiple"):
        means_of(inputs(), implementation="tpu")


def test_a_program_is_built_without_a_kernel_that_is_wrong_here(monkeypatch):
    """It would be chosen: nothing but the check, made while tracing, stands against it."""

    def wrong(*given, ahead):
        means = reference(*given, ahead=ahead)
        return type(means)(weight=means.weight * 1.1, logit=means.logit)

    monkeypatch.setitem(IMPLEMENTATIONS, "planted", Implementation(wrong, lambda q: None, "cpu"))
    given = inputs()
    with pytest.warns(RuntimeWarning, match="scoring on 'xla' instead of 'planted': .*mean weight"):
        check(means_of(given), oracle(*given))


def test_the_check_lets_a_sound_kernel_pass():
    score = functools.partial(tpu.column_means, interpret=True)
    sound = Implementation(score, reason_against_heads, "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert soundness_of_scoring.is_sound("sound", sound, 128, jnp.bfloat16)

"""Attention with residuals and its merge, against softmax in float64 NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.ops.attention_oracle import oracle
from vidcache_jax.ops.attention import attention, merge
from vidcache_jax.testing import assert_close, same_bits

B, N, T, S, H = 2, 3, 4, 7, 6


def heads(seed, num_tokens, batch=B, scale=1.0):
    shape = (batch, N, num_tokens, H)
    return (scale * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def inputs(scale=1.0):
    return heads(0, T, scale=scale), heads(1, S, scale=scale), heads(2, S)


def mask(groups, queries, seed=0):
    visible = np.random.default_rng(seed).random((B, groups, queries, S)) < 0.6
    visible[..., 0] = True
    return visible


def check(part, expected, rows: Any = ...):
    for name, value in zip(("out", "max", "denominator"), expected, strict=True):
        actual = getattr(part, name)
        assert actual.dtype == jnp.float32
        assert_close(np.asarray(actual)[rows], value[rows], message=name)


@pytest.mark.parametrize("implementation", [None, "xla"])
@pytest.mark.parametrize(
    "visible", [None, mask(1, 1), mask(1, T), mask(N, 1), mask(N, T)],
    ids=["all", "shared", "per-query", "per-head", "per-head-and-query"],
)  # fmt: skip
def test_equals_softmax(implementation, visible):
    q, k, v = map(jnp.asarray, inputs())
    given_mask = None if visible is None else jnp.asarray(visible)
    part = attention(q, k, v, given_mask, implementation=implementation)
    check(part, oracle(q, k, v, visible))


def test_unknown_implementation_is_named():
    q, k, v = map(jnp.asarray, inputs())
    with pytest.raises(ValueError, match=r"no attention implementation 'fast'; there are \['xla'"):
        attention(q, k, v, implementation="fast")


def test_large_logits_neither_overflow_nor_lose_precision():
    q, k, v = inputs(scale=100.0)
    assert np.abs(np.einsum("bnth,bnsh->bnts", q, k)).max() > 1e4
    part = attention(*map(jnp.asarray, (q, k, v)))
    out, top, _ = oracle(q, k, v)
    assert np.isfinite(part.out).all()
    # Logits of 1e4 carry float32 rounding of 1e-3, which the exponential passes on.
    np.testing.assert_allclose(part.out, out, atol=2e-2)
    np.testing.assert_allclose(part.max, top, rtol=1e-6)


def test_bfloat16_operands_give_float32_results():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in inputs())
    part = attention(q, k, v)
    out, top, denominator = oracle(q, k, v)
    assert part.out.dtype == part.max.dtype == part.denominator.dtype == jnp.float32
    # Logits of the rounded operands are exact to float32; only the weights are rounded once more.
    assert_close(part.max, top)
    assert_close(part.denominator, denominator)
    assert_close(part.out, out, jnp.bfloat16)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("groups", [1, N])
def test_invisible_tokens_change_no_bit(garbage, groups):
    q, k, v = inputs()
    visible = mask(groups, 1)
    hidden = ~np.broadcast_to(visible[:, :, 0], (B, N, S))
    assert hidden.any()
    spoilt = [np.where(hidden[..., None], np.float32(garbage), x) for x in (k, v)]
    clean = attention(*map(jnp.asarray, (q, k, v, visible)))
    other = attention(*map(jnp.asarray, (q, *spoilt, visible)))
    assert all(map(same_bits, jax.tree.leaves(clean), jax.tree.leaves(other)))
    assert np.isfinite(other.out).all()


def test_a_query_that_sees_nothing_gets_zero():
    q, k, v = inputs()
    visible = mask(1, T)
    visible[:, :, 1] = False
    part = attention(*map(jnp.asarray, (q, k, v, visible)))
    assert not np.asarray(part.out)[:, :, 1].any()
    assert not np.asarray(part.denominator)[:, :, 1].any()
    check(part, oracle(q, k, v, visible), (slice(None), slice(None), [0, 2, 3]))


@jax.jit
def in_parts(q, k, v, visible_1, visible_2):
    """(out, max, denominator) merged in both orders."""
    first, second = attention(q, k, v, visible_1), attention(q, k, v, visible_2)
    merged = (merge(first, second), merge(second, first))
    return [(part.out, part.max, part.denominator) for part in merged]


@settings(max_examples=40)
@given(
    cut=st.integers(1, S - 1), seed=st.integers(0, 1000), scale=st.sampled_from([0.0, 1.0, 30.0])
)
def test_merge_is_attention_over_the_union(cut, seed, scale):
    q, k, v = heads(seed, T, scale=scale), heads(seed + 1, S, scale=scale), heads(seed + 2, S)
    visible = mask(N, T, seed)
    is_first = np.arange(S) < cut
    # A mask may leave the second part without a visible key; the first must pass through.
    masks = (visible & is_first, visible & ~is_first)
    expected = oracle(q, k, v, visible)
    for merged in in_parts(*map(jnp.asarray, (q, k, v, *masks))):
        # Logits of 1e3 carry rounding of 1e-4, which the exponential passes on.
        slack = 1e-3 if scale > 1 else 1e-5
        np.testing.assert_allclose(merged[0], expected[0], rtol=0, atol=slack)
        np.testing.assert_allclose(merged[1], expected[1], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(merged[2], expected[2], rtol=slack)


def test_merge_with_an_empty_part_is_the_other_part():
    q, k, v = map(jnp.asarray, inputs())
    part = attention(q, k, v)
    nothing = attention(q, k, v, jnp.zeros((B, 1, 1, S), bool))
    for merged in (merge(part, nothing), merge(nothing, part)):
        assert_close(merged.out, part.out)
        assert_close(merged.max, part.max)
        assert_close(merged.denominator, part.denominator)
    both = merge(nothing, nothing)
    assert not np.asarray(both.out).any() and not np.asarray(both.denominator).any()


def test_merge_of_three_parts_in_any_order():
    q, k, v = map(jnp.asarray, inputs())
    a, b, c = (attention(q, k[:, :, i::3], v[:, :, i::3]) for i in range(3))
    expected = oracle(q, k, v)
    check(merge(merge(a, b), c), expected)
    check(merge(a, merge(c, b)), expected)


def test_gradients_are_finite_and_those_of_the_union():
    q, k, v = map(jnp.asarray, inputs())
    # Query 0 sees nothing of the first part, as the first chunk of a clip in training.
    visible = jnp.asarray(mask(1, T)).at[:, :, 0, :3].set(False)

    def cut(q, k, v):
        first = attention(q, k[:, :, :3], v[:, :, :3], visible[..., :3])
        second = attention(q, k[:, :, 3:], v[:, :, 3:], visible[..., 3:])
        return jnp.sum(jnp.sin(merge(first, second).out))

    def whole(q, k, v):
        return jnp.sum(jnp.sin(attention(q, k, v, visible).out))

    actual = jax.jit(jax.grad(cut, argnums=(0, 1, 2)))(q, k, v)
    expected = jax.jit(jax.grad(whole, argnums=(0, 1, 2)))(q, k, v)
    for one, two in zip(actual, expected, strict=True):
        assert np.isfinite(one).all() and np.abs(two).max() > 1e-3
        assert_close(one, two)


def test_heads_and_videos_are_independent():
    q, k, v = inputs()
    whole = attention(*map(jnp.asarray, (q, k, v)))
    for b, n in np.ndindex(B, N):
        own = lambda x, b=b, n=n: jnp.asarray(x[b : b + 1, n : n + 1])
        single = attention(own(q), own(k), own(v))
        assert_close(single.out[0, 0], whole.out[b, n])


def test_works_under_jit_and_vmap():
    q, k, v = (jnp.stack([jnp.asarray(x), 2 * jnp.asarray(x)]) for x in inputs())
    out = jax.jit(jax.vmap(lambda q, k, v: attention(q, k, v).out))(q, k, v)
    for i in range(2):
        assert_close(out[i], oracle(q[i], k[i], v[i])[0])

"""The safety nets that conftest.py and pyproject.toml stretch are really there."""

import warnings

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from vidcache_jax.ops.attention import attention


def test_eight_devices():
    assert jax.device_count() == 8


def test_promotion_is_explicit():
    with pytest.raises(jax.dtypes.TypePromotionError):
        _ = jnp.zeros((2,), jnp.float32) + jnp.zeros((2,), jnp.bfloat16)
    with pytest.raises(ValueError, match="rank_promotion"):
        _ = jnp.zeros((2, 2)) + jnp.zeros((2,))


def test_warnings_are_errors():
    with pytest.raises(UserWarning):
        warnings.warn("of anything", stacklevel=1)


def test_annotated_shapes_are_checked():
    q, k = jnp.zeros((1, 2, 3, 4)), jnp.zeros((1, 2, 5, 4))
    attention(q, k, k)
    with pytest.raises(TypeCheckError):
        attention(q, k, k[:, :1])

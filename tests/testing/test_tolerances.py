import jax.numpy as jnp
import numpy as np
import pytest

from vidcache_jax.testing import assert_close, same_bits, tolerance


def test_the_table_is_read_by_dtype():
    assert tolerance(jnp.float32) == {"atol": 1e-5, "rtol": 1e-5}
    assert tolerance("bfloat16") == {"atol": 2e-2, "rtol": 1e-2}
    assert tolerance(np.dtype(np.float16)) == {"atol": 5e-3, "rtol": 1e-3}


def test_a_dtype_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no tolerance for float64; there are"):
        tolerance(np.float64)


def test_assert_close_takes_the_tolerance_of_the_dtype():
    assert_close(jnp.asarray([1.01], jnp.bfloat16), np.ones(1), jnp.bfloat16)
    with pytest.raises(AssertionError, match="^the name: "):
        assert_close(jnp.asarray([1.01]), np.ones(1), message="the name")
    with pytest.raises(AssertionError, match="shapes"):
        assert_close(np.ones(2), np.ones(1))


def test_same_bits():
    nan = np.asarray([np.nan, 0.0], np.float32)
    assert same_bits(nan, nan.copy())
    assert not same_bits(nan, np.asarray([np.nan, -0.0], np.float32))
    assert not same_bits(np.zeros(2, np.float32), np.zeros(2, np.int32))
    assert not same_bits(np.zeros(2), np.zeros((2, 1)))

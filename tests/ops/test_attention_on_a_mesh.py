"""Kernels under a mesh whose axes the compiler divides: each chip calls one on its own part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidcache_jax.ops.attention import attention
from vidcache_jax.sharding import make_mesh

MESH = make_mesh(data=1, heads=2, sequence=2, devices=jax.devices()[:4])
T, S, K, H = 128, 256, 4, 128


def mapped(function):
    """As in `Rollout.step`: `data` by hand, heads and tokens left to the compiler."""
    spec = jax.sharding.PartitionSpec()
    return jax.jit(
        jax.shard_map(
            function, mesh=MESH, axis_names={"data"}, in_specs=spec, out_specs=spec,
            check_vma=False,
        )
    )  # fmt: skip


@pytest.mark.parametrize("divided", ["heads", "tokens"])
@pytest.mark.parametrize("tables", [1, 2], ids=["slots-for-all-heads", "slots-per-head"])
def test_each_chip_calls_a_kernel_on_its_part(divided, tables):
    rng = np.random.default_rng(0)
    q, k, v = (
        jnp.asarray(rng.standard_normal((1, 2, tokens, H)), jnp.float32) for tokens in (T, S, S)
    )
    slots = jnp.asarray(rng.random((1, tables, K)) < 0.7).at[..., 0].set(True)
    attend = mapped(lambda q, k, v, slots: attention(q, k, v, slots=slots, divided=divided))
    expected, actual = attention(q, k, v, slots=slots), attend(q, k, v, slots)
    for name in ("out", "max", "denominator"):
        np.testing.assert_allclose(
            getattr(actual, name), getattr(expected, name), rtol=1e-5, atol=1e-5, err_msg=name
        )
    text = attend.trace(q, k, v, slots).lower(lowering_platforms=("tpu",)).as_text()
    [call] = [line for line in text.splitlines() if "@tpu_custom_call" in line]
    # A chip's kernel takes half of the queries, or a quarter, and the keys of its heads or all.
    heads, queries = (1, T // 2) if divided == "heads" else (2, T // 4)
    assert f"1x{heads}x{queries}x{H}xf32" in call and f"1x{heads}x{S}x{H}xf32" in call

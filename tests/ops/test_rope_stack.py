"""RoPE of stacks: every implementation against complex numbers in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from tests.ops.test_rope import turned
from vidcache_jax.ops.rope_stack import ref, rotate_stack, tpu
from vidcache_jax.ops.rope_stack.check import is_sound
from vidcache_jax.ops.rope_stack.table import IMPLEMENTATIONS
from vidcache_jax.sharding import make_mesh
from vidcache_jax.testing import assert_close, same_bits

L, B, N, S, H = 2, 2, 3, 300, 128
KERNEL = functools.partial(tpu.rotate_stack, tokens=128, interpret=True)
FUNCTIONS = {"xla": jax.jit(ref.rotate_stack), "tpu": jax.jit(KERNEL)}


def example(videos, groups, dtype=np.float32):
    random = np.random.default_rng(videos + groups)
    # Of a video of twenty years, and of its first minutes.
    frames = random.choice([0, 1, 20, 1023, 60_000, 10**9, 2**31 - 1], (L, videos, groups, S, 1))
    places = random.integers(0, 104, (L, videos, groups, S, 2))
    positions = np.concatenate([frames, places], axis=-1).astype(np.int32)
    return jnp.asarray(random.normal(size=(L, B, N, S, H)), dtype), jnp.asarray(positions)


def factors(tokens):
    """complex128 [S, 64]: what each pair of a token turns by, 22, 21 and 21 for the axes."""
    angles = [
        np.asarray(tokens, np.float64)[:, [axis]] * 10000.0 ** (-np.arange(pairs) / pairs)
        for axis, pairs in enumerate((22, 21, 21))
    ]
    return np.exp(1j * np.concatenate(angles, axis=1))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("videos", "groups"), [(1, 1), (B, N)], ids=["shared", "own"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_complex_factors(name, videos, groups, dtype):
    """Blocks of tokens of which the last is not full; positions of all heads, or of each."""
    x, positions = example(videos, groups, dtype)
    actual = FUNCTIONS[name](x, positions)
    assert actual.dtype == dtype
    for l, b, n in np.ndindex(L, B, N):
        own = positions[l, b if videos > 1 else 0, n if groups > 1 else 0]
        expected = turned(np.asarray(x[l, b, n], np.float64), factors(own))
        # An angle is right to 1e-5, and so is what it turns.
        error = np.abs(np.asarray(actual[l, b, n], np.float64) - expected)
        assert error.max() < (5e-5 if dtype == jnp.float32 else 2e-2)
    if dtype == jnp.float32:
        assert_close(actual, FUNCTIONS["xla"](x, positions))


def test_on_a_simulated_tpu():
    """Memory is NaN until written, reads out of bounds and races are errors."""
    x, positions = (each[:1, :1, :2] for each in example(1, 1))
    simulated = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    # Whole blocks: what lies beyond the last token is nobody's.
    x, positions = x[..., :256, :], positions[..., :256, :]
    actual = tpu.rotate_stack(x, positions, tokens=128, interpret=simulated)
    assert same_bits(actual, KERNEL(x, positions))


def test_each_chip_turns_the_keys_of_its_heads(monkeypatch):
    x, positions = example(1, 1)
    shapes = []

    def kernel(*given):
        shapes.append([each.shape for each in given])
        return ref.rotate_stack(*given)

    monkeypatch.setitem(IMPLEMENTATIONS, "tpu", IMPLEMENTATIONS["tpu"]._replace(call=kernel))
    mesh = make_mesh(data=1, heads=3, sequence=2, devices=jax.devices()[:6])
    spec = jax.sharding.PartitionSpec()
    call = functools.partial(rotate_stack, implementation="tpu")
    over_mesh = jax.shard_map(
        call, mesh=mesh, axis_names={"data"}, in_specs=spec, out_specs=spec, check_vma=False
    )
    actual = jax.jit(over_mesh)(x, positions)
    assert shapes == [[(L, B, 1, S, H), positions.shape]]
    assert same_bits(actual, FUNCTIONS["xla"](x, positions))


def test_a_name_means_that_or_an_error_that_says_why():
    x, positions = example(1, 1)
    with pytest.raises(NotImplementedError, match="head_dim=64 is not 128"):
        rotate_stack(x[..., :64], positions, implementation="tpu")
    with pytest.raises(NotImplementedError, match="bfloat16 or float32 is needed"):
        rotate_stack(x.astype(jnp.float16), positions, implementation="tpu")
    with pytest.raises(ValueError, match="no rotate_stack implementation 'gpu'"):
        rotate_stack(x, positions, implementation="gpu")


def test_none_is_the_kernel_on_tpus_alone():
    traced = jax.jit(rotate_stack).trace(*example(1, 1, jnp.bfloat16))
    assert "rotate_stack" in traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" not in traced.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize("factor", [1.0, 1.1])
def test_a_wrong_kernel_is_not_chosen(factor):
    kernel = IMPLEMENTATIONS["tpu"]._replace(
        call=lambda *given: factor * ref.rotate_stack(*given), platform="cpu"
    )
    if factor == 1:
        assert is_sound("planted", kernel, H, jnp.float32)
        return
    with pytest.warns(RuntimeWarning, match="rotate_stack on 'xla' instead of 'planted': .*0.1"):
        assert not is_sound("planted", kernel, H, jnp.float32)

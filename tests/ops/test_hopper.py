"""The kernel for Hopper GPUs: which keys it visits, its body interpreted, and lowered for CUDA.

The interpreter simulates shared memory, the barriers and copies between it and the GPU's memory,
and warpgroups as threads. What it cannot do are products of matrices in registers' layouts, for
which plain ones stand in.
"""

import dataclasses
import functools
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import core
from jax._src.pallas.mosaic.interpret import thread_map
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from tests.ops.test_attention_implementations import check, expectation, normal
from vidcache_jax.ops.attention import attention, hopper
from vidcache_jax.ops.attention.keys import Keys
from vidcache_jax.ops.attention.ranges import cover, short_values
from vidcache_jax.testing import same_bits

K, P, SIZE = 4, 24, 16
S = K * P
LENGTHS = st.sampled_from([0, 1, 15, 16, 17, 24, 25, 47, 60, S - 1, S])


@settings(max_examples=40)
@given(
    slots=st.none() | st.lists(st.booleans(), min_size=2 * K, max_size=2 * K),
    lengths=st.none() | st.lists(LENGTHS, min_size=2, max_size=2),
    has_bias=st.booleans(),
)
def test_blocks_meet_what_counts_once(slots, lengths, has_bias):
    stored = normal(0, 1, 2, S, 8)
    keys = Keys(
        k=stored,
        v=stored,
        slots=None if slots is None else jnp.array(slots).reshape(1, 2, K),
        lengths=None if lengths is None else jnp.array(lengths, jnp.int32).reshape(1, 2),
        bias=normal(1, 1, 2, K) if has_bias else None,
    )
    blocks = covered(keys)
    mask, bias = keys.mask(), keys.key_bias()
    counts = np.ones((2, S), bool) if mask is None else np.broadcast_to(mask[0, :, 0], (2, S))
    own = lambda table, head: np.asarray(table)[0, head if table.shape[1] > 1 else 0]
    short = np.asarray(shortened(keys, blocks))
    for head in range(2):
        met, added = np.zeros(S, int), np.zeros(S)
        count, whole, low, high = (own(x, head) for x in (*blocks[1::-1], *blocks[3:5]))
        assert np.all((high - low == SIZE)[:count] == (np.arange(count) < whole))
        assert own(blocks.is_short, head).sum() <= 1
        for step in range(count):
            start = own(blocks.start, head)[step]
            seen = slice(start + low[step], start + high[step])
            met[seen] += 1
            added[seen] += own(blocks.bias, head)[step]
            block = slice(start, start + SIZE)
            if own(blocks.is_short, head)[step]:
                values = np.where(counts[head, block, None], keys.v[0, head, block], 0)
                assert not short[0, head, : low[step]].any()
                assert np.array_equal(short[0, head, low[step] : high[step]],
                                      values[low[step] : high[step]])  # fmt: skip
                assert not short[0, head, high[step] :].any()
            else:
                # Nothing hidden is multiplied, whatever it holds.
                assert counts[head, block].all()
        assert np.array_equal(met, counts[head])
        if bias is not None:
            np.testing.assert_allclose(added, np.where(met, bias[0, head, 0], 0))


covered = jax.jit(functools.partial(cover, size=SIZE))
shortened = jax.jit(functools.partial(short_values, size=SIZE))


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch):
    """The interpreter would compile a program anew for every block and warpgroup."""
    lock, programs = threading.Lock(), {}

    def run_jaxpr(jaxpr, consts, *args):
        with lock:
            if jaxpr not in programs:
                run = jax.jit(lambda consts, *args: core.eval_jaxpr(jaxpr, consts, *args))
                programs[jaxpr] = run.lower(consts, *args).compile()
        programs[jaxpr](consts, *args)

    monkeypatch.setattr(thread_map, "_run_jaxpr", run_jaxpr)


def interpreted(q, keys, parts=1, **options):
    tiling = hopper.Tiling(keys=SIZE, parts=parts)
    return hopper.attention(q, keys, tiling, interpret=InterpretGPUParams(**options))


def keys_of(num_heads, head_dim=64, dtype=np.float32, **conditions):
    k, v = (normal(seed, 2, 1, num_heads, S, head_dim, dtype=dtype) for seed in (1, 2))
    return Keys(k, v, jnp.ones((), jnp.int32), **conditions)


def test_equals_softmax():
    """Slots, lengths and bias of heads that differ; two blocks of queries, parts of the keys."""
    q = normal(0, 1, 2, 150, 64)
    slots = jnp.array([[[True, False, True, True], [True, True, True, False]]])
    lengths = jnp.array([[S, 29]], jnp.int32)
    keys = keys_of(2, slots=slots, lengths=lengths, bias=normal(3, 1, 2, K))
    check(interpreted(q, keys, parts=2, detect_races=True), expectation(q, keys))
    assert not interpret_pallas_call.get_races().races_found


def test_bfloat16_of_a_head_that_sees_nothing_and_few_queries():
    q = normal(0, 1, 2, 20, 128, dtype=jnp.bfloat16)
    slots = jnp.array([[[False] * K, [False, True, True, False]]])
    keys = keys_of(2, 128, jnp.bfloat16, slots=slots)
    check(interpreted(q, keys), expectation(q, keys), jnp.bfloat16)


def test_keys_that_do_not_count_change_no_bit():
    """Two whole slots, a hidden one, and 5 keys that are less than a block."""
    q, lengths = normal(0, 1, 1, 128, 64), jnp.array([[3 * P + 5]], jnp.int32)
    keys = keys_of(1, lengths=lengths, slots=jnp.array([[[True, True, False, True]]]))
    hidden = ~np.asarray(keys.mask())[0, 0, 0]
    attend = jax.jit(interpreted)
    spoil = lambda x: x.at[:, :, :, hidden].set(jnp.nan).at[0].set(jnp.nan)
    spoilt = dataclasses.replace(keys, k=spoil(keys.k), v=spoil(keys.v))
    clean, again, other = (attend(q, each) for each in (keys, keys, spoilt))
    assert all(map(same_bits, jax.tree.leaves(clean), jax.tree.leaves(again)))
    assert all(map(same_bits, jax.tree.leaves(clean), jax.tree.leaves(other)))
    check(other, expectation(q, keys))


@pytest.mark.parametrize(("num_layers", "num_heads"), [(30, 12), (40, 40)], ids=["1.3B", "14B"])
@pytest.mark.parametrize("of", ["slots", "lengths"])
def test_lowers_for_cuda_at_the_shapes_of_wan(num_layers, num_heads, of):
    """The stack of all layers goes into the kernel as it is."""
    array = lambda dtype, *shape: jax.ShapeDtypeStruct((1, num_heads, *shape), dtype)
    stack = jax.ShapeDtypeStruct((num_layers, 1, num_heads, 21 * 1560, 128), jnp.bfloat16)
    given = {"slots": array(jnp.bool, 21), "lengths": array(jnp.int32)}[of]
    attend = lambda q, k, v, layer, given: attention(
        q, k, v, layer=layer, implementation="hopper", **{of: given}
    )
    q = array(jnp.bfloat16, 4680, 128)
    traced = jax.jit(attend).trace(q, stack, stack, jax.ShapeDtypeStruct((), jnp.int32), given)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("custom_call @mosaic_gpu") == 1
    is_stack = f"tensor<{num_layers}x1x{num_heads}x32760x128xbf16>"
    users = [line for line in text.splitlines() if is_stack in line and "func.func" not in line]
    # Of lengths a block of values at the end of each head is copied, and no more.
    assert sum("custom_call" not in line for line in users) == (1 if of == "lengths" else 0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(visible=jnp.ones((1, 1, 1, S), bool)), "mask per query or per key"),
        (dict(q=jnp.zeros((1, 1, 8, 128))), "one dtype"),
        (dict(slots=jnp.ones((1, 1, S), bool)), "slots of 1 keys are less than a block of 128"),
        (dict(), "no more than 96 keys are less than a block of 128"),
    ],
)
def test_what_it_cannot_do_is_said(changes, reason):
    x = jnp.zeros((1, 1, S, 128), jnp.bfloat16)
    arguments = {"q": x, "k": x, "v": x, **changes}
    with pytest.raises(NotImplementedError, match=f"attention on 'hopper': .*{reason}"):
        attention(**arguments, implementation="hopper")


def test_a_machine_without_a_gpu_is_named():
    x = jnp.zeros((1, 1, 128, 128), jnp.bfloat16)
    with pytest.raises((NotImplementedError, ValueError), match="cpu|CPU"):
        attention(x, x, x, implementation="hopper")


def test_keys_are_cut_where_that_fills_the_multiprocessors():
    # 37 blocks of Wan's queries: 3.36 turns of 132 for 12 heads, 6.73 for two videos of them.
    assert [hopper.choose_parts(37 * heads) for heads in (12, 24)] == [2, 1]

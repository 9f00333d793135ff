"""Every implementation against the oracle, by one test body.

The TPU kernel is interpreted, in tiles so small that every case has several and ragged ones. For
cuDNN, which needs a GPU, another attention stands in: what is tested is what is made of its
arguments and results.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu

from tests.ops.attention_oracle import oracle
from vidcache_jax.ops.attention import (
    api,
    attention,
    check_implementation,
    gpu,
    merge,
    ref,
    tpu,
    xla,
)
from vidcache_jax.ops.attention.keys import Keys
from vidcache_jax.testing import assert_close, same_bits

L, B, N, T, H = 2, 2, 3, 150, 64
K, P = 3, 24
S = K * P
LAYER = 1


def stand_in(q, k, v, lengths):
    """What cuDNN is asked for, on any device; poisonous where nothing is promised of it."""
    if lengths is None:
        part = ref.attention(q, k, v)
        return part.out, part.max + jnp.log(part.denominator)
    visible = jnp.arange(k.shape[2], dtype=jnp.int32)[None] < lengths[:, None]
    part = ref.attention(q, k, v, visible[:, None, None])
    poison = jnp.where(lengths > 0, 0.0, jnp.nan)[:, None, None]
    return part.out + poison[..., None], part.max + jnp.log(part.denominator) + poison


KERNEL = functools.partial(tpu.attention, interpret=True)


def kernel_in_tiles(q, keys):
    """Two blocks of queries; blocks of keys ragged at the end, or three of them in a slot."""
    tiling = tpu.Tiling(queries=128, keys=32 if keys.num_runs == 1 else 8, piece=16)
    return KERNEL(q, keys, tiling=tiling)


IMPLEMENTATIONS = {
    "xla": xla.attention,
    "xla in chunks": functools.partial(xla.attention, logits_nbytes=4 * B * N * T * 10),
    "tpu": KERNEL,
    "tpu in tiles": kernel_in_tiles,
    "gpu": functools.partial(gpu.attention, fused=stand_in),
}


def normal(seed, *shape, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def stacks(dtype=np.float32):
    """Queries, keys and values; keys and values of two layers."""
    return (
        normal(0, B, N, T, H, dtype=dtype),
        normal(1, L, B, N, S, H, dtype=dtype),
        normal(2, L, B, N, S, H, dtype=dtype),
    )


def expectation(q, keys):
    k, v = (x if keys.layer is None else x[int(keys.layer)] for x in (keys.k, keys.v))
    return oracle(q, k, v, keys.mask(), keys.key_bias())


def check(part, expected, dtype=jnp.float32):
    """out and the sum of exponentials; and the maximum, from those who know it."""
    out, top, denominator = expected
    sees = denominator > 0
    assert {x.dtype for x in jax.tree.leaves(part)} == {jnp.dtype(jnp.float32)}
    assert np.array_equal(np.asarray(part.denominator) > 0, sees)
    assert_close(part.out, out, dtype, "out")
    with np.errstate(divide="ignore"):
        actual = np.asarray(part.max, np.float64) + np.log(part.denominator, dtype=np.float64)
        assert_close(actual[sees], (top + np.log(denominator))[sees], message="log-sum-exp")


@functools.cache
def compiled(name):
    return jax.jit(IMPLEMENTATIONS[name])


def random_keys(seed, layer=False, lengths=False, slots=0, bias=False, groups=1):
    random = np.random.default_rng(seed)
    k, v = stacks()[1:]
    of_heads = (B, groups)
    return Keys(
        k if layer else k[LAYER],
        v if layer else v[LAYER],
        layer=jnp.asarray(LAYER, jnp.int32) if layer else None,
        lengths=jnp.asarray(random.integers(0, S + 1, of_heads), jnp.int32) if lengths else None,
        slots=jnp.asarray(random.random((*of_heads, slots)) < 0.6) if slots else None,
        bias=normal(seed, *of_heads, K) if bias else None,
    )


CASES = {
    "all": dict(),
    "slots": dict(slots=K),
    "slots-per-head": dict(layer=True, slots=K, groups=N),
    "tokens-per-head": dict(layer=True, slots=S, groups=N),
    "lengths-per-head": dict(layer=True, lengths=True, groups=N),
    "slots-lengths-and-bias": dict(layer=True, slots=K, lengths=True, bias=True, groups=N),
}
TESTED = {
    "xla": ["slots-lengths-and-bias"],
    "xla in chunks": list(CASES),
    "tpu": ["slots", "tokens-per-head"],
    "tpu in tiles": list(CASES),
    "gpu": ["all", "slots", "slots-per-head", "lengths-per-head"],
}
PAIRS = [(name, case) for name, cases in TESTED.items() for case in cases]
THOROUGHLY = ["xla in chunks", "tpu in tiles", "gpu"]


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_equals_softmax(name, case):
    q = stacks()[0]
    for seed in range(3):
        keys = random_keys(seed, **CASES[case])
        check(compiled(name)(q, keys), expectation(q, keys))


LENGTHS = st.sampled_from([0, 1, 7, 8, 9, 31, 32, 33, S - 1, S])


@pytest.mark.parametrize("name", THOROUGHLY)
@settings(max_examples=12)
@given(lengths=st.lists(LENGTHS, min_size=B * N, max_size=B * N))
def test_ragged_lengths(name, lengths):
    keys = random_keys(0, layer=True, lengths=True, groups=N)
    keys = dataclasses.replace(keys, lengths=jnp.asarray(lengths, jnp.int32).reshape(B, N))
    q = stacks()[0]
    check(compiled(name)(q, keys), expectation(q, keys))


@pytest.mark.parametrize("garbage", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("case", ["slots-per-head", "tokens-per-head", "lengths-per-head"])
@pytest.mark.parametrize("name", THOROUGHLY)
def test_keys_that_do_not_count_change_no_bit(name, case, garbage):
    q = stacks()[0]
    keys = random_keys(1, **CASES[case])
    mask = keys.mask()
    assert mask is not None
    hidden = ~np.broadcast_to(mask[:, :, 0], (B, N, S))
    # Another layer is hidden as a whole.
    hidden = np.stack([np.ones_like(hidden) if l != LAYER else hidden for l in range(L)])
    spoil = lambda x: jnp.where(jnp.asarray(hidden)[..., None], jnp.float32(garbage), x)
    spoilt = dataclasses.replace(keys, k=spoil(keys.k), v=spoil(keys.v))
    clean, again, other = (compiled(name)(q, each) for each in (keys, keys, spoilt))
    assert all(map(same_bits, jax.tree.leaves(clean), jax.tree.leaves(again)))
    assert all(map(same_bits, jax.tree.leaves(clean), jax.tree.leaves(other)))
    assert np.isfinite(other.out).all()


@pytest.mark.parametrize("name", THOROUGHLY)
def test_parts_merge_to_attention_over_the_union(name):
    """The past, of which a video and a head may see nothing, and the chunk's own keys."""
    q, own_k, own_v = stacks()[0], normal(3, B, N, 40, H), normal(4, B, N, 40, H)
    past = random_keys(2, **CASES["slots-per-head"])
    assert past.slots is not None
    past = dataclasses.replace(past, slots=past.slots.at[0, 1].set(False))
    past_mask = past.mask()
    assert past_mask is not None
    first = compiled(name)(q, past)
    second = compiled(name)(q, Keys(own_k, own_v))
    whole = Keys(
        jnp.concatenate([past.k[LAYER], own_k], axis=2),
        jnp.concatenate([past.v[LAYER], own_v], axis=2),
        visible=jnp.concatenate([past_mask, jnp.ones((B, N, 1, 40), bool)], axis=-1),
    )
    check(merge(first, second), expectation(q, whole))


@pytest.mark.parametrize(
    ("name", "num_heads"), [("xla in chunks", 40), ("tpu", 12), ("tpu", 40), ("gpu", 12)]
)
def test_bfloat16_with_the_heads_of_wan(name, num_heads):
    make = lambda seed, tokens: normal(seed, 1, num_heads, tokens, 128, dtype=jnp.bfloat16)
    q, k, v = make(0, 24), make(1, 48), make(2, 48)
    keys = Keys(k, v, slots=jnp.array([[[True, False, True]]]))
    part = compiled(name)(q, keys)
    check(part, expectation(q, keys), jnp.bfloat16)


@pytest.mark.parametrize("name", ["xla in chunks", "tpu"])
def test_gradient(name):
    """Chunks, and kernels that have none of their own, against the definition at once."""
    keys = random_keys(0, **CASES["slots-lengths-and-bias"])

    def gradient(attend):
        def loss(q, k, v, bias):
            part = attend(q, dataclasses.replace(keys, k=k, v=v, bias=bias))
            own = attend(q, Keys(k[0], v[0]))
            return jnp.sum(jnp.sin(merge(part, own).out))

        arguments = (stacks()[0], keys.k, keys.v, keys.bias)
        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*arguments)

    attend = IMPLEMENTATIONS[name]
    attend = xla.with_gradient(attend) if name == "tpu" else attend
    for one, two in zip(gradient(attend), gradient(IMPLEMENTATIONS["xla"]), strict=True):
        assert np.abs(two).max() > 1e-3
        assert_close(one, two)


@pytest.mark.parametrize("name", ["xla in chunks", "tpu in tiles", "gpu"])
def test_vmap(name):
    """Over everything, tables and layer included."""
    both = [random_keys(seed, **CASES["slots-per-head"]) for seed in range(2)]
    both[1] = dataclasses.replace(both[1], layer=jnp.zeros((), jnp.int32))
    mapped = [jnp.stack([getattr(keys, x) for keys in both]) for x in ("k", "v", "layer", "slots")]
    q = jnp.stack([stacks()[0], normal(5, B, N, T, H)])

    def attend(q, k, v, layer, slots):
        part = IMPLEMENTATIONS[name](q, Keys(k, v, layer, slots=slots))
        return part.out, part.max, part.denominator

    results = jax.jit(jax.vmap(attend))(q, *mapped)
    for i in range(2):
        check(ref.AttentionPart(*(x[i] for x in results)), expectation(q[i], both[i]))


def test_kernel_on_a_simulated_tpu():
    """Memory is NaN until written, reads out of bounds and races are errors."""
    q, k, v = stacks()
    lengths = jnp.array([[17, S]], jnp.int32)
    keys = Keys(k[:, :1, :2], v[:, :1, :2], jnp.asarray(LAYER, jnp.int32), lengths=lengths)
    q = q[:1, :2]
    simulated = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    tiling = tpu.Tiling(queries=128, keys=32, piece=16)
    check(tpu.attention(q, keys, tiling, interpret=simulated), expectation(q, keys))


def test_kernel_visits_only_blocks_that_count():
    slots = jnp.array([[[True, False, True], [False, False, False], [False, True, False]]])
    k = jnp.zeros((1, 3, 48, H))
    visits = tpu.plan_visits(Keys(k, k, slots=slots, bias=jnp.array([[[1.0, 2.0, 3.0]]])), 8)
    assert visits.count.tolist() == [[4, 0, 2]]
    assert visits.block[0, 0, :4].tolist() == [0, 1, 4, 5]
    assert visits.block[0, 2, :2].tolist() == [2, 3]
    assert visits.bias[0, 0, :4].tolist() == [1, 1, 3, 3]
    visits = tpu.plan_visits(Keys(k, k, lengths=jnp.array([[17]], jnp.int32)), 8)
    assert visits.count.tolist() == [[3]] and visits.length[0, 0].tolist() == [8, 8, 1, 0, 0, 0]


@pytest.mark.parametrize(
    ("queries", "keys", "expected"),
    [
        (4680, dict(num_keys=32760, num_runs=21), (1664, 1560, 512)),
        (4680, dict(num_keys=4680), (1664, 1560, 512)),
        (4680, dict(num_keys=512), (1664, 512, 512)),
        (100, dict(num_keys=1009), (128, 1016, 512)),
        (100, dict(num_keys=30011), (128, 2048, 512)),
    ],
)
def test_tiling(queries, keys, expected):
    """Slots of Wan's frames are one block; keys without a handy divisor end in a ragged one."""
    k = jnp.zeros((1, 1, keys["num_keys"], 1))
    slots = jnp.ones((1, 1, keys["num_runs"]), bool) if "num_runs" in keys else None
    q = jnp.zeros((1, 1, queries, 128), jnp.bfloat16)
    assert tpu.choose_tiling(q, Keys(k, k, slots=slots)) == expected


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("tpu", dict(visible=jnp.ones((1, 1, 1, S), bool)), "mask per query or per key"),
        ("tpu", dict(k=jnp.zeros((B, N, S, H), jnp.bfloat16)), "one dtype"),
        ("tpu", dict(), "head_dim=64 is no multiple of 128"),
        ("gpu", dict(visible=jnp.ones((1, 1, 1, S), bool)), "mask per query or per key"),
        ("gpu", dict(bias=jnp.ones((1, 1, 3))), "bias"),
        ("gpu", dict(), "bfloat16 or float16 is needed"),
    ],
)
def test_a_name_means_that_or_an_error_that_says_why(name, changes, reason):
    q, k, v = stacks()
    arguments = {"k": k[0], "v": v[0], **changes}
    with pytest.raises(NotImplementedError, match=f"attention on '{name}': .*{reason}"):
        attention(q, **arguments, implementation=name)
    # None can do it all.
    assert np.isfinite(attention(q, **arguments).out).all()


def test_tiny_heads_and_missing_gpus_are_named():
    q = jnp.zeros((1, 1, 8, 12))
    with pytest.raises(NotImplementedError, match="head_dim=12 is no multiple of 128"):
        attention(q, q, q, implementation="tpu")
    q = jnp.zeros((1, 1, 24, 128), jnp.bfloat16)
    slots = jnp.ones((1, 1, 2), bool)
    with pytest.raises(NotImplementedError, match="slots of 12 keys do not end at a multiple of 8"):
        attention(q, q, q, slots=slots, implementation="tpu")
    slots, bias = jnp.ones((1, 1, 24), bool), jnp.ones((1, 1, 24))
    with pytest.raises(NotImplementedError, match="a bias of single keys is not supported"):
        attention(q, q, q, slots=slots, bias=bias, implementation="tpu")
    with pytest.raises(NotImplementedError, match="cuDNN is not detected.* NVIDIA GPU"):
        attention(q, q, q, implementation="gpu")
    with pytest.raises(ValueError, match="interpret mode is supported on CPU"):
        attention(q, q, q, implementation="tpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(layer=jnp.zeros((), jnp.int32)), "has no axis for a layer"),
        (dict(slots=jnp.ones((1, 1, 5), bool)), "slots of 5 slots do not divide 72 keys"),
        # What tests check of shapes (jaxtyping) notices this before the call does.
        (
            dict(slots=jnp.ones((1, 1, 4), bool), bias=jnp.ones((1, 1, 3))),
            "different|parameter 'bias'",
        ),
    ],
)
def test_shapes_that_do_not_fit(arguments, message):
    q, k, v = stacks()
    with pytest.raises((ValueError, TypeError), match=message):
        attention(q, k[0], v[0], **arguments)


def lowered_text(platform, head_dim, implementation=None):
    q = jax.ShapeDtypeStruct((1, 2, 256, head_dim), jnp.bfloat16)
    k = jax.ShapeDtypeStruct((2, 1, 2, 1024, head_dim), jnp.bfloat16)
    slots = jax.ShapeDtypeStruct((1, 2, 4), jnp.bool)
    attend = lambda q, k, layer, slots: attention(
        q, k, k, layer=layer, slots=slots, implementation=implementation
    )
    traced = jax.jit(attend).trace(q, k, jax.ShapeDtypeStruct((), jnp.int32), slots)
    return traced.lower(lowering_platforms=(platform,)).as_text()


def test_none_is_the_best_for_the_platform_lowered_for():
    assert "tpu_custom_call" in lowered_text("tpu", 128)
    assert "tpu_custom_call" not in lowered_text("cpu", 128)
    assert "tpu_custom_call" not in lowered_text("tpu", 12)
    assert "dot_general" in lowered_text("tpu", 12)


@pytest.mark.parametrize("by_hand", [{"data"}, {"data", "heads"}], ids=["data", "data-and-heads"])
def test_a_mesh_that_the_compiler_divides_gets_no_kernel(by_hand):
    """Mosaic kernels cannot be divided by the compiler; within a whole shard_map there is one."""
    mesh = jax.make_mesh((2, 2), ("data", "heads"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    spec = jax.sharding.PartitionSpec("data", "heads" if "heads" in by_hand else None)
    is_whole = by_hand == {"data", "heads"}

    def lowered(implementation):
        attend = lambda q, k: attention(q, k, k, implementation=implementation).out
        mapped = jax.shard_map(
            attend, mesh=mesh, axis_names=by_hand, in_specs=spec, out_specs=spec, check_vma=False
        )
        q = jax.ShapeDtypeStruct((2, 2, 128, 128), jnp.bfloat16)
        traced = jax.jit(mapped).trace(q, q)
        return traced.lower(lowering_platforms=("tpu",)).as_text()

    assert ("tpu_custom_call" in lowered(None)) == is_whole
    if not is_whole:
        with pytest.raises(
            NotImplementedError, match="over \\['heads'\\]; call it in a jax.shard_map"
        ):
            lowered("tpu")


def test_cudnn_call_lowers_for_cuda(monkeypatch):
    """As on a machine with cuDNN 9.10; the residual is float32, the mask is by lengths."""
    cudnn = gpu._cudnn_module()
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    text = lowered_text("cuda", 128)
    assert "__cudnn$fmhaSoftmax" in text
    assert "PADDING" in text
    assert "tensor<2x1x256xf32>" in text
    assert "__cudnn" not in lowered_text("tpu", 128)


def test_chunks_hold_neither_all_logits_nor_a_layer():
    """At the size of Wan 1.3B, compiled and not run."""
    bytes_of_layer = 2 * 12 * 32760 * 128 * 4
    bytes_of_logits = 4 * 12 * 4680 * 32760
    array = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    stack = array(30, 1, 12, 32760, 128)

    def attend(q, k, v, layer):
        return xla.attention(q, Keys(k, v, layer)).out

    arguments = (array(1, 12, 4680, 128), stack, stack, jax.ShapeDtypeStruct((), jnp.int32))
    memory = jax.jit(attend).lower(*arguments).compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < bytes_of_layer < bytes_of_logits / 18


def planted(change):
    wrong = lambda q, keys: change(xla.attention(q, keys), q, keys)
    return {**api.IMPLEMENTATIONS, "planted": api.Implementation(wrong, lambda q, keys: None)}


def fails(part, q, keys):
    raise RuntimeError("out of VMEM")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda part, q, keys: dataclasses.replace(part, out=part.out * 1.1), "disagrees in out"),
        (
            lambda part, q, keys: dataclasses.replace(part, denominator=part.denominator * 1.1),
            "disagrees in log-sum-exp",
        ),
        (
            lambda part, q, keys: xla.attention(q, dataclasses.replace(keys, slots=None)),
            "disagrees in log-sum-exp by nan",
        ),
        (fails, "RuntimeError: out of VMEM"),
    ],
    ids=["out", "residual", "sees-hidden-keys", "fails"],
)
def test_self_check_falls_back_from_a_wrong_kernel(change, reason):
    with pytest.warns(RuntimeWarning, match=f"'xla' instead of 'planted': .*{reason}"):
        name = check_implementation(
            "planted", head_dim=64, dtype=jnp.bfloat16, implementations=planted(change)
        )
    assert name == "xla"


def test_a_program_is_built_without_a_kernel_that_is_wrong_here(monkeypatch):
    """It would be chosen: nothing but the check, made while tracing, stands against it."""

    def wrong(q, keys):
        part = xla.attention(q, keys)
        return dataclasses.replace(part, out=part.out * 1.1)

    kernel = api.Implementation(wrong, lambda q, keys: None, "cpu")
    monkeypatch.setitem(api.IMPLEMENTATIONS, "planted", kernel)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec(None, "data")
    attend = lambda q: attention(q, q, q).out
    over_mesh = jax.shard_map(attend, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    q = normal(0, 1, 2, 8, 16)
    expected = oracle(q, q, q)[0]
    with pytest.warns(RuntimeWarning, match="'xla' instead of 'planted': it disagrees in out"):
        assert_close(jax.jit(over_mesh)(q), expected)
    # Asked once: a second warning would be an error.
    assert_close(attend(q), expected)
    monkeypatch.setattr(api, "is_sound", lambda *_: True)
    assert_close(attend(q), 1.1 * expected)


def test_self_check_keeps_a_sound_kernel():
    sound = api.Implementation(KERNEL, tpu.reason_against)
    implementations = {**api.IMPLEMENTATIONS, "sound": sound}
    for dtype in (jnp.bfloat16, jnp.float32):
        name = check_implementation(
            "sound", head_dim=128, dtype=dtype, implementations=implementations
        )
        assert name == "sound"
    # Nothing is preferred to "xla" on a CPU.
    assert check_implementation(head_dim=128, dtype=jnp.bfloat16) == "xla"

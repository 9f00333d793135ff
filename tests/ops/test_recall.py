"""Every implementation of recall against a loop in float64 NumPy, and the moments it goes by."""

import collections
import functools
import sys
import warnings
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from vidcache_jax.ops.implementations import Implementation
from vidcache_jax.ops.recall import moments as m
from vidcache_jax.ops.recall import recall, store, tpu
from vidcache_jax.ops.recall.check import is_sound
from vidcache_jax.ops.recall.ref import align
from vidcache_jax.ops.recall.ref import recall as reference
from vidcache_jax.ops.recall.table import IMPLEMENTATIONS
from vidcache_jax.sharding import make_mesh
from vidcache_jax.testing import assert_close, same_bits

TOKENS = 6


@pytest.fixture(scope="module")
def frames():
    """[video, head, frame, token, channel]; channels far from zero, as keys have them."""
    x = np.random.default_rng(0).standard_normal((2, 3, 4, TOKENS, 5)) * [1, 2, 0.1, 3, 0.5]
    return x + [0, 100, 50, -30, 1]


def flat(frames):
    return jnp.asarray(frames.reshape(*frames.shape[:2], -1, frames.shape[-1]), jnp.float32)


def test_pooled_moments_are_those_of_all_tokens_together(frames):
    kept = m.frame_moments(flat(frames), 4)
    members = np.array([[True, False, True, True], [False, False, True, False]])
    spoilt = jax.tree.map(
        lambda x: jnp.where(jnp.asarray(members)[:, None, :, None], x, jnp.nan), kept
    )
    pool = m.pooled(spoilt, jnp.asarray(members))
    for video in range(2):
        tokens = frames[video][:, members[video]].reshape(3, -1, 5)
        assert_close(pool.mean[video, :, 0], tokens.mean(axis=1))
        np.testing.assert_allclose(pool.variance[video, :, 0], tokens.var(axis=1), rtol=1e-3)


def test_moments_of_nothing_are_zero(frames):
    pool = m.pooled(m.frame_moments(flat(frames), 4), jnp.zeros((2, 4), bool))
    assert not pool.mean.any() and not pool.variance.any()


def test_without_strength_nothing_changes_a_bit(frames):
    x = flat(frames).astype(jnp.bfloat16)
    own = m.frame_moments(x, 4)
    assert same_bits(align(x, own, m.pooled(own, jnp.ones((2, 4), bool)), 0.0), x)


VIDEOS, HEADS, SLOTS = 2, 3, 6
Edit = collections.namedtuple("Edit", "x moments places admitted trusted")


def edits(tokens=TOKENS, head_dim=5, dtype=jnp.float32, seed=0):
    """Three frames for each video, of which some are admitted; the last slot is empty, NaN."""
    rng = np.random.default_rng(seed)
    shape = (VIDEOS, HEADS, SLOTS, tokens, head_dim)
    x = rng.standard_normal(shape) + 3 * rng.standard_normal((*shape[:3], 1, head_dim))
    x[..., 1] = 3.0  # a constant channel
    x[..., 2] = 0.3 * x[..., 2] + 100  # one far from zero, as keys have them
    x[:, :, -1] = np.nan
    x = jnp.asarray(x.reshape(VIDEOS, HEADS, -1, head_dim), dtype)
    trusted = jnp.array([[0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0]]) > 0
    places = jnp.array([[3, 5, 2], [1, 4, 3]], jnp.int32)
    admitted = jnp.array([[True, False, True], [False, True, True]])
    return Edit(x, m.frame_moments(x, SLOTS), places, admitted, trusted)


def edited(edit, tau):
    """Frames [video, head, slot, token, channel] as they should be, and which of them changed."""
    x = np.asarray(edit.x.astype(jnp.float32), np.float64)
    frames = x.reshape(VIDEOS, HEADS, SLOTS, -1, x.shape[-1])
    out, changed = frames.copy(), np.zeros((VIDEOS, SLOTS), bool)
    for video, i in np.ndindex(edit.places.shape):
        if edit.admitted[video, i]:
            slot = int(edit.places[video, i])
            pool = frames[video][:, np.asarray(edit.trusted[video])].transpose(0, 3, 1, 2)
            mean, std = (f(pool, axis=(2, 3))[:, None] for f in (np.mean, np.std))
            own = frames[video, :, slot]
            own_std = np.maximum(own.std(axis=1, keepdims=True), 1e-6)
            moved = np.maximum(std, 1e-6) * (own - own.mean(axis=1, keepdims=True)) / own_std + mean
            out[video, :, slot] = (1 - tau) * own + tau * moved
            changed[video, slot] = True
    return out, changed


def check_recall(recalling, edit, tau=0.6):
    """Frames and moments of what is stored; what is not admitted keeps its bits."""
    x, moments = recalling(*edit, tau=tau)
    expected, changed = edited(edit, tau)
    frames = np.asarray(x).reshape(expected.shape)
    before = np.asarray(edit.x).reshape(expected.shape)
    for video, slot in np.ndindex(changed.shape):
        here = video, slice(None), slot
        if not changed[video, slot]:
            assert same_bits(frames[here], before[here])
        else:
            assert_close(frames[here], expected[here], edit.x.dtype)
        if slot < SLOTS - 1:
            stored = frames[here].astype(np.float64)
            np.testing.assert_allclose(
                moments.mean[here], stored.mean(axis=1), rtol=1e-5, atol=1e-5
            )
            variance = moments.variance[here]
            np.testing.assert_allclose(variance, stored.var(axis=1), rtol=1e-4, atol=1e-6)
            assert (np.asarray(variance) >= 0).all()


# Two pieces of a frame, the second not full.
KERNEL = jax.jit(functools.partial(tpu.recall, piece=16, interpret=True), static_argnames="tau")
XLA = jax.jit(recall, static_argnames="tau")
STORE = jax.jit(functools.partial(tpu.store, piece=16, interpret=True))
WIDE = dict(tokens=24, head_dim=128)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("recalling", [XLA, KERNEL], ids=["xla", "tpu"])
def test_admitted_frames_are_edited_in_their_slots(recalling, dtype):
    edit = edits(**WIDE, dtype=dtype)
    check_recall(recalling, edit)
    first, second = (recalling(*edit, tau=0.6) for _ in range(2))
    assert all(map(same_bits, jax.tree.leaves(first), jax.tree.leaves(second)))


def test_kernel_on_a_simulated_tpu():
    """Memory is NaN until written, reads out of bounds and races are errors."""
    simulated = pltpu.InterpretParams(uninitialized_memory="nan", detect_races=True)
    check_recall(functools.partial(tpu.recall, interpret=simulated), edits(**WIDE))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("storing", [jax.jit(store), STORE], ids=["xla", "tpu"])
def test_stored_frames_and_their_moments(storing, dtype):
    """Every slot that gets none keeps its bits, and its moments."""
    edit, other = edits(**WIDE, dtype=dtype), edits(**WIDE, dtype=dtype, seed=1)
    # Of what is held in the third slot, and, as it is NaN, in the last one, nothing is left.
    places = jnp.array([[5, 2], [2, 5]], jnp.int32)
    new = other.x[:, :, : 2 * WIDE["tokens"]]
    x, moments = storing(edit.x, edit.moments, new, places)
    as_frames = lambda x: np.asarray(x).reshape(VIDEOS, HEADS, -1, WIDE["tokens"], x.shape[-1])
    expected = as_frames(edit.x).copy()
    for video in range(VIDEOS):
        expected[video][:, places[video]] = as_frames(new)[video]
    assert same_bits(as_frames(x), expected)
    expected = expected.astype(np.float64)
    np.testing.assert_allclose(moments.mean, expected.mean(axis=3), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(moments.variance, expected.var(axis=3), rtol=1e-4, atol=1e-6)


def lowered_text(platform, by_hand=None, implementation=None, **size):
    """On a mesh some axes of which are mapped by hand, or on one chip."""
    leaves, treedef = jax.tree.flatten(edits(**size))

    # What is typed for arrays is not made of their shardings.
    def call(*leaves):
        edit = jax.tree.unflatten(treedef, leaves)
        return jax.tree.leaves(recall(*edit, tau=0.6, implementation=implementation))

    if by_hand is not None:
        mesh = make_mesh(data=1, heads=3, sequence=2, devices=jax.devices()[:6])
        spec = jax.sharding.PartitionSpec()
        call = jax.shard_map(
            call, mesh=mesh, axis_names=by_hand, in_specs=spec, out_specs=spec, check_vma=False
        )
    return jax.jit(call).trace(*leaves).lower(lowering_platforms=(platform,)).as_text()


def test_none_is_the_best_for_the_platform_lowered_for():
    assert "tpu_custom_call" in lowered_text("tpu", **WIDE)
    assert "tpu_custom_call" not in lowered_text("cpu", **WIDE)
    assert "tpu_custom_call" not in lowered_text("tpu", tokens=8, head_dim=64)
    assert "tpu_custom_call" not in lowered_text("tpu", tokens=6, head_dim=128)


def test_each_chip_calls_the_kernel_on_its_heads():
    """As in `Rollout.step`: `data` by hand, heads and tokens left to the compiler."""
    text = lowered_text("tpu", {"data"}, **WIDE)
    [call] = [line for line in text.splitlines() if "@tpu_custom_call" in line]
    assert f"2x1x{SLOTS * 24}x128xf32" in call and f"2x3x{SLOTS * 24}x128xf32" not in call
    # The compiler would have to divide the videos as well.
    assert "tpu_custom_call" not in lowered_text("tpu", {"sequence"}, **WIDE)
    with pytest.raises(NotImplementedError, match="over \\['data', 'heads'\\]; call it"):
        lowered_text("tpu", {"sequence"}, "tpu", **WIDE)


def test_a_program_is_built_without_a_kernel_that_is_wrong_here(monkeypatch):
    """It would be chosen: nothing but the check, made while tracing, stands against it."""

    def wrong(*edit, tau):
        return reference(*edit, tau=tau / 2)

    planted = Implementation(wrong, lambda *_: None, "cpu")
    monkeypatch.setitem(
        IMPLEMENTATIONS, "recall", {**IMPLEMENTATIONS["recall"], "planted": planted}
    )
    with pytest.warns(RuntimeWarning, match="recall on 'xla' instead of 'planted': .* in frames"):
        lowered_text("cpu")


def test_the_check_lets_a_sound_kernel_pass():
    for what, call in (("recall", tpu.recall), ("store", tpu.store)):
        call = functools.partial(call, interpret=True)
        sound = Implementation(call, tpu.reason_against, "cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert is_sound(what, "sound", sound, 128, jnp.bfloat16)


def test_a_name_means_that_or_an_error_that_says_why(monkeypatch):
    edit = edits()
    with pytest.raises(ValueError, match=r"no recall implementation 'fast'; there are \['xla'"):
        recall(*edit, tau=0.6, implementation="fast")
    versions = {}
    monkeypatch.setattr(metadata, "version", lambda name: versions[name])

    def refused(match):
        with pytest.raises(NotImplementedError, match=f"recall on 'triton': {match}"):
            recall(*edit, tau=0.6, implementation="triton")

    versions |= {"jax-triton": "0.4.1", "triton": "3.9.0"}
    refused("jax-triton 0.4.1 and triton 3.9.0 do not do; jax-triton 0.3.1 and triton 3.6 or newer")
    versions |= {"jax-triton": "0.3.1", "triton": "3.5.1"}
    refused("jax-triton 0.3.1 and triton 3.5.1 do not do")
    # JAX without CUDA.
    versions["triton"] = "3.10.0"
    monkeypatch.setitem(sys.modules, "jax_triton", None)
    refused('jax-triton cannot be imported .*pip install -e "..cuda,triton.*')


def test_what_is_not_installed_is_named(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(NotImplementedError, match="jax-triton is not installed; pip install -e"):
        recall(*edits(), tau=0.6, implementation="triton")

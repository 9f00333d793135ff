"""Triton kernels: their bodies in Triton's interpreter, and compiled for a GPU that is not there.

    pip install -e ".[test,triton]"
    pip install --no-deps jax-cuda13-plugin    # of JAX's version; all that they need of CUDA
    pytest --numprocesses=0 tests/ops/test_triton.py

`.ci/run` does this. Alone, because a process in which Triton interprets cannot compile.
"""

import functools
import os

# Read when Triton is imported.
os.environ["TRITON_INTERPRET"] = "1"

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.ops.test_merge import pairs
from tests.ops.test_recall import check_recall, edits
from tests.ops.test_scoring import attended_of, check_bfloat16, check_steps, inputs
from vidcache_jax.ops.merge import ref as merging
from vidcache_jax.ops.recall import recall
from vidcache_jax.ops.scoring import column_means
from vidcache_jax.ops.triton_versions import reason_against_triton
from vidcache_jax.testing import assert_close, same_bits

if reason := reason_against_triton():
    pytest.skip(reason, allow_module_level=True)

import jax_triton
import torch
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder

from vidcache_jax.ops.merge import triton as merge_triton
from vidcache_jax.ops.scoring import triton as scoring_triton


def interpreted(
    *arrays, kernel, out_shape, grid, input_output_aliases=None, num_warps, **constants
):
    """`jax_triton.triton_call` on the CPU, with outputs that are garbage until written."""
    given = [torch.from_dlpack(x).clone() for x in arrays]
    shapes, treedef = jax.tree.flatten(out_shape)
    aliases = {output: given[i] for i, output in (input_output_aliases or {}).items()}
    garbage = (jnp.full(shape.shape, -7, shape.dtype) for shape in shapes)
    fresh = [torch.from_dlpack(x).clone() for x in garbage]
    outputs = [aliases.get(i, x) for i, x in enumerate(fresh)]
    kernel[grid](*given, *outputs, num_warps=num_warps, **constants)
    return treedef.unflatten(map(jnp.from_dlpack, outputs))


def dot_of_numbers(builder, a, b, *rest, dot=InterpreterBuilder.create_dot):
    """The interpreter's, which would multiply the bits of bfloat16 as integers."""
    exact = (
        builder.create_fp_ext(x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b)
    )
    return dot(builder, *exact, *rest)


@pytest.fixture(autouse=True)
def interpreter(monkeypatch):
    monkeypatch.setattr(jax_triton, "triton_call", interpreted)
    monkeypatch.setattr(InterpreterBuilder, "create_dot", dot_of_numbers)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_recall(dtype):
    # Two blocks of tokens and two of channels, neither of them full.
    edit = edits(tokens=70, head_dim=40, dtype=dtype)
    check_recall(functools.partial(recall, implementation="triton"), edit)


@pytest.mark.parametrize("case", ["random", "equal cosines", "norm 0", "nothing retained"])
def test_route(case, monkeypatch):
    """In blocks of four by four, all but the last full; ref's own tests have an oracle."""
    monkeypatch.setattr(merge_triton, "BLOCK_EVICTED", 4)
    monkeypatch.setattr(merge_triton, "BLOCK_RETAINED", 4)
    rng = np.random.default_rng(1)
    evicted, retained = (
        rng.standard_normal((2, 2, 3, count)).astype(np.float32) for count in (6, 13)
    )
    rank = np.stack([rng.permutation(13) for _ in range(4)]).reshape(2, 2, 13).astype(np.int32)
    rank[..., ::5] = -1
    retained[..., 5] = np.nan
    if case == "equal cosines":
        retained[..., 6:10] = 2 * retained[..., 1:5]
    if case == "norm 0":
        evicted[0, 0, :, 0] = retained[:, :, :, 3] = 0
    if case == "nothing retained":
        rank[1] = -1
    given = tuple(map(jnp.asarray, (evicted, retained, rank)))
    nearest, cosine = merge_triton.route(*given)
    expected = merging.route(*given)
    np.testing.assert_array_equal(nearest, expected[0])
    assert_close(cosine, expected[1])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_merge_values(dtype):
    """Some values that are not merged are NaN, some steps give no weight."""
    v, weight, source, target, is_merged = pairs(1, dtype)
    weight[0, 0, 1] = weight[1] = 0
    is_merged[..., :2] = False
    np.put_along_axis(v, source[..., :2, None], np.nan, axis=2)
    given = tuple(map(jnp.asarray, (v, weight, source, target, is_merged)))
    merged, expected = merge_triton.merge_values(*given), merging.merge_values(*given)
    assert_close(merged, expected, dtype)
    is_target = np.zeros((*v.shape[:2], v.shape[2] + 1), bool)
    np.put_along_axis(is_target, np.where(is_merged, target, v.shape[2]), True, axis=2)
    others = ~is_target[..., :-1]
    assert same_bits(np.asarray(merged)[others], v[others])


SCORING = functools.partial(column_means, implementation="triton")


@pytest.mark.parametrize("knows_residuals", [False, True])
def test_scoring(knows_residuals, monkeypatch):
    """In blocks neither of which divides the tokens; hidden keys are NaN, some heads see none."""
    monkeypatch.setattr(scoring_triton, "BLOCKS", {4: (8, 32)})
    # Positions and visibility of each head, or of all heads together.
    q, q_position, k, k_position, visible = inputs(groups=1 if knows_residuals else 3)
    visible[0, 0] = False
    visible[1, 0, :64] = False
    given = q, q_position, np.where(visible[..., None], k, np.nan), k_position, visible
    if knows_residuals:
        check_steps(SCORING, given, attended=attended_of(*map(jnp.asarray, given)))
    else:
        check_steps(SCORING, given, ahead=(1, 3))


def test_scoring_in_bfloat16():
    check_bfloat16(SCORING)


def test_kernels_compile_for_a_gpu_that_is_not_there():
    """For compute capability 9.0, at the 1.3B's shapes; none is interpreted in that process."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    run = [sys.executable, "-W", "error", "-m", "tests.ops.triton_programs"]
    root = Path(__file__).parents[2]
    output = subprocess.run(run, cwd=root, env=environment, capture_output=True, text=True)
    assert output.returncode == 0, output.stderr
    # Recall, routing, merging, scoring, also with known residuals: calls of kernels, and their
    # outputs that are inputs.
    assert output.stdout.splitlines() == ["1 3", "1 0", "1 1", "2 0", "1 0"]

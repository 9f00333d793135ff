"""Compares a policy of the package with the oracle over a random history."""

import jax.numpy as jnp
import numpy as np

from tests.cache.oracle import Oracle
from vidcache_jax.cache import CachePolicy, CacheSpec
from vidcache_jax.testing import Trial, assert_close


def tiny_spec(frames_per_chunk: int, batch: int = 1, grid=(1, 2)) -> CacheSpec:
    return CacheSpec(
        batch=batch, num_heads=2, head_dim=14, grid=grid, frames_per_chunk=frames_per_chunk,
        dtype=jnp.float32,
    )  # fmt: skip


def assert_agrees(
    policy: CachePolicy, spec: CacheSpec, num_chunks: int, seed: int, oracle_type=Oracle, **options
):
    """Attention of every pass, and the fresh positions of the chunk, within the f32 tolerance."""
    trial = Trial(policy, spec)
    history = trial.random_history(seed, num_chunks)
    _, records = trial.run(history)
    for video in range(spec.batch):
        oracle = oracle_type(spec.grid, **options)
        for index, (heads, record) in enumerate(zip(history, records, strict=True)):
            q, k, v = heads[:, 0, video]
            denoised, committed = oracle.chunk(q, k, v, spec.frames_per_chunk)
            where = f"chunk {index} of {policy}"
            assert_close(record.attended.denoised[0, video], denoised, message=f"denoise, {where}")
            assert_close(record.attended.committed[0, video], committed, message=f"commit, {where}")
            view = record.after
            seen = np.unique(view.position[0, video, 0, view.visible[0, video, 0], 0])
            assert sorted(seen) == sorted(oracle.positions()), where

"""`check_policy`: the contract of `vidcache_jax.cache.policy`, tested on any policy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vidcache_jax.cache.policy import CachePolicy
from vidcache_jax.cache.state import CacheSpec
from vidcache_jax.testing import history_clauses, in_place, program_clauses
from vidcache_jax.testing.trial import Trial
from vidcache_jax.testing.view_clauses import require

_SIZES = {1: (2, (1, 2)), 3: (3, (2, 1)), 4: (2, (1, 3))}
"""Chunk size -> (batch, grid) of its trial."""
_MOST_CHUNKS = 40


def check_policy(
    policy: CachePolicy,
    *,
    chunk_sizes: tuple[int, ...] = (3,),
    num_heads: int = 2,
    num_layers: int = 2,
    distinct_positions: bool = True,
    examples: int = 5,
) -> tuple[int, ...]:
    """Puts a policy through clauses C1 to C8 over random histories.

    Uses nothing but the protocol: its methods, `max_frames` and the fields of `CacheView`.
    Histories run from the empty cache through warm-up and the boundary into the steady state.
    Needs the ``test`` extra (hypothesis).

    Args:
      chunk_sizes: sizes the policy must serve, the main one first. 1, 3 and 4 are tried as well
        and passed over where `init` refuses them with a ValueError.
      num_heads, num_layers: of the caches, for policies that are made for certain ones; at least
        two layers, or a layer's buffer could not be told from the whole cache.
      distinct_positions: whether no two visible tokens of a head share (frame, row, column);
        False for policies that pack tokens of several frames into one frame position.
      examples: random histories for each chunk size, besides a long one.

    Returns:
      The chunk sizes that were tested.

    Raises:
      AssertionError: the message begins with the violated clause, "C1" to "C8".
      ValueError: `num_layers` is less than 2.
    """
    if num_layers < 2:
        raise ValueError(f"num_layers={num_layers} must be at least 2")
    trials = _trials(policy, chunk_sizes, num_heads, num_layers)
    limit = policy.max_frames
    require(
        limit is None or (isinstance(limit, int) and limit >= max(chunk_sizes)),
        "C8",
        f"max_frames={limit!r} is neither None nor an int that holds a chunk of each size",
    )
    for trial in trials:
        program_clauses.check_structure(trial)
    for trial in trials:
        _check_histories(trial, distinct_positions, examples)
    _check_thoroughly(trials[0])
    for trial in trials:
        history = trial.random_history(2, longest_history(trial))
        leaves, _ = trial.run(history)
        history_clauses.check_memory_index(trial, leaves, len(history))
        if limit is None:
            history_clauses.check_late_start(trial, history, distinct_positions)
        require(
            len(trial.traces) == 1,
            "C4",
            f"the chunk program was traced {len(trial.traces)} times, not once: something in the "
            f"cache changes its type from chunk to chunk ({trial.spec})",
        )
    in_place.check_in_place(policy, num_heads, num_layers, chunk_sizes[0])
    return tuple(sorted({trial.spec.frames_per_chunk for trial in trials}))


def longest_history(trial: Trial) -> int:
    """Chunks that fill a view twice over, as far as the policy's length allows."""
    chunk, limit = trial.spec.frames_per_chunk, trial.policy.max_frames
    chunks = min(2 * -(-trial.max_slots // chunk) + 2, _MOST_CHUNKS)
    return chunks if limit is None else min(chunks, limit // chunk)


def _trials(policy, chunk_sizes, num_heads, num_layers) -> list[Trial]:
    """float32 for the main chunk size, bfloat16 for the others (or for the same, if alone)."""
    trials = []

    def add(size: int, dtype: Any) -> None:
        batch, grid = _SIZES.get(size, (2, (1, 2)))
        spec = CacheSpec(
            batch=batch, num_heads=num_heads, head_dim=12, grid=grid, frames_per_chunk=size,
            dtype=dtype,
        )  # fmt: skip
        try:
            jax.eval_shape(lambda: jax.tree.leaves(policy.init(spec)))
        except ValueError as error:
            require(size not in chunk_sizes, "C4", f"init refuses chunks of {size}: {error}")
        else:
            trials.append(Trial(policy, spec, num_layers))

    main = chunk_sizes[0]
    add(main, jnp.float32)
    for size in sorted({*chunk_sizes, *_SIZES} - {main}):
        add(size, jnp.bfloat16)
    if len(trials) == 1:
        add(main, jnp.bfloat16)
    return trials


def _check_thoroughly(trial: Trial) -> None:
    """The clauses that need further programs, on one trial."""
    history = trial.random_history(1, longest_history(trial))
    _, records = trial.run(history)
    program_clauses.check_without_jit(trial, history[:4], records[:4])
    history_clauses.check_alone(trial, history, records)
    history_clauses.check_mapped(trial, history, records)
    program_clauses.check_donation(trial, history)


def _check_histories(trial: Trial, distinct_positions: bool, examples: int) -> None:
    # Here, so that the other helpers of this package work without the test extra.
    from hypothesis import HealthCheck, example, given, settings
    from hypothesis import strategies as st

    longest = longest_history(trial)

    @settings(
        max_examples=examples, derandomize=True, database=None, deadline=None,
        suppress_health_check=[HealthCheck.too_slow], report_multiple_bugs=False,
    )  # fmt: skip
    @example(seed=0, num_chunks=longest, kind="normal", garbage=np.nan, video=trial.spec.batch - 1)
    @given(
        seed=st.integers(0, 2**16),
        num_chunks=st.integers(1, longest),
        kind=st.sampled_from(["normal", "large", "repeated", "zero"]),
        garbage=st.sampled_from([np.nan, np.inf, -np.inf, 1e30]),
        video=st.integers(0, trial.spec.batch - 1),
    )
    def holds(seed, num_chunks, kind, garbage, video):
        history = trial.random_history(seed, num_chunks, kind)
        _, records = trial.run(history)
        history_clauses.check_views(trial, history, records, distinct_positions)
        history_clauses.check_garbage(trial, history, records, garbage)
        history_clauses.check_batch(trial, history, records, video, garbage)

    holds()

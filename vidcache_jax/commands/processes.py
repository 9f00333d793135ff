"""Several processes that run one job together: how they meet, and how they part."""

import os
import sys
from typing import NoReturn

import jax

HEARTBEAT_SECONDS = 20
"""After so long without a sign of life a process counts as lost, and the others stop."""


def join_processes(
    coordinator: str | None, num_processes: int | None, process_id: int | None
) -> None:
    """Waits until all processes of the job are there; the devices are then those of all.

    Args: what cannot be found in the environment, as it can on TPU pods and under Slurm.

    Raises:
      ValueError: it can neither be found, or the processes cannot meet.
    """
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            # The others may have a last video to finish.
            shutdown_timeout_seconds=2 * HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"cannot join the other processes: {error}; give --coordinator HOST:PORT of process 0, "
            "--num-processes and --process-id, the first two alike everywhere"
        ) from error


def loss_of(error: Exception) -> str:
    """What to tell the user when work that is shared with other processes fails."""
    return (
        f"process {jax.process_index()} of {jax.process_count()} cannot go on: "
        f"{str(error).splitlines()[0]}\nIf another process was lost, that is why. What is finished "
        "is kept: start the same command again on every host, and it goes on."
    )


def leave_processes(status: int) -> NoReturn:
    """Ends this process at once, and with it the job.

    The usual end would wait for processes that wait for this one, or that are lost.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

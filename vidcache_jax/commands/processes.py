"""Several processes that run one job together: how they meet, and how they part."""

import atexit
import ctypes
import functools
import os
import signal
import sys
from typing import NoReturn

import jax
from jax._src import distributed

from vidcache_jax.commands.signs_of_life import watch

SILENT_SECONDS = 20
"""After so long without a sign of life a process counts as lost, and the others stop."""
HEARTBEAT_SECONDS = 3 * SILENT_SECONDS
"""JAX's own limit, at which it aborts the others; for what stops this process's threads too."""


def join_processes(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    silent_seconds: float = SILENT_SECONDS,
) -> None:
    """Waits until all processes of the job are there; the devices are then those of all.

    From then on this process ends with status 3, whatever it is waiting for, if another is silent
    for ``silent_seconds``: its host hangs, or is cut off.

    If process 0 dies, to which all are connected, JAX aborts this one at once and cannot be told
    what to do instead: its stack trace comes first, and then the message and status 3 as well.

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
            shutdown_timeout_seconds=2 * SILENT_SECONDS,
        )
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"cannot join the other processes: {error}; give --coordinator HOST:PORT of process 0, "
            "--num-processes and --process-id, the first two alike everywhere"
        ) from error
    joined = distributed.global_state
    own, count = joined.process_id, joined.num_processes
    if count and count > 1 and joined.client is not None:
        told = functools.partial(_leave_the_silent, own, count, silent_seconds)
        leave = watch(joined.client, own, count, told, limit=silent_seconds)
        # Before JAX leaves, which waits for the others.
        atexit.register(leave)
        _on_abort(own, count)


def _on_abort(own: int, count: int) -> None:
    """Lets an abort by JAX's own threads end like any other loss of a process."""

    def tell(_: int) -> None:
        print(f"vidcache: {_cannot_go_on(own, count, 'JAX gave up')}", file=sys.stderr)
        leave_processes(3)

    # In C, for a handler of Python's would wait for the main thread, and the abort does not.
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(tell)
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)
    # C keeps no reference to it; what is registered here lives as long as the process.
    atexit.register(lambda: handler)


def loss_of(error: Exception) -> str:
    """What to tell the user when work that is shared with other processes fails."""
    return _cannot_go_on(jax.process_index(), jax.process_count(), str(error).splitlines()[0])


def _leave_the_silent(own: int, count: int, seconds: float, silent: list[int]) -> NoReturn:
    # Nobody is heard, not even oneself, if process 0 does not answer, through which all speak.
    who = "process 0" if own in silent else " and ".join(f"process {i}" for i in silent)
    why = f"no sign of life of {who} for {seconds:g} seconds"
    print(f"vidcache: {_cannot_go_on(own, count, why)}", file=sys.stderr)
    leave_processes(3)


def _cannot_go_on(own: int, count: int, why: str) -> str:
    return (
        f"process {own} of {count} cannot go on: {why}\nIf another process was lost, that is why. "
        "What is finished is kept: start the same command again on every host, and it goes on."
    )


def leave_processes(status: int) -> NoReturn:
    """Ends this process at once, and with it the job.

    The usual end would wait for processes that wait for this one, or that are lost.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

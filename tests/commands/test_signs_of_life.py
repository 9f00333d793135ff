"""A process that falls silent ends the others, in time and with a message."""

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vidcache_jax.commands.signs_of_life import GONE, watch

ROOT = Path(__file__).parents[2]
# The one that is left waits for the other within a collective, or has work of its own.
PROCESS = """
import os, signal, sys, time
from jax.experimental import multihost_utils
from vidcache_jax.commands.processes import join_processes

port, own, stopped, fate = sys.argv[1:]
join_processes(f"127.0.0.1:{port}", 2, int(own), silent_seconds=3)
multihost_utils.sync_global_devices("both are there")
if own == stopped:
    os.kill(os.getpid(), signal.Signals[fate])
if fate == "SIGKILL":
    time.sleep(50)
multihost_utils.sync_global_devices("never")
"""


class Store(dict[str, str]):
    """In memory, for threads."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        assert allow_overwrite
        self[key] = value

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]:
        return [(name, value) for name, value in self.copy().items() if name.startswith(key)]


def test_who_has_left_is_not_missed_and_who_is_silent_is():
    store, told, is_told = Store(), [], threading.Event()

    def on_silence(silent):
        told.append(silent)
        is_told.set()

    start = lambda own, count: watch(store, own, count, on_silence, limit=0.1, interval=0.01)
    leaves = [start(own, 2) for own in range(2)]
    assert not is_told.wait(0.3)
    leaves[1]()
    assert store[max(store)] == GONE and not is_told.wait(0.3)
    leaves[0]()
    # The third of three was never there.
    leave = start(0, 3)
    assert is_told.wait(10) and told == [[2]]
    leave()


@pytest.mark.parametrize(
    ("stopped", "fate", "reason"),
    [
        (0, "SIGSTOP", "no sign of life of process 0 for 3 seconds"),
        (1, "SIGSTOP", "no sign of life of process 1 for 3 seconds"),
        # Through which all are connected: JAX aborts.
        (0, "SIGKILL", "JAX gave up"),
    ],
)
def test_a_lost_process_ends_the_other(stopped, fate, reason):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(port), str(own), str(stopped), fate],
            stderr=subprocess.PIPE, text=True, env=environment,
        )
        for own in range(2)
    ]  # fmt: skip
    survivor, victim = processes[1 - stopped], processes[stopped]
    try:
        _, printed = survivor.communicate(timeout=60)
        assert fate == "SIGKILL" or victim.poll() is None
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
        victim.communicate()
    assert survivor.returncode == 3, printed
    assert f"process {1 - stopped} of 2 cannot go on: {reason}" in printed
    assert "start the same command again" in printed

"""Processes of a job notice that one of them has fallen silent: its host hangs, or is cut off.

One that dies closes its connections, and whoever waits for it gets an error. From one that is
merely silent nothing comes at all; after a while JAX aborts those that wait, without a word that a
user could act on.
"""

import contextlib
import itertools
import threading
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax

FOLDER = "vidcache/signs_of_life/"
GONE = "gone"


@runtime_checkable
class Store(Protocol):
    """What all processes read and write; JAX's is held by process 0 (`jax.distributed`)."""

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None: ...

    def key_value_dir_get(self, key: str) -> list[tuple[str, str]]: ...


def watch(
    store: Store,
    own: int,
    count: int,
    on_silence: Callable[[list[int]], None],
    *,
    limit: float,
    interval: float = 1.0,
) -> Callable[[], None]:
    """Gives signs of life from now on, and looks for those of the others, on threads of its own.

    Turns are counted, not seconds: a job that is suspended as a whole has lost nobody.

    Args:
      own: number of this process, of ``count``.
      on_silence: told, from another thread, who has given no sign for ``limit`` seconds; this
        process is among them if the store does not answer, so that nobody can be heard.
      interval: seconds between signs.

    Returns:
      To be called when this process leaves in good order, which the others then do not mind.
    """
    # The turn that it is, and the one in which each was last heard.
    now, heard = [0], [0] * count
    is_leaving = threading.Event()
    key = lambda process: f"{FOLDER}{process}"

    def exchange(sign: str, before: dict[str, str]) -> dict[str, str]:
        store.key_value_set(key(own), sign, allow_overwrite=True)
        signs = dict(store.key_value_dir_get(FOLDER))
        for process in range(count):
            given = signs.get(key(process))
            if given == GONE or given != before.get(key(process)):
                heard[process] = now[0]
        return signs

    def give_and_take() -> None:
        signs: dict[str, str] = {}
        for number in itertools.count():
            is_last = is_leaving.wait(interval if number else 0)
            # Without an answer everyone is silent, until there is one or `on_silence` is told.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                signs = exchange(GONE if is_last else str(number), signs)
            if is_last:
                return

    def look() -> None:
        while not is_leaving.wait(interval):
            now[0] += 1
            if silent := [i for i, last in enumerate(heard) if (now[0] - last) * interval > limit]:
                on_silence(silent)
                return

    def leave() -> None:
        is_leaving.set()
        giving.join(timeout=limit)

    giving = threading.Thread(target=give_and_take, name="signs of life", daemon=True)
    giving.start()
    threading.Thread(target=look, name="silence", daemon=True).start()
    return leave

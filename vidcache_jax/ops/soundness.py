"""Whether a kernel computes on this very device what it should; asked once in a process."""

import functools
import warnings
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array


def is_sound(
    what: str,
    name: str,
    platform: str | None,
    reason_against: Callable[..., str | None],
    *case: Hashable,
) -> bool:
    """Whether a kernel may be chosen: one for this device only if nothing speaks against it there.

    The first answer for a case takes compiling and running the kernel. It is given while a program
    is traced, so that nothing that uses a kernel can forget to ask.

    Args:
      what: the operation, and `name` its implementation, for the warning that comes with False.
      platform: where the kernel runs, in JAX's words.
      reason_against: what is wrong with the kernel in a ``case``, found by running it, which may
        fail; None if nothing is.
    """
    if platform != platform_here():
        return True
    return _is_sound(what, name, reason_against, case, jax.devices()[0].device_kind)


@functools.cache
def _is_sound(
    what: str, name: str, reason_against: Callable[..., str | None], case: tuple, device_kind: str
) -> bool:
    del device_kind  # of the answer's key alone
    # In a thread of its own nothing is being traced, and no mesh is in use.
    with ThreadPoolExecutor(1) as thread:
        reason = thread.submit(attempt, functools.partial(reason_against, *case)).result()
    if reason is not None:
        warn(what, name, reason)
    return reason is None


def platform_here() -> str:
    """Of the default device, in the words of programs that are lowered."""
    platform = jax.devices()[0].platform
    return "cuda" if platform == "gpu" else platform


def warn(what: str, name: str, reason: str) -> None:
    warnings.warn(f"{what} on 'xla' instead of {name!r}: {reason}", RuntimeWarning, stacklevel=3)


def attempt(disagreement: Callable[[], str | None]) -> str | None:
    """What a comparison with "xla" finds, or how it fails."""
    # Whatever goes wrong in a kernel, to compile and run it included, there is another way.
    try:
        return disagreement()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def disagreement(what: str, actual: Array, expected: Array, dtype: Any) -> str | None:
    """Whether numbers differ by more than 4 units of ``dtype``'s precision, or 1e-5; and how.

    Relative to the largest that is expected.
    """
    actual, expected = actual.astype(jnp.float32), expected.astype(jnp.float32)
    error = float(jnp.max(jnp.abs(actual - expected)) / jnp.max(jnp.abs(expected)))
    limit = max(4 * float(jnp.finfo(dtype).eps), 1e-5)
    # NaN is not.
    return (
        None if error <= limit else f"it disagrees in {what} by {error:.2g}, more than {limit:.2g}"
    )

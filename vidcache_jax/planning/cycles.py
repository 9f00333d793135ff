"""What the TPU compiler expects a program to take, from the notes in its optimised HLO."""

import re

from vidcache_jax.planning.hlo import executed

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


def estimated_cycles(hlo: str) -> int:
    """Clock cycles of all instructions that the compiler has estimated, one after the other.

    It estimates its own fusions and copies; kernels of ours, collectives, sorts, gathers and
    scatters it does not.

    Args:
      hlo: ``compiled.as_text()``.
    """
    return sum(
        int(found[1]) * times for line, times in executed(hlo) if (found := _CYCLES.search(line))
    )

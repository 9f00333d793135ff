"""What a compiled program executes, read from its optimised HLO."""

import re
from collections.abc import Iterator

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"(?:body|to_apply|calls|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")
_NAME = r"%([\w.\-]+)"
_BOUND = re.compile(r" = s32\[\]\S* constant\((\d+)\)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


def executed(hlo: str) -> Iterator[tuple[str, int]]:
    """Every instruction of a program and how often a run executes it.

    An instruction counts once for each turn of the loops around it; once for each time that a loop
    is entered whose number of turns depends on data. Of a conditional both branches count.

    Args:
      hlo: ``compiled.as_text()``.
    """
    computations, entry = _computations(hlo)
    return _walk(computations, entry, 1)


def _computations(hlo: str) -> tuple[dict[str, list[str]], str]:
    """Lines of each computation by name, and the name of the entry."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in hlo.splitlines():
        if started := _COMPUTATION.match(line):
            lines = computations.setdefault(started[1], [])
            entry = started[1] if line.startswith("ENTRY") else entry
        else:
            lines.append(line.strip())
    return computations, entry


def _walk(computations: dict[str, list[str]], name: str, times: int) -> Iterator[tuple[str, int]]:
    for line in computations.get(name, ()):
        yield line, times
        turns = _trips(computations, line) if " while(" in line else 1
        for group in _CALLED.findall(line):
            for called in re.findall(_NAME, group):
                yield from _walk(computations, called, times * turns)


def _trips(computations: dict[str, list[str]], line: str) -> int:
    """Turns of a loop: as the compiler says, or the one bound that its condition compares with.

    1 where they depend on data, as in a policy that does something now and then.
    """
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = re.search(rf"condition={_NAME}", line)
    lines = computations.get(condition[1], []) if condition else []
    bounds = {int(number) for each in lines for number in _BOUND.findall(each)}
    return bounds.pop() if len(bounds) == 1 else 1

"""What a compiled program moves between chips, read from its optimised HLO."""

import dataclasses
import math
import re
from collections.abc import Iterator

KINDS = ("all-to-all", "all-gather", "all-reduce", "reduce-scatter", "collective-permute")
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_COLLECTIVE = re.compile(rf"^(?:ROOT )?%\S+ = (.*?) ({'|'.join(KINDS)})(?:-start)?\(")
_CALLED = re.compile(r"(?:body|to_apply|calls|branch_computations)=\{?((?:%[\w.\-]+(?:, )?)+)")
_NAME = r"%([\w.\-]+)"
_BOUND = re.compile(r" = s32\[\]\S* constant\((\d+)\)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      nbytes: of its result on one chip.
      times: how often a run of the program executes it; once for each time that a loop is entered
        whose number of turns depends on data.
    """

    kind: str
    nbytes: int
    times: int


def collectives(hlo: str) -> list[Collective]:
    """All collectives of a program, loops counted by their trips.

    Args:
      hlo: ``compiled.as_text()``.
    """
    computations, entry = _computations(hlo)
    return list(_walk(computations, entry, 1))


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


def _walk(computations: dict[str, list[str]], name: str, times: int) -> Iterator[Collective]:
    for line in computations.get(name, ()):
        if found := _COLLECTIVE.match(line):
            shape, kind = found.groups()
            if f"{kind}-start(" in line and shape.startswith("("):
                # An asynchronous start gives (operand, result, ...).
                shapes = _SHAPE.findall(shape)
                nbytes = _nbytes(shapes[len(shapes) // 2 :]) if len(shapes) > 1 else _nbytes(shapes)
            else:
                nbytes = _nbytes(_SHAPE.findall(shape))
            yield Collective(kind, nbytes, times)
        called = [name for group in _CALLED.findall(line) for name in re.findall(_NAME, group)]
        inner = [found for name in called for found in _walk(computations, name, times)]
        trips = _trips(computations, line) if " while(" in line else 1
        yield from (dataclasses.replace(each, times=each.times * trips) for each in inner)


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


def _nbytes(shapes: list[tuple[str, str]]) -> int:
    return sum(
        math.prod(int(size) for size in sizes.split(",") if size) * _itemsize(dtype)
        for dtype, sizes in shapes
    )


def _itemsize(dtype: str) -> int:
    """Bytes of one of HLO's dtypes: pred, s32, bf16, f32, f8e4m3fn, ..."""
    return 1 if dtype == "pred" else max(1, int(re.sub(r"\D*(\d+).*", r"\1", dtype)) // 8)

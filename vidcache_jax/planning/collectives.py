"""What a compiled program moves between chips."""

import dataclasses
import math
import re

from vidcache_jax.planning.hlo import executed

KINDS = ("all-to-all", "all-gather", "all-reduce", "reduce-scatter", "collective-permute")
_COLLECTIVE = re.compile(rf"^(?:ROOT )?%\S+ = (.*?) ({'|'.join(KINDS)})(-start)?\(")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_SHAPE = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      nbytes: of its result on one chip.
      times: how often a run of the program executes it (`hlo.executed`).
    """

    kind: str
    nbytes: int
    times: int


def collectives(hlo: str) -> list[Collective]:
    """All collectives of a program, loops counted by their trips.

    Args:
      hlo: ``compiled.as_text()``.
    """
    found: list[Collective] = []
    channels = set()
    for line, times in executed(hlo):
        if match := _COLLECTIVE.match(line):
            # A TPU program has a collective once in each of the fusions that it runs beside.
            channel = _CHANNEL.search(line)
            if channel and channel[1] in channels:
                continue
            channels.add(channel and channel[1])
            result, kind, start = match.groups()
            shapes = _SHAPE.findall(result)
            if start and kind == "collective-permute":
                # (operand, result), on TPUs with two numbers of its own behind them.
                shapes = shapes[1:2]
            elif start and result.startswith("(") and len(shapes) > 1:
                # An asynchronous start gives (operands, results).
                shapes = shapes[len(shapes) // 2 :]
            found.append(Collective(kind, _nbytes(shapes), times))
    return found


def _nbytes(shapes: list[tuple[str, str]]) -> int:
    return sum(
        math.prod(int(size) for size in sizes.split(",") if size) * _itemsize(dtype)
        for dtype, sizes in shapes
    )


def _itemsize(dtype: str) -> int:
    """Bytes of one of HLO's dtypes: pred, s32, bf16, f32, f8e4m3fn, ..."""
    return 1 if dtype == "pred" else max(1, int(re.sub(r"\D*(\d+).*", r"\1", dtype)) // 8)

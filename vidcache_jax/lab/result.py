"""What is known of one finished run, in memory and as JSON."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

FILE = "result.json"
VIDEO = "video.mp4"
SHEET = "sheet.png"
_DIGITS = 7


@dataclasses.dataclass(frozen=True)
class Cost:
    """Measured, so never twice the same.

    Attributes:
      cache_bytes: of the cache's buffers, all layers.
      first_chunk: seconds; with compilation, unless the program was compiled before.
      chunk: median seconds of the later chunks (NaN without any): text is encoded before,
        metrics and the mp4 come after.
    """

    cache_bytes: int
    first_chunk: float
    chunk: float


@dataclasses.dataclass(frozen=True)
class Result:
    """One run's figures over time.

    Attributes:
      settings: of the run (`Run.settings`).
      frames: pixel frames of each chunk.
      series: figures of each chunk by name (`metrics.table.METRICS`), NaN where not measured.
      machine: versions and device.
    """

    settings: dict[str, Any]
    frames_per_second: float
    frames: np.ndarray
    series: dict[str, np.ndarray]
    cost: Cost
    machine: dict[str, str]

    @property
    def seconds(self) -> np.ndarray:
        """When each chunk begins."""
        return (np.cumsum(self.frames) - self.frames) / self.frames_per_second

    def write(self, folder: Path) -> None:
        content = {
            "settings": self.settings,
            "frames_per_second": self.frames_per_second,
            "frames": self.frames.tolist(),
            "series": {name: [_json(x) for x in values] for name, values in self.series.items()},
            "cost": {name: _json(x) for name, x in dataclasses.asdict(self.cost).items()},
            "machine": self.machine,
        }
        (folder / FILE).write_text(json.dumps(content))

    @classmethod
    def read(cls, folder: Path) -> "Result":
        """Raises ValueError if the folder's file is not what `write` writes."""
        path = folder / FILE
        try:
            content = json.loads(path.read_text())
            number = lambda x: math.nan if x is None else float(x)
            cost, series = content["cost"], content["series"]
            return cls(
                settings=content["settings"],
                frames_per_second=content["frames_per_second"],
                frames=np.array(content["frames"], np.int64),
                series={name: np.array([*map(number, values)]) for name, values in series.items()},
                cost=Cost(**{**cost, "chunk": cost["chunk"] or math.nan}),
                machine=content["machine"],
            )
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}); remove {folder}") from error


def _json(number: float | int | None) -> float | int | None:
    """JSON has no NaN; and more digits than these are noise."""
    if number is None or isinstance(number, int):
        return number
    return None if math.isnan(number) else float(f"{number:.{_DIGITS}g}")

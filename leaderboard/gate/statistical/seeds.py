"""The files of a statistical baseline: <method>/<kind>.json ("prior/cpu-fp32.json") holds the values of every seed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prior_bench.leaderboard.gate.baseline import Origin
from prior_bench.leaderboard.gate.statistical.judgement import Better

PACKAGED = Path(__file__).parent / "baseline"
LEAST = 5  # seeds: with four a loss has to be 28 deviations to be found, more than metrics lie above chance
_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Series:
    """The values of one quantity, one a seed in the order of the seeds; None where it is undefined."""

    better: Better
    values: tuple[float | None, ...]


@dataclass(slots=True)
class SuiteCell:
    """One cell over its seeds. `made_from` are digests of what must be the same to compare; `problem` says why a seed
    has no numbers, and `broken` that this is the program's fault."""

    made_from: dict[str, str]
    quantities: dict[str, Series] = field(default_factory=dict)
    problem: str = ""
    broken: bool = False

    def add(self, name: str, better: Better, value: float | None) -> None:
        before = self.quantities[name].values if name in self.quantities else ()
        rounded = None if value is None else float(f"{value:.{_DIGITS}g}")
        self.quantities[name] = Series(better, (*before, rounded))


@dataclass(frozen=True, slots=True)
class Baseline:
    """What unchanged code gives of a method on a device kind in a precision, by cell ("prior/zero-shot/findings")."""

    schema: int
    kind: str
    origin: Origin
    seeds: tuple[int, ...]
    cells: dict[str, SuiteCell]

    def __post_init__(self) -> None:
        if len(self.seeds) < LEAST:
            raise ValueError(f"seeds: {len(self.seeds)}, expected {LEAST} or more")
        for title, cell in self.cells.items():
            for name, series in cell.quantities.items():
                if len(series.values) != len(self.seeds):
                    raise ValueError(f"cells.{title}.{name}: {len(series.values)} values, expected one a seed")


def methods(folder: Path) -> list[str]:
    """Methods that a baseline holds, on whatever device kind."""
    return sorted({path.parent.name for path in folder.glob("*/*.json")})


def content(baseline: Baseline) -> dict[str, Any]:
    """A baseline as JSON, cells sorted by title."""
    found = asdict(baseline)
    found["cells"] = dict(sorted(found["cells"].items()))
    for cell in found["cells"].values():
        del cell["problem"], cell["broken"]  # what has one is never written
    return found

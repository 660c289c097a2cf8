"""The files of a statistical baseline: <method>/<kind>.json ("prior/cpu-fp32.json") holds the values of every seed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from prior_bench.errors import UserError
from prior_bench.leaderboard.gate.options import Origin
from prior_bench.leaderboard.gate.statistical.judgement import Better
from prior_bench.results import parse_json, write_text

PACKAGED = Path(__file__).parent / "baseline"
SCHEMA = 1
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


def file_of(folder: Path, method: str, kind: str) -> Path:
    return folder / method / f"{kind}.json"


def methods(folder: Path) -> list[str]:
    """Methods that a baseline holds, on whatever device kind."""
    return sorted({path.parent.name for path in folder.glob("*/*.json")})


def kinds(folder: Path, method: str) -> list[str]:
    """Device kinds and precisions on which a method has a baseline."""
    return sorted(path.stem for path in (folder / method).glob("*.json"))


def read(folder: Path, method: str, kind: str) -> Baseline | None:
    """The baseline of a method on a device kind and precision, strictly; None: there is none."""
    file = file_of(folder, method, kind)
    if not file.is_file():
        return None
    try:
        found = parse_json(Baseline, file.read_text(encoding="utf-8"), SCHEMA)
        _check(found, kind)
    except ValueError as error:
        raise UserError(f"the statistical baseline is damaged: {error}", where=str(file),
                        fix="restore the file, or write it anew with `prior-bench check --gate statistical --update`"
                        ) from error
    return found


def _check(found: Baseline, kind: str) -> None:
    if found.kind != kind:
        raise ValueError(f"kind: {found.kind!r}, expected {kind!r} as the file's name says")
    if len(found.seeds) < 2:
        raise ValueError(f"seeds: {len(found.seeds)}, expected 2 or more")
    for title, cell in found.cells.items():
        for name, series in cell.quantities.items():
            if len(series.values) != len(found.seeds):
                raise ValueError(f"cells.{title}.{name}: {len(series.values)} values, expected one a seed")


def write(folder: Path, method: str, kind: str, origin: Origin, seeds: Sequence[int],
          cells: Mapping[str, SuiteCell]) -> Path:
    """A baseline as JSON, cells sorted by title, the values of a quantity on one line."""
    content = asdict(Baseline(SCHEMA, kind, origin, tuple(seeds), dict(sorted(cells.items()))))
    for cell in content["cells"].values():
        del cell["problem"], cell["broken"]  # what has one is never written
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    text = re.sub(r"\[[^\[\]\"]*\]", lambda found: json.dumps(json.loads(found[0])), text)
    file = file_of(folder, method, kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text + "\n")
    return file

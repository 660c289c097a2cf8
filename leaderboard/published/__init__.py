"""Numbers that papers print (results.csv, with protocol and source of each), to be read beside a leaderboard.

They come from other splits, images and heads than this project's and are never compared or ranked with its own.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from prior_bench.leaderboard.sheets import Line, Sheet, Shown
from prior_bench.leaderboard.tables import by_size

WARNING = ("As printed by the papers (times 100), NOT measured here: the protocols differ from this project's and from "
           "one another (splits, images, heads), so the numbers cannot be compared across them and are not ranked.")


@dataclass(frozen=True, slots=True)
class Published:
    """One number, value and std with the digits that are printed.

    `status` is "paper" for the authors' own experiment and "reprint" where another paper reports it.
    """

    method: str
    task: str
    dataset: str
    metric: str
    fraction: float | None
    value: str
    std: str  # empty where none is printed
    protocol: str
    source: str
    status: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"value": float(self.value), "std": float(self.std) if self.std else None}


def read() -> list[Published]:
    """All published numbers, in the order of the file."""
    with (Path(__file__).parent / "results.csv").open(encoding="utf-8", newline="") as file:
        rows: Iterable[dict[str, Any]] = csv.DictReader(file)
        return [Published(**row | {"fraction": float(row["fraction"]) if row["fraction"] else None}) for row in rows]


@dataclass(frozen=True, slots=True)
class Group:
    """The numbers of one task, dataset and metric: by protocol and source, then by method and status, by fraction."""

    title: str
    fractions: list[float | None]
    blocks: dict[tuple[str, str], dict[tuple[str, str], dict[float | None, Published]]]

    @property
    def header(self) -> list[str]:
        return ["printed" if fraction is None else f"{fraction:.0%}" for fraction in self.fractions]


def grouped(numbers: Iterable[Published]) -> Iterator[Group]:
    """What stands in one table: a protocol with its source has its own lines."""
    def where(n: Published) -> tuple[str, str, str]:
        return n.task, n.dataset, n.metric

    for (task, dataset, metric), found in groupby(sorted(numbers, key=where), where):
        some = list(found)
        group = Group(f"{task} on {dataset}, {metric}", sorted({n.fraction for n in some}, key=by_size), {})
        for n in some:
            methods = group.blocks.setdefault((n.protocol, n.source), {})
            methods.setdefault((n.method, n.status), {})[n.fraction] = n
        yield group


def sheets(numbers: Iterable[Published]) -> Iterator[Sheet]:
    """One sheet for each group."""
    for group in grouped(numbers):
        sheet = Sheet(f"Published numbers: {group.title} (other protocols)", WARNING, ["method", *group.header])
        for (protocol, source), methods in group.blocks.items():
            sheet.lines.append(Line(f"{protocol}; {source}"))
            sheet.lines += [Line(f"{method} ({status})", tuple(_shown(printed.get(f)) for f in group.fractions))
                            for (method, status), printed in methods.items()]
        yield sheet


def _shown(number: Published | None) -> Shown:
    if number is None:
        return Shown()
    return Shown(f"{number.value} ± {number.std}" if number.std else number.value)

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


def sheets(numbers: list[Published]) -> Iterator[Sheet]:
    """One sheet for each task, dataset and metric, in which a protocol with its source has its own lines."""
    def where(n: Published) -> tuple[str, str, str]:
        return n.task, n.dataset, n.metric

    for (task, dataset, metric), found in groupby(sorted(numbers, key=where), where):
        some = list(found)
        fractions = sorted({n.fraction for n in some}, key=by_size)
        header = ["method", *("printed" if f is None else f"{f:.0%}" for f in fractions)]
        sheet = Sheet(f"Published numbers: {task} on {dataset}, {metric} (other protocols)", WARNING, header)
        for title in dict.fromkeys((n.protocol, n.source) for n in some):
            sheet.lines.append(Line("{}; {}".format(*title)))
            here = [n for n in some if (n.protocol, n.source) == title]
            for method, status in dict.fromkeys((n.method, n.status) for n in here):
                printed = {n.fraction: n for n in here if (n.method, n.status) == (method, status)}
                sheet.lines.append(Line(f"{method} ({status})", tuple(_shown(printed.get(f)) for f in fractions)))
        yield sheet


def _shown(number: Published | None) -> Shown:
    if number is None:
        return Shown()
    return Shown(f"{number.value} ± {number.std}" if number.std else number.value)

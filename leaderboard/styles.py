"""How a method looks, the same in every plot: colour, dash, marker and hatch, so that grey prints and colour-blind
readers can tell methods apart."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prior_bench.leaderboard.tables import Known, Row

# Okabe and Ito's colours, without black and yellow, which vanish on dark and on light paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREYS = ("#7f7f7f", "#a0a0a0")  # of references
DASHES = ("solid", "dash", "dot", "dashdot", "9px,3px,2px,3px,2px,3px")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down")
HATCHES = ("", "/", "x", "\\", ".", "-", "+")


@dataclass(frozen=True, slots=True)
class Style:
    """In the names of Plotly."""

    colour: str
    dash: str
    marker: str
    hatch: str


def styles(known: Known) -> dict[str, Style]:
    """A style for each method of a leaderboard; methods are coloured, references (never pre-trained here) grey."""
    rows = {row for table in known.tables for row in table.entries}
    methods = sorted({row.method for row in rows if not row.reference})
    references = sorted({row.method for row in rows} - set(methods))
    found = {name: _style(k, COLOURS) for k, name in enumerate(methods)}
    return found | {name: _style(k + 1, GREYS) for k, name in enumerate(references)}


def _style(k: int, colours: tuple[str, ...]) -> Style:
    return Style(*(some[k % len(some)] for some in (colours, DASHES, MARKERS, HATCHES)))


def names(rows: Iterable[Row]) -> dict[Row, str]:
    """Short names of the rows of one track: the method, and what it was pre-trained on where that tells rows apart."""
    some = list(rows)
    methods = [row.method for row in some]
    return {row: (row.method if methods.count(row.method) == 1 else f"{row.method} ({row.source})")
            + "*" * bool(row.note) for row in some}


def shades(rows: Iterable[Row]) -> dict[Row, float]:
    """Opacity of each row: rows of one method, pre-trained on other data, share a style and become paler."""
    seen: dict[str, int] = {}
    found = {}
    for row in rows:
        found[row] = max(0.3, 1 - 0.35 * seen.get(row.method, 0))
        seen[row.method] = seen.get(row.method, 0) + 1
    return found

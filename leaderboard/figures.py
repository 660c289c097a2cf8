"""Static pictures of a leaderboard for papers: the series of the page's plots as PNG and SVG, drawn with matplotlib.

Sized for a page of two columns (3.4 and 7 inches), in 7 and 8 points, readable in grey, with text as text in the SVG.
Equal results give equal bytes on one machine: no dates, and ids from a fixed salt.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prior_bench.files import write_file
from prior_bench.leaderboard.page.plots import element_id
from prior_bench.leaderboard.ranking import Overview, overviews
from prior_bench.leaderboard.series import Chart, Line, Panel, charts
from prior_bench.leaderboard.styles import Style, names, shades, styles
from prior_bench.leaderboard.tables import Known, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, PAGE = 3.4, 7.0  # inches
DPI = 300
PANELS = 4  # in a row, of a page's width
LETTERS = 28  # of a label beside a panel
SETTINGS: Any = {"svg.hashsalt": "prior-bench", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 7,
                 "axes.titlesize": 7, "axes.labelsize": 8, "legend.fontsize": 7, "xtick.labelsize": 7,
                 "ytick.labelsize": 7, "axes.linewidth": 0.6, "lines.linewidth": 1.2, "lines.markersize": 4,
                 "axes.grid": True, "grid.alpha": 0.3, "grid.linewidth": 0.5, "text.parse_math": False,
                 "hatch.linewidth": 0.5, "axes.spines.top": False, "axes.spines.right": False}
_DASHES = {"solid": "-", "dash": (0, (4, 2)), "dot": (0, (1, 1)), "dashdot": (0, (5, 1.5, 1, 1.5)),
           "9px,3px,2px,3px,2px,3px": (0, (5, 1.5, 1, 1.5, 1, 1.5))}
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "x": "X", "cross": "P",
            "triangle-down": "v"}
_HATCHES = {"": "", "/": "////", "x": "xxxx", "\\": "\\\\\\\\", ".": "....", "-": "----", "+": "++++"}


def write(known: Known, folder: Path, output: Path) -> list[Path]:
    """Draw everything into `output`, each as NAME.png and NAME.svg; returns the files.

    Args:
        folder: the results.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    output.mkdir(parents=True, exist_ok=True)
    files = []
    with rc_context(SETTINGS):
        for name, figure in _drawn(known, folder):
            # `savefig` would draw each twice, and lay it out each time.
            png, svg = output / f"{name}.png", output / f"{name}.svg"
            write_file(png, partial(FigureCanvasAgg(figure).print_png, metadata={"Software": None}))
            figure.set_layout_engine("none")
            write_file(svg, partial(FigureCanvasSVG(figure).print_svg, metadata={"Date": None, "Creator": None}))
            files += [png, svg]
    return files


def _drawn(known: Known, folder: Path) -> Iterator[tuple[str, Figure]]:
    looks = styles(known)
    for overview in overviews(known.tables):
        yield element_id("ranks", overview.profile, overview.track), _ranks(overview, looks)
    for chart in charts(known, folder):
        words = () if chart.heading is None else chart.heading.words
        yield element_id(chart.group, *words, chart.track), _chart(chart, looks)


def _ranks(overview: Overview, looks: Mapping[str, Style]) -> Figure:
    """Mean ranks with intervals; a bar at the right joins what does not differ."""
    rows = [s.row for s in overview.standings]
    called = names(rows)
    figure, (axes,) = _panels(1, 1, COLUMN, 0.55 + 0.22 * len(rows))
    for place, s in enumerate(overview.standings):
        look = looks[s.row.method]
        low, high = s.interval or (s.mean_rank, s.mean_rank)
        axes.plot([low, high], [place, place], color=look.colour, solid_capstyle="butt")
        axes.plot(s.mean_rank, place, marker=_MARKERS[look.marker], color=look.colour, markeredgecolor="white",
                  markeredgewidth=0.5, markersize=6)
    right = max(x for s in overview.standings for x in (s.mean_rank, *(s.interval or ())))
    step = 0.05 * max(right - 1, 1)
    for k, tie in enumerate(overview.ties):
        x = right + (k + 2) * step
        axes.plot([x, x], [rows.index(tie[0]) - 0.2, rows.index(tie[-1]) + 0.2], color="0.3", linewidth=2.5,
                  solid_capstyle="butt")
    axes.set(xlabel="mean rank, 1 is best", yticks=range(len(rows)), ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticklabels([called[row] for row in rows])
    axes.grid(False, axis="y")
    return figure


def _chart(chart: Chart, looks: Mapping[str, Style]) -> Figure:
    count, wide = len(chart.panels), chart.group == "labels"
    columns = 1 if wide else min(PANELS, count)
    square = chart.group in {"roc", "precision-recall", "reliability"}
    width = PAGE if wide or count > 1 else COLUMN
    lines = -(-count // columns)
    figure, panels = _panels(count, columns, width, lines * (1.9 if count > 1 or wide else 2.4) + 0.4)
    called, pale = names(chart.rows), shades(chart.rows)
    for axes, panel in zip(panels, chart.panels, strict=True):
        axes.set_title("\n".join(panel.title.split(", ")))
        if panel.guide is not None:
            axes.plot(*zip(*panel.guide, strict=True), color="0.5", linestyle=":", linewidth=0.8)
        if wide:
            _bars(axes, chart, panel, looks, called, pale)
        else:
            for row in chart.rows:
                for n, line in enumerate(line for line in panel.lines if line.row == row):
                    _curve(axes, chart, line, looks[row.method], called[row] if n == 0 else None, pale[row])
        if square:
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal", xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    if chart.group == "data efficiency":
        panels[0].set_xscale("log")
        panels[0].set_xticks([1, 10, 100], ["1", "10", "100"])
        panels[0].minorticks_off()
    for k, axes in enumerate(panels):
        left, bottom = k % columns == 0, k + columns >= count
        axes.set_ylabel(textwrap.fill(chart.y, LETTERS) if left else "")
        axes.set_xlabel(chart.x if bottom else "")
        if square:
            axes.tick_params(labelleft=left, labelbottom=bottom)
    _legend(figure, panels, 7 if width == PAGE else 3)
    return figure


def _curve(axes: Axes, chart: Chart, line: Line, look: Style, label: str | None, opacity: float) -> None:
    points = chart.group in {"data efficiency", "reliability"}
    axes.plot(line.x, line.y, color=look.colour, linestyle=_DASHES[look.dash], alpha=opacity, label=label,
              marker=_MARKERS[look.marker] if points or line.marked is not None else None,
              markevery=None if points or line.marked is None else [line.marked],
              markersize=3 if chart.group == "reliability" else 4)
    for step in line.stages:
        axes.axvline(step, color=look.colour, linestyle=":", linewidth=0.8)
    if line.low:
        axes.fill_between(np.array(line.x, float), line.low, line.high, color=look.colour, alpha=0.1, linewidth=0)


def _bars(axes: Axes, chart: Chart, panel: Panel, looks: Mapping[str, Style], called: Mapping[Row, str],
          pale: Mapping[Row, float]) -> None:
    order = list(dict.fromkeys(str(x) for p in chart.panels for line in p.lines for x in line.x))
    width = 0.85 / len(chart.rows)
    for line in panel.lines:
        k, look = chart.rows.index(line.row), looks[line.row.method]
        at = np.array([order.index(str(x)) for x in line.x]) + (k - (len(chart.rows) - 1) / 2) * width
        y, low, high = (np.array(values, float) for values in (line.y, line.low, line.high))
        axes.bar(at, y - chart.base, width, bottom=chart.base, color=look.colour, edgecolor="white", linewidth=0.3,
                 hatch=_HATCHES[look.hatch], alpha=pale[line.row], label=called[line.row])
        error = np.nan_to_num([y - low, high - y])
        axes.errorbar(at, y, error, fmt="none", ecolor="0.25", elinewidth=0.6)
    crowded = max(map(len, order)) * len(order) > 90  # letters that a page's width holds
    axes.set_xticks(range(len(order)), order, rotation=25 if crowded else 0, ha="right" if crowded else "center")
    axes.axhline(chart.base, color="0.3", linewidth=0.6)
    axes.grid(False, axis="x")


def _panels(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    lines = -(-count // columns)
    return figure, [figure.add_subplot(lines, columns, k + 1) for k in range(count)]


def _legend(figure: Figure, panels: Sequence[Axes], columns: int) -> None:
    """One legend below all panels."""
    found = (pair for axes in panels for pair in zip(*axes.get_legend_handles_labels(), strict=True))
    entries = {label: handle for handle, label in found}
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=min(columns, len(entries)),
                  frameon=False, handlelength=2.6)

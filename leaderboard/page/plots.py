"""The plots of the page: charts (series.py) and ranks (ranking.py) as Plotly figures, which are plain dicts here.

A figure whose chart has several panels has a Plotly dropdown (`layout.updatemenus[0]`), whose buttons are calls of
`Plotly.update`: a page may as well offer them in a list of its own. No background and no font colour is set.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prior_bench.digests import digest_json
from prior_bench.leaderboard.ranking import Overview, overviews
from prior_bench.leaderboard.series import Chart, Line, Panel, charts, ordered, shown
from prior_bench.leaderboard.styles import Style, names, shades, styles
from prior_bench.leaderboard.tables import Heading, Known, Row

Trace = dict[str, Any]

GRID, GUIDE = "rgba(128,128,128,0.25)", "rgba(128,128,128,0.9)"
HEIGHT = 440
BAND = 0.12  # opacity of an interval's band
NO_TABLE = Heading("", "", "", "", "", 0)
_EMPTY: dict[str, Any] = {"x": [], "y": [], "text": [], "showlegend": False}


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure with what is said about it. `heading` has empty fields where it is about several tables."""

    id: str
    group: str
    title: str
    caption: str
    alt: str
    figure: dict[str, Any]
    heading: Heading
    track: str


def figures(known: Known, folder: Path) -> list[Plot]:
    """All plots of a results folder: the ranks of each track, then the charts of each table."""
    looks = styles(known)
    return [*(_ranks(one, looks) for one in overviews(known.tables)),
            *(_plot(chart, looks) for chart in charts(known, folder))]


# ------------------------------------------------------------------------------------------------ ranks


def _ranks(overview: Overview, looks: Mapping[str, Style]) -> Plot:
    rows = [s.row for s in overview.standings]
    called = names(rows)
    traces = []
    for place, s in enumerate(overview.standings):
        low, high = s.interval or (s.mean_rank, s.mean_rank)
        look = looks[s.row.method]
        traces.append({
            "type": "scatter", "mode": "markers", "name": _text(called[s.row]), "x": [_short(s.mean_rank)],
            "y": [place], "showlegend": False, "marker": {"color": look.colour, "symbol": look.marker, "size": 11},
            "error_x": _error([s.mean_rank], [low], [high], look.colour) | {"thickness": 2, "width": 6},
            "hovertemplate": _text(f"{called[s.row]}: mean rank {shown(s.mean_rank, s.interval)}, best or tied in "
                                   f"{s.first} of {overview.cells} cells") + "<extra></extra>"})
    worst = max(x for s in overview.standings for x in (s.mean_rank, *(s.interval or ())))
    step = 0.05 * max(worst - 1, 1)
    for k, tie in enumerate(overview.ties):
        ends = [rows.index(tie[0]) - 0.2, rows.index(tie[-1]) + 0.2]
        traces.append({"type": "scatter", "mode": "lines", "x": [_short(worst + (k + 2) * step)] * 2, "y": ends,
                       "showlegend": False, "line": {"color": GUIDE, "width": 5}, "hovertemplate":
                       _text("not significantly different: " + ", ".join(called[r] for r in tie)) + "<extra></extra>"})
    layout = _layout("mean rank, 1 is best", "")
    layout["xaxis"] |= {"zeroline": False, "range": [_short(1 - step), _short(worst + (len(overview.ties) + 2) * step)]}
    layout["yaxis"] |= {"tickvals": list(range(len(rows))), "ticktext": [_text(called[r]) for r in rows],
                        "range": [len(rows) - 0.5, -0.5], "zeroline": False, "showgrid": False}
    layout |= {"height": 150 + 36 * len(rows), "hovermode": "closest"}
    standing = "; ".join(f"{called[s.row]} {s.mean_rank:.2f}" for s in overview.standings)
    ties = "; ".join(" and ".join(called[r] for r in tie) for tie in overview.ties) or "none"
    caption = (f"Mean rank over the {overview.cells} of {overview.all_cells} cells (table and fraction) in which all "
               "methods have a value, with its 95 % interval. A thick line joins neighbours of which no two differ "
               "significantly in mean rank (paired in the same draws, two-sided 5 %, Holm over the pairs).")
    return Plot(element_id("ranks", overview.profile, overview.track), "ranks", f"Mean ranks, track {overview.track}",
                caption,
                f"Mean ranks in track {overview.track}: {standing}. Not told apart: {ties}.",
                {"data": traces, "layout": layout}, replace(NO_TABLE, profile=overview.profile), overview.track)


# ----------------------------------------------------------------------------------------------- charts


def _plot(chart: Chart, looks: Mapping[str, Style]) -> Plot:
    about = _Looks(looks, names(chart.rows), shades(chart.rows))
    place = _place(chart)
    group = "training" if chart.group == "pre-training" else chart.group
    h = chart.heading or replace(NO_TABLE, dataset=", ".join(sorted({row.source for row in chart.rows})))
    return Plot(element_id(chart.group, *h.words, chart.track), group, f"{TITLES[chart.group]}: {place}",
                _CAPTIONS[chart.group].format(base=chart.base), _alt(chart, place, about.names), _figure(chart, about),
                h, chart.track)


@dataclass(frozen=True, slots=True)
class _Looks:
    """How the rows of one chart look and are called."""

    styles: Mapping[str, Style]
    names: Mapping[Row, str]
    shades: Mapping[Row, float]

    def of(self, row: Row) -> Style:
        return self.styles[row.method]


def _figure(chart: Chart, looks: _Looks) -> dict[str, Any]:
    """The first panel as traces, the others as buttons that put their data into the same traces."""
    slots = _slots(chart)
    panels = [_panel_traces(chart, panel, slots, looks) for panel in chart.panels]
    layout = _layout(chart.x, chart.y) | _LAYOUTS.get(chart.group, {})
    for axis in ("xaxis", "yaxis"):
        layout[axis] = _layout(chart.x, chart.y)[axis] | _AXES.get(chart.group, {}).get(axis, {})
    if chart.group == "labels":
        order = dict.fromkeys(str(x) for panel in chart.panels for line in panel.lines for x in line.x)
        layout["xaxis"] |= {"type": "category", "categoryorder": "array", "categoryarray": [_text(x) for x in order]}
    begins = dict.fromkeys((step, looks.of(line.row).colour) for panel in chart.panels for line in panel.lines
                           for step in line.stages)
    if begins:
        layout["shapes"] = [{"type": "line", "x0": _short(step), "x1": _short(step), "yref": "paper", "y0": 0, "y1": 1,
                             "line": {"color": colour, "dash": "dot", "width": 1}} for step, colour in begins]
    if len(panels) > 1:
        layout["updatemenus"] = [_menu([panel.title for panel in chart.panels], panels)]
        layout["margin"] = layout["margin"] | {"t": 70}
    return {"data": panels[0], "layout": layout}


def _slots(chart: Chart) -> list[tuple[Row, int]]:
    """What has a trace of its own: the n-th line of each row, as far as any panel has one."""
    most: dict[Row, int] = {}
    for panel in chart.panels:
        for row in chart.rows:
            most[row] = max(most.get(row, 0), sum(line.row == row for line in panel.lines))
    return [(row, n) for row in ordered(most) for n in range(most[row])]


def _panel_traces(chart: Chart, panel: Panel, slots: Sequence[tuple[Row, int]], looks: _Looks) -> list[Trace]:
    traces = [_guide(chart, panel)] if any(p.guide for p in chart.panels) else []
    for row, n in slots:
        own = [line for line in panel.lines if line.row == row]
        line = own[n] if n < len(own) else None
        if chart.group == "labels":
            traces.append(_bars(chart, line, row, looks))
            continue
        if chart.group == "data efficiency":
            traces.append(_band(line, row, looks))
        traces.append(_curve(chart, line, row, n, looks))
    return traces


def _curve(chart: Chart, line: Line | None, row: Row, n: int, looks: _Looks) -> Trace:
    look, name = looks.of(row), looks.names[row]
    points = chart.group in {"data efficiency", "reliability"}
    trace: Trace = {
        "type": "scatter", "mode": "lines+markers" if points else "lines", "opacity": looks.shades[row],
        "legendgroup": _text(row.label), "meta": _meta(row),
        "line": {"color": look.colour, "dash": look.dash, "width": 2},
        "marker": {"color": look.colour, "symbol": look.marker, "size": 7},
        "hovertemplate": f"{_text(name)}<br>{_HOVERS[chart.group]}<br>%{{text}}<extra></extra>"}
    if line is None:
        return trace | _EMPTY | {"name": _text(name)}
    trace |= {"x": list(line.x), "y": [_short(y) for y in line.y], "text": _texts(line), "showlegend": n == 0,
              "name": _text(f"{name}, {line.note}" if line.note and chart.group in _NOTED else name)}
    if line.marked is not None:
        trace |= {"mode": "lines+markers"}
        trace["marker"] = trace["marker"] | {"size": [10 if k == line.marked else 0 for k in range(len(line.x))]}
    return trace


def _bars(chart: Chart, line: Line | None, row: Row, looks: _Looks) -> Trace:
    look, name = looks.of(row), looks.names[row]
    trace: Trace = {"type": "bar", "name": _text(name), "legendgroup": _text(row.label), "meta": _meta(row),
                    "base": chart.base, "opacity": looks.shades[row],
                    "marker": {"color": look.colour, "pattern": {
                        "shape": look.hatch, "size": 6, "solidity": 0.3, "fillmode": "replace",
                        "bgcolor": look.colour, "fgcolor": "rgba(255,255,255,0.7)"}},
                    "hovertemplate": f"{_text(name)}<br>%{{x}}: %{{text}}<extra></extra>", "textposition": "none"}
    if line is None:
        return trace | _EMPTY | {"error_y": _error([], [], [], GUIDE)}
    return trace | {"x": [_text(x) for x in line.x], "y": [_short(y - chart.base) for y in line.y],
                    "text": _texts(line), "showlegend": True, "error_y": _error(line.y, line.low, line.high, GUIDE)}


def _band(line: Line | None, row: Row, looks: _Looks) -> Trace:
    """The interval of a curve."""
    look = looks.of(row)
    trace: Trace = {"type": "scatter", "mode": "lines", "fill": "toself", "fillcolor": _faded(look.colour, BAND),
                    "line": {"width": 0, "color": look.colour}, "legendgroup": _text(row.label), "meta": _meta(row),
                    "hoverinfo": "skip", "showlegend": False}
    whole = [] if line is None else [k for k, low in enumerate(line.low) if not math.isnan(low)]
    if line is None or not whole:
        return trace | {"x": [], "y": []}
    return trace | {"x": [line.x[k] for k in [*whole, *reversed(whole)]],
                    "y": [*(_short(line.low[k]) for k in whole), *(_short(line.high[k]) for k in reversed(whole))]}


def _guide(chart: Chart, panel: Panel) -> Trace:
    name = "perfect calibration" if chart.group == "reliability" else "chance"
    trace: Trace = {"type": "scatter", "mode": "lines", "name": name, "hoverinfo": "skip",
                    "line": {"color": GUIDE, "dash": "dot", "width": 1}, "text": []}
    if panel.guide is None:
        return trace | _EMPTY
    (x0, y0), (x1, y1) = panel.guide
    return trace | {"x": [x0, x1], "y": [_short(y0), _short(y1)], "showlegend": True}


def _menu(titles: Sequence[str], panels: Sequence[list[Trace]]) -> dict[str, Any]:
    """A dropdown; what a button sets is what differs between the panels."""
    keys = [key for key in ("x", "y", "text", "name", "showlegend", "mode", "error_y.array", "error_y.arrayminus",
                            "marker.size") if len({digest_json([_get(t, key) for t in p]) for p in panels}) > 1]
    buttons = [{"label": _text(title), "method": "update", "args": [{key: [_get(t, key) for t in traces]
                                                                     for key in keys}, {}]}
               for title, traces in zip(titles, panels, strict=True)]
    return {"type": "dropdown", "buttons": buttons, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom",
            "pad": {"b": 6}, "bgcolor": "rgba(128,128,128,0.15)", "bordercolor": GRID}


def _get(trace: Mapping[str, Any], key: str) -> Any:
    found: Any = trace
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


# ------------------------------------------------------------------------------------------------ words


TITLES = {"data efficiency": "Data efficiency", "labels": "Each label", "roc": "ROC curves",
          "precision-recall": "Precision-recall curves", "reliability": "Reliability",
          "training": "Training of the head", "pre-training": "Pre-training"}
_CAPTIONS = {
    "data efficiency": "Mean over seeds, and its 95 % interval (bootstrap over patients) as a band.",
    "labels": "Mean over seeds with its 95 % interval. Bars begin at {base:g}.",
    "roc": "Averaged over runs (and labels) at each false positive rate. In the legend the AUROC, with its 95 % "
           "interval.",
    "precision-recall": "Averaged over runs (and labels) at each recall. In the legend the average precision, with its "
                        "95 % interval for the mean of the labels. Dotted: the share of positives, which is chance.",
    "reliability": "15 bins of equal mass (fewer images: fewer bins), the runs of a method together. In the legend the "
                   "expected calibration error (ECE), the mean over labels and runs.",
    "training": "A record of training, not recomputed from predictions: the validations of each run. The marked one "
                "was chosen.",
    "pre-training": "A record of training, not recomputed from predictions: each point is the mean of 1/40 of the run. "
                    "Losses of two methods are different functions; compare a curve with itself (a double click on its "
                    "name shows it alone). Dotted, in a method's colour: a later stage of it begins, from where on "
                    "its total may have more terms.",
}
_HOVERS = {"data efficiency": "%{x} % of the training data", "roc": "FPR %{x:.3f}, TPR %{y:.3f}",
           "precision-recall": "recall %{x:.3f}, precision %{y:.3f}",
           "reliability": "predicted %{x:.3f}, found %{y:.3f}", "training": "step %{x}: %{y:.3f}",
           "pre-training": "step %{x}: %{y:.4g}"}
_NOTED = {"roc", "precision-recall", "reliability"}  # the note stands in the legend
_UNIT = {"range": [-0.01, 1.01], "zeroline": False, "constrain": "domain"}
_SQUARE = {"xaxis": _UNIT, "yaxis": _UNIT | {"scaleanchor": "x"}}
_AXES: dict[str, dict[str, dict[str, Any]]] = {
    "data efficiency": {"xaxis": {"type": "log", "tickvals": [1, 10, 100], "ticktext": ["1", "10", "100"]}},
    "roc": _SQUARE, "precision-recall": _SQUARE, "reliability": _SQUARE, "training": {"xaxis": {"rangemode": "tozero"}},
    "pre-training": {"xaxis": {"rangemode": "tozero"}},
}
_BOX = {"height": 580, "hovermode": "closest"}
_LAYOUTS: dict[str, dict[str, Any]] = {
    "labels": {"barmode": "group", "bargap": 0.15, "hovermode": "closest"},
    "roc": _BOX, "precision-recall": _BOX, "reliability": _BOX,
}


def _place(chart: Chart) -> str:
    h = chart.heading
    if h is None:
        return f"track {chart.track}"
    task = h.task if h.mode == h.task else f"{h.task} ({h.mode})"
    profile = "" if h.profile == "standard" else f", profile {h.profile}"
    return f"{task} on {h.dataset} / {h.target}{profile}, track {chart.track}"


def _alt(chart: Chart, place: str, called: Mapping[Row, str]) -> str:
    """What a reader who does not see the plot should know: what is drawn, and where each method ends."""
    panel = chart.panels[0]
    ends = []
    for line in panel.lines:
        said = line.note if chart.group in _NOTED else shown(line.y[0] if chart.group == "labels" else line.y[-1])
        ends.append(f"{called[line.row]} {said}".rstrip())
    first = f" ({panel.title})" if panel.title else ""
    return f"{TITLES[chart.group]}, {place}{first}: {'; '.join(ends)}."


def _texts(line: Line) -> list[str] | str:
    """What a hover adds to the points: intervals, rows, or of all of them what sums them up."""
    if line.low:
        return [_text(shown(y, None if math.isnan(low) else (low, high)) + (f", {n} runs" if n > 1 else ""))
                for y, low, high, n in zip(line.y, line.low, line.high, line.counts, strict=True)]
    if line.counts:
        return [f"{n} rows" for n in line.counts]
    return _text(line.note)


# ----------------------------------------------------------------------------------------------- pieces


def _layout(x: str, y: str) -> dict[str, Any]:
    def axis(title: str) -> dict[str, Any]:
        return {"title": {"text": _text(title)}, "gridcolor": GRID, "zerolinecolor": GRID, "automargin": True}

    return {"xaxis": axis(x), "yaxis": axis(y), "height": HEIGHT, "margin": {"t": 20, "r": 20, "b": 50, "l": 60},
            "legend": {"orientation": "h", "y": 0, "yref": "container", "yanchor": "bottom"}}


def _error(y: Iterable[float], low: Iterable[float], high: Iterable[float], colour: str) -> dict[str, Any]:
    """Error bars from intervals; a point without one has none."""
    some = [(0.0, 0.0) if math.isnan(a) else (b - v, v - a) for v, a, b in zip(y, low, high, strict=True)]
    return {"type": "data", "symmetric": False, "array": [_short(up) for up, _ in some],
            "arrayminus": [_short(down) for _, down in some], "color": colour, "thickness": 1, "width": 2}


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _meta(row: Row) -> dict[str, Any]:
    """What the page's filters ask of a trace."""
    return {"method": row.method, "reference": row.reference}


def _faded(colour: str, opacity: float) -> str:
    red, green, blue = (int(colour[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def _text(text: object) -> str:
    """For Plotly, whose texts may hold tags."""
    return html.escape(str(text), quote=False)


def element_id(*parts: str) -> str:
    """An element's id: readable, and told apart by a digest where that is not enough."""
    plain = [re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts]
    joined = "-".join(part for part in plain if part)
    same = all(re.fullmatch(r"[a-z0-9 -]*", part) for part in parts)
    return joined if same else f"{joined}-{digest_json(parts)[:6]}"

"""Figures that Plotly accepts property by property, dropdowns that do what they say, and methods that look the same
everywhere."""

from __future__ import annotations

import json
import re

import numpy as np
import plotly.graph_objects as go
import pytest

from prior_bench.leaderboard import series
from prior_bench.leaderboard.page import plots
from prior_bench.leaderboard.styles import COLOURS, GREYS, Style, names, shades, styles
from prior_bench.leaderboard.tables import Row

LOSSES = {"total": [[5, 4.0], [15, 3.0]], "lr": [[5, 1e-3], [15, 5e-4]]}
HISTORY = {"validation": [{"step": 2, "auroc_macro": 0.6}, {"step": 4, "auroc_macro": 0.7}], "best_step": 4}


@pytest.fixture
def full(labelled):
    """Three methods and a reference at two fractions, with seeds, losses, validations, and a zero-shot table."""
    for method, skill in (("able", 2.0), ("fair", 1.0), ("poor", 0.2)):
        for fraction in (0.1, 1.0):
            for subset in (0, 1) if fraction < 1 else (0,):
                labelled(method, skill, fraction=fraction, subset=subset, details=HISTORY, weights={"losses": LOSSES})
        labelled(method, skill, task="zero-shot", fraction=None, probabilities=False)
    labelled("random", 0.0, fraction=0.1, source="none")
    return labelled


def applied(figure, button):
    """The figure after a click on a button, as `Plotly.update` has it."""
    data = json.loads(json.dumps(figure["data"]))
    changes, layout = button["args"]
    assert layout == {}
    for key, values in changes.items():
        assert len(values) == len(data)
        for trace, value in zip(data, values, strict=True):
            *path, last = key.split(".")
            place = trace
            for part in path:
                place = place.setdefault(part, {})
            if value is None:
                place.pop(last, None)
            else:
                place[last] = value
    return {"data": data, "layout": figure["layout"]}


def test_every_figure_and_every_button_is_valid(full):
    found = plots.figures(full.known(), full.folder)
    assert [p.group for p in found] == ["ranks", "data efficiency", "labels", "roc", "precision-recall", "reliability",
                                        "training", "labels", "roc", "precision-recall", "training"]
    assert len({p.id for p in found}) == len(found)
    for plot in found:
        assert re.fullmatch(r"[a-z][a-z0-9-]*", plot.id)
        assert plot.title
        assert plot.caption
        assert plot.alt.endswith(".")
        json.dumps(plot.figure, allow_nan=False)
        go.Figure(plot.figure)
        for menu in plot.figure["layout"].get("updatemenus", ()):
            assert len(menu["buttons"]) > 1
            assert applied(plot.figure, menu["buttons"][0]) == plot.figure
            for button in menu["buttons"]:
                go.Figure(applied(plot.figure, button))
        text = json.dumps(plot.figure["layout"])
        assert "font" not in text
        assert "paper_bgcolor" not in text
        assert "plot_bgcolor" not in text


def test_stages_of_a_pre_training_are_marked_in_its_colour():
    row = Row("prior", "small", "phantom")
    line = series.Line(row, (3, 9), (4.0, 5.0), stages=(7.0,))
    chart = series.Chart("pre-training", "small", "step", "", (series.Panel("total", (line, line)),))
    figure = plots._plot(chart, {"prior": Style("#0072B2", "solid", "circle", "")}).figure
    (shape,) = figure["layout"]["shapes"]
    assert (shape["x0"], shape["x1"], shape["line"]["color"], shape["line"]["dash"]) == (7, 7, "#0072B2", "dot")
    go.Figure(figure)


def test_a_panel_is_the_series(full):
    """What a click shows is what the series say, trace by trace."""
    found = {p.group: p for p in reversed(plots.figures(full.known(), full.folder))
             if p.heading.task == "classification"}
    charts = {c.group: c for c in reversed(series.charts(full.known(), full.folder))
              if c.heading and c.heading.task == "classification"}
    figure = found["roc"].figure
    for button, panel in zip(figure["layout"]["updatemenus"][0]["buttons"], charts["roc"].panels, strict=True):
        assert button["label"] == panel.title
        shown = applied(figure, button)["data"]
        assert [t["name"] for t in shown if t["showlegend"]] == [
            "chance", *(f"{line.row.method}, {line.note}" for line in panel.lines)]
        for line in panel.lines:
            (trace,) = [t for t in shown if t["name"].startswith(line.row.method + ",")]
            np.testing.assert_allclose(trace["x"], line.x)
            np.testing.assert_allclose(trace["y"], line.y, atol=1e-4)
    bars = found["labels"].figure["data"]
    for trace, line in zip(bars, charts["labels"].panels[0].lines, strict=False):
        np.testing.assert_allclose(np.add(trace["base"], trace["y"]), line.y, atol=1e-4)
        low = np.add(trace["base"], trace["y"]) - trace["error_y"]["arrayminus"]
        np.testing.assert_allclose(low, line.low, atol=1e-3)
        assert trace["text"][0] == series.shown(line.y[0], (line.low[0], line.high[0]))


def test_a_method_looks_the_same_everywhere(full):
    looks = {}
    for plot in plots.figures(full.known(), full.folder):
        for trace in plot.figure["data"]:
            method = re.match(r"able|fair|poor|random", trace.get("name", ""))
            if method and trace["marker"].get("color"):
                looks.setdefault(method[0], set()).add((trace["marker"]["color"],
                                                        trace.get("line", {}).get("dash")))
    assert {method: len({colour for colour, _ in found}) for method, found in looks.items()} == dict.fromkeys(looks, 1)
    assert all(len({dash for _, dash in found} - {None}) == 1 for found in looks.values())
    assert len({next(iter(found))[0] for found in looks.values()}) == 4
    assert {colour for colour, _ in looks["random"]} <= set(GREYS)


def test_ranks_say_what_ties(full):
    (plot,) = [p for p in plots.figures(full.known(), full.folder) if p.group == "ranks"]
    points = [t for t in plot.figure["data"] if t["mode"] == "markers"]
    assert [t["name"] for t in points] == list(plot.figure["layout"]["yaxis"]["ticktext"])
    assert points[0]["x"][0] <= points[-1]["x"][0]
    assert "able" in plot.alt
    low = points[0]["x"][0] - points[0]["error_x"]["arrayminus"][0]
    assert low <= points[0]["x"][0]


def test_names_cannot_bring_tags_into_a_figure(labelled):
    labelled("<b>x</b>", fraction=0.1)
    labelled("<b>x</b>", fraction=1.0)
    found = plots.figures(labelled.known(), labelled.folder)
    for trace in (trace for plot in found for trace in plot.figure["data"]):
        trace.pop("meta", None)  # for the page's script, never drawn
    text = json.dumps([p.figure for p in found])
    assert "<b>" not in text
    assert "&lt;b&gt;x" in text


def test_rows_of_one_method_share_a_style_and_pale(labelled):
    labelled("able", source="one")
    labelled("able", source="two")
    labelled("fair")
    found = labelled.known()
    rows = sorted(found.tables[0].entries)
    assert list(names(rows).values()) == ["able (one)", "able (two)", "fair"]
    assert list(shades(rows).values()) == [1.0, 0.65, 1.0]
    assert styles(found)["able"].colour == COLOURS[0]


def test_many_methods_differ_in_colour_or_dash(labelled):
    for k in range(20):
        labelled(f"m{k:02d}", n=10, missing=0)
    found = styles(labelled.known())
    assert len({(s.colour, s.dash) for s in found.values()}) == 20

"""Static pictures: all that there is to draw, not blank, text as text, and the same bytes each time."""

from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib import rc_context
from PIL import Image

from prior_bench.leaderboard import figures, series
from prior_bench.leaderboard.ranking import overviews
from prior_bench.leaderboard.series import Line
from prior_bench.leaderboard.styles import Style
from prior_bench.leaderboard.tables import Row

HISTORY = {"validation": [{"step": 2, "auroc_macro": 0.6}, {"step": 4, "auroc_macro": 0.7}], "best_step": 4}


@pytest.fixture
def few(labelled):
    for method, skill in (("able_$x$", 2.0), ("fair", 1.0)):
        for fraction in (0.1, 1.0):
            losses = {"total": [[5, 4.0], [9, 3.0]]}
            labelled(method, skill, fraction=fraction, details=HISTORY, weights={"losses": losses})
    return labelled


def test_every_chart_is_drawn_twice_and_not_blank(few, tmp_path):
    found = few.known()
    files = figures.write(found, few.folder, tmp_path / "drawn")
    drawn = series.charts(found, few.folder)
    assert {chart.group for chart in drawn} == {"data efficiency", "labels", "roc", "precision-recall", "reliability",
                                                "training", "pre-training"}
    assert len(files) == 2 * (len(drawn) + len(overviews(found.tables)))
    assert sorted(files) == sorted((tmp_path / "drawn").iterdir())
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as picture:
                pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
                assert picture.width in (round(figures.COLUMN * figures.DPI), round(figures.PAGE * figures.DPI))
            assert 0.5 < (pixels == 255).all(axis=1).mean() < 0.99
            assert (np.ptp(pixels.astype(int), axis=1) > 60).any()  # colours
        else:
            text = file.read_text()
            assert "able_$x$" in text  # letters, not outlines, and no formula
            assert not re.search(r"20\d\d-\d\d-\d\d", text)


def test_labels_fit_and_marks_and_stages_are_shown():
    row = Row("prior", "small", "phantom")

    def drawn(group, line):
        chart = series.Chart(group, "small", "step", "dice_foreground_image_mean on validation",
                             (series.Panel("", (line,)),))
        return figures._chart(chart, {"prior": Style("#0072B2", "solid", "circle", "")})

    with rc_context(figures.SETTINGS):
        figure = drawn("training", Line(row, (2, 4, 6), (0.1, 0.3, 0.2), marked=1))
        figure.draw_without_rendering()
        label = figure.axes[0].yaxis.label.get_window_extent()
    assert figure.bbox.y0 <= label.y0 < label.y1 <= figure.bbox.y1
    (handle,) = figure.legends[0].legend_handles
    assert handle.get_marker() == "o"
    lines = drawn("pre-training", Line(row, (3, 9), (4.0, 5.0), stages=(7.0,))).axes[0].lines
    assert [tuple(line.get_xdata()) for line in lines] == [(3, 9), (7.0, 7.0)]


def test_equal_results_give_equal_bytes(few, tmp_path):
    first = figures.write(few.known(), few.folder, tmp_path / "first")
    again = figures.write(few.known(), few.folder, tmp_path / "again")
    assert [f.name for f in first] == [f.name for f in again]
    for one, other in zip(first, again, strict=True):
        assert one.read_bytes() == other.read_bytes()

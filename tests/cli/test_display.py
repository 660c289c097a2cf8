"""The displays of `run`: summaries of cells, durations, and a live table that renders."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from prior_bench import execution, grid, plugins
from prior_bench.cli.display import LiveDisplay, PlainDisplay, State, duration, summarise

PLUGIN = Path(__file__).parents[1] / "plugin" / "toy_plugin.py"


@pytest.fixture
def planned(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_from_files", {kind: {} for kind in plugins.KINDS})
    plugins.add_file(PLUGIN)
    return grid.plan(grid.Request(methods=("toy-method",), tasks=("toy-task", "toy-text"), datasets=("toy-data",),
                                  output=tmp_path / "results", cache=tmp_path / "cache"))


@pytest.mark.parametrize(("seconds", "text"), [(3.21, "3.2 s"), (250, "4 min 10 s"), (7500, "2 h 5 min")])
def test_duration(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(("states", "text"), [
    ([], ""),
    ([State(), State()], "-"),
    ([State(value=0.5, finished=True), State(value=0.7, finished=True)], "0.600"),
    ([State(value=0.5, finished=True), State()], "0.500 1/2"),
    ([State(text="fit 30%"), State()], "fit 30%"),
    ([State(text="not applicable", finished=True)], "not applicable"),
])
def test_summarise(states, text):
    assert summarise(states) == text


def test_plain_lines(planned, capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("prior_bench.cli.display.perf_counter", lambda: now[0])
    with PlainDisplay(planned) as display:
        execution.execute(planned, display)
        weights = planned.cells[0].weights
        for share in (0.0, 0.01, 0.1, 0.12, 1.0):
            now[0] += 3
            display.weights(weights, "stage 1", share, "loss 3.0")
        for share in np.linspace(0, 1, 50):  # a phase of a second has one line
            now[0] += 0.02
            display.weights(weights, "decoding images", share, "")
        display.loaded(weights, "loaded image encoder 5/5 keys (100 %)")
        display.failed(planned.cells[0], "ZeroDivisionError: no")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("6 cells: 0 done, 6 to run")
    assert "not applicable: toy-method has no text encoder" in lines[1]
    assert "error 0." in lines[2]
    assert sum("stage 1" in line for line in lines) == 3
    assert sum("decoding" in line for line in lines) == 1
    assert lines[-2] == f"{weights.title}: loaded image encoder 5/5 keys (100 %)"
    assert "failed: ZeroDivisionError" in lines[-1]


def test_live_table(planned):
    from rich.console import Console

    display = LiveDisplay(planned)
    display.progress(planned.cells[1], "fit", 0.25)
    display.weights(planned.cells[0].weights, "stage 1", 0.5, "loss 3.0, 80 images/s")
    console = Console(file=io.StringIO(), width=200)
    console.print(display._table())
    text = console.file.getvalue()
    for part in ("toy-task linear", "fit 25%", "0/6 cells", "stage 1 50%, loss 3.0, 80 images/s", "10%"):
        assert part in text


def test_done_cells_are_shown_from_disk(planned):
    execution.execute(planned, PlainDisplay(planned))
    display = PlainDisplay(planned)
    assert display.done == 6
    assert display.summary().count("0.") >= 3

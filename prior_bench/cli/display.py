"""What `run` shows while it works: a live table on a terminal, plain lines elsewhere.

Both are Listeners of `execution.execute`. Imported only when something runs.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import fmean
from time import perf_counter
from typing import TYPE_CHECKING, Self

import typer

from prior_bench import results
from prior_bench.cli.common import some
from prior_bench.execution import Listener

if TYPE_CHECKING:
    from rich.table import Table

    from prior_bench.grid import Grid, PlannedCell, Weights
    from prior_bench.types import Result

QUIET = 2.0  # seconds between two plain lines of one phase

Row = tuple[str, str, str, str]  # weights, task and mode, dataset, target


@dataclass(slots=True)
class State:
    """Where a cell stands."""

    text: str = ""  # of a cell that has no number: "not applicable", "failed", "waiting", or the phase in flight
    reason: str = ""  # why it has no number
    metric: str = ""  # the main metric, or the first where the target has no such
    value: float | None = None  # its value, of a finished cell
    finished: bool = False


class Display(Listener):
    """The states of all cells and the time that remains; the base of both displays."""

    def __init__(self, grid: Grid):
        self.grid = grid
        self.states = {cell: State() for cell in grid.cells}
        self.seconds: dict[tuple[str, str], list[float]] = defaultdict(list)  # by task and mode, of finished cells
        self.weights_line = ""
        self._phase: tuple[str, str, float, float] = ("", "", 0.0, 0.0)  # weights, phase, its start, its first share
        for cell in grid.cells:
            if grid.done(cell):
                assert cell.weights.digest is not None
                path = results.result_path(grid.request.output, cell.cell(cell.weights.digest))
                self._finish(cell, results.read_result(path))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    # what execution tells

    def weights(self, weights: Weights, phase: str, share: float, text: str) -> None:
        if self._phase[:2] != (weights.title, phase):
            self._phase = (weights.title, phase, perf_counter(), share)
        _, _, start, first = self._phase
        left = (perf_counter() - start) * (1 - share) / (share - first) if share > first else 0.0
        parts = [f"{weights.title}: {phase} {share:.0%}", text, f"about {duration(left)} left" if left else ""]
        self.weights_line = ", ".join(part for part in parts if part)

    def loaded(self, weights: Weights, coverage: str) -> None:
        """A line that stays; a live table puts it above itself."""
        typer.echo(f"{weights.title}: {coverage}")

    def progress(self, cell: PlannedCell, phase: str, share: float) -> None:
        self.weights_line = ""
        self.states[cell].text = f"{phase} {share:.0%}"

    def waiting(self, cell: PlannedCell) -> None:
        self.states[cell].text = "waiting for another process"

    def finished(self, cell: PlannedCell, result: Result, seconds: float | None) -> None:
        if seconds is not None:
            self.seconds[cell.task, cell.plan.mode].append(seconds)
        self._finish(cell, result)

    def failed(self, cell: PlannedCell, error: str) -> None:
        self.states[cell] = State("failed", finished=True)

    # what is derived

    def _finish(self, cell: PlannedCell, result: Result) -> None:
        state = self.states[cell] = State(finished=True)
        if result.status == "not_applicable":
            state.text, state.reason = "not applicable", result.reason
            return
        main = self.grid.tasks[cell.task].main_metric
        metric = next((m for m in result.metrics if m.name == main), result.metrics[0] if result.metrics else None)
        if metric is not None:
            state.metric, state.value = metric.name, metric.value
            if metric.value is None:
                state.text, state.reason = "undefined", metric.reason

    @property
    def done(self) -> int:
        return sum(state.finished for state in self.states.values())

    def remaining(self) -> str:
        """About how long the rest takes, from the finished cells of the same kind; empty while nothing is known."""
        if not self.seconds:
            return ""
        anything = fmean(s for times in self.seconds.values() for s in times)
        left = 0.0
        for cell, state in self.states.items():
            if not state.finished:
                times = self.seconds.get((cell.task, cell.plan.mode))
                left += fmean(times) if times else anything
        return f"about {duration(left)} left" if left else ""

    def summary(self) -> str:
        """The main metric of every row, one column a fraction, as plain text."""
        from tabulate import tabulate

        header, rows = self.rows()
        return tabulate(rows, headers=header, tablefmt="simple", disable_numparse=True)

    def rows(self) -> tuple[list[str], list[list[str]]]:
        """The table's header and lines: mean main metric over seeds, one column a fraction."""
        columns = sorted({cell.plan.fraction for cell in self.states}, key=lambda f: -1.0 if f is None else f)
        groups: dict[Row, dict[float | None, list[State]]] = defaultdict(lambda: defaultdict(list))
        for cell, state in self.states.items():
            row = (cell.weights.title, f"{cell.task} {cell.plan.mode}" if cell.task != cell.plan.mode else cell.task,
                   cell.dataset, cell.plan.target)
            groups[row][cell.plan.fraction].append(state)
        shares = ["all data" if fraction is None else f"{fraction:.0%}" for fraction in columns]
        header = ["weights", "task", "dataset", "target", "metric", *shares]
        lines = []
        for row, fractions in groups.items():
            metrics = {state.metric: None for states in fractions.values() for state in states if state.metric}
            lines.append([*row, ", ".join(metrics), *(summarise(fractions.get(fraction, [])) for fraction in columns)])
        return header, lines


class PlainDisplay(Display):
    """One line for a finished cell, and for each tenth of a phase of the weights, where a tenth takes its time."""

    def __init__(self, grid: Grid):
        super().__init__(grid)
        self._told: tuple[str, str, int] | None = None
        self._told_at = 0.0
        typer.echo(f"{some(len(grid.cells), 'cell')}: {self.done} done, {len(grid.cells) - self.done} to run; "
                   f"results in {grid.request.output}")

    def weights(self, weights: Weights, phase: str, share: float, text: str) -> None:
        super().weights(weights, phase, share, text)
        told = (weights.title, phase, int(share * 10))
        new_phase = self._told is None or told[:2] != self._told[:2]
        if new_phase or (told != self._told and perf_counter() - self._told_at > QUIET):
            self._told, self._told_at = told, perf_counter()
            typer.echo(self.weights_line)

    def waiting(self, cell: PlannedCell) -> None:
        super().waiting(cell)
        typer.echo(f"{cell.title}: another process works on it, waiting")

    def finished(self, cell: PlannedCell, result: Result, seconds: float | None) -> None:
        super().finished(cell, result, seconds)
        state = self.states[cell]
        what = f"{state.metric} {state.value:.4f}" if state.value is not None else f"{state.text}: {state.reason}"
        took = "found stored" if seconds is None else duration(seconds)
        tail = ", ".join(part for part in (took, self.remaining()) if part)
        typer.echo(f"[{self.done}/{len(self.states)}] {cell.title}: {what} ({tail})")

    def failed(self, cell: PlannedCell, error: str) -> None:
        super().failed(cell, error)
        typer.echo(f"[{self.done}/{len(self.states)}] {cell.title}: failed: {error}")


class LiveDisplay(Display):
    """A table that is redrawn in place: one line for all fractions and seeds of a target."""

    def __init__(self, grid: Grid):
        super().__init__(grid)
        from rich.live import Live

        self._start = perf_counter()
        self._live = Live(get_renderable=self._table, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        line = [f"{self.done}/{len(self.states)} cells", duration(perf_counter() - self._start), self.remaining(),
                self.weights_line]
        table = Table(caption=Text(", ".join(part for part in line if part)), caption_justify="left")
        header, rows = self.rows()
        for name in header:
            table.add_column(Text(name))
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        return table


def summarise(states: list[State]) -> str:
    """One table cell: the mean over finished seeds, how many of them, and what is going on."""
    if not states:
        return ""
    values = [state.value for state in states if state.value is not None]
    texts = list(dict.fromkeys(state.text for state in states if state.text))
    ready = sum(state.finished for state in states)
    parts = [f"{fmean(values):.3f}"] if values else []
    if ready < len(states):
        parts.append(f"{ready}/{len(states)}" if ready else "" if texts else "-")
    return " ".join([*parts, *texts]).strip()


def duration(seconds: float) -> str:
    """3.2 s, 4 min 10 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"

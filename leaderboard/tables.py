"""LEADERBOARD.md and leaderboard.csv, written from a results folder and from nothing else.

One table a task, dataset and target: methods as rows, fractions as columns. Each number is the mean over seeds of a
metric rebuilt from the saved predictions (rebuild.py); its interval is that of the per-draw mean over seeds. Rows of
one recipe are a track: the same encoders, pairs and steps, so that only the method differs; a track is ranked by
itself. Equal results give equal bytes.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prior_bench import plugins
from prior_bench.grid import NO_SOURCE
from prior_bench.leaderboard.rebuild import Rebuilt, rebuild
from prior_bench.results import read_results, write_text
from prior_bench.statistics import interval, paired
from prior_bench.types import Metric, Result

MARKDOWN, CSV = "LEADERBOARD.md", "leaderboard.csv"
BASELINE = "random"  # the untrained encoder, to which differences are taken
NOT_RUN = "not run"


@dataclass(frozen=True, order=True, slots=True)
class Row:
    """A line of a table: a method with its weights, over all their seeds."""

    method: str
    recipe: str
    source: str
    note: str = field(default="", compare=False)  # what a reader must know of the method, e.g. a re-implementation

    @property
    def reference(self) -> bool:
        """Whether no pre-training made the weights: shown below a line, never bold."""
        return self.source == NO_SOURCE

    @property
    def label(self) -> str:
        method = self.method + r"\*" * bool(self.note)
        return f"{method} ({self.recipe})" if self.reference else f"{method} ({self.recipe}, {self.source})"


@dataclass(frozen=True, order=True, slots=True)
class Heading:
    """What one table is about. Results of two profiles or protocol versions never share a table."""

    dataset: str
    task: str
    target: str
    mode: str
    profile: str
    version: int

    @classmethod
    def of(cls, result: Result) -> Heading:
        c = result.cell
        return cls(c.dataset, c.task, c.target, c.mode, c.profile, c.protocol_version)


@dataclass(slots=True)
class Entry:
    """What is known of one row at one fraction: its results, one a seed."""

    rebuilt: list[Rebuilt] = field(default_factory=list)
    not_applicable: list[str] = field(default_factory=list)  # reasons
    _summaries: dict[str, Summary] = field(default_factory=dict)

    def metric(self, name: str) -> Summary:
        if name not in self._summaries:
            self._summaries[name] = Summary.of(name, self.rebuilt)
        return self._summaries[name]


@dataclass(frozen=True, slots=True)
class Summary:
    """One metric over the seeds of an entry. `mean` is None where a seed has no value; `reason` says why."""

    name: str
    mean: float | None
    reason: str = ""
    cells: int = 0
    subset_deviation: float | None = None  # over subset seeds, other seeds averaged; None with one
    head_deviation: float | None = None
    pretrain_deviation: float | None = None
    interval: tuple[float, float] | None = None
    replicates: np.ndarray | None = None  # per-draw mean over seeds

    @classmethod
    def of(cls, name: str, rebuilt: Sequence[Rebuilt]) -> Summary:
        metrics = [r.metrics.get(name) for r in rebuilt]
        for metric in metrics:
            if metric is None or metric.value is None:
                return cls(name, None, metric.reason if metric else "not computed", len(rebuilt))
        values = np.array([metric.value for metric in metrics if metric is not None], float)
        cells = [r.result.cell for r in rebuilt]
        draws = [r.replicates[name] for r in rebuilt if name in r.replicates]
        replicates = np.mean(draws, axis=0) if draws and len(draws) == len(rebuilt) else None
        return cls(
            name, float(values.mean()), "", len(rebuilt),
            _deviation(values, [c.subset_seed for c in cells]), _deviation(values, [c.head_seed for c in cells]),
            _deviation(values, [c.pretrain_seed for c in cells]),
            None if replicates is None else interval(replicates), replicates,
        )


@dataclass(slots=True)
class Table:
    """The entries of one heading by row and fraction (None: the task trains nothing)."""

    heading: Heading
    entries: dict[Row, dict[float | None, Entry]] = field(default_factory=dict)

    @property
    def fractions(self) -> list[float | None]:
        return sorted({f for row in self.entries.values() for f in row}, key=lambda f: -1.0 if f is None else f)

    @property
    def main(self) -> Metric | None:
        """The task's main metric as some result has it, for its direction, range and counts."""
        name = plugins.load("tasks", self.heading.task).main_metric
        for rebuilt in self.all_rebuilt():
            if name in rebuilt.metrics:
                return rebuilt.metrics[name]
        return next((metric for r in self.all_rebuilt() for metric in r.metrics.values()), None)

    def all_rebuilt(self) -> Iterable[Rebuilt]:
        return (r for row in self.entries.values() for entry in row.values() for r in entry.rebuilt)

    def entry(self, row: Row, fraction: float | None) -> Entry | None:
        return self.entries.get(row, {}).get(fraction)


# -------------------------------------------------------------------------------------------- writing


def write(folder: Path, output: Path, memo: Path) -> list[str]:
    """Write both files into `output` from the results in `folder`; returns warnings.

    Args:
        memo: where rebuilt numbers are remembered by content.
    """
    found = list(read_results(folder))
    kept, notes = newest(found)
    rebuilt = rebuild(folder, kept, memo)
    tables = tabled(kept, rebuilt)
    output.mkdir(parents=True, exist_ok=True)
    write_text(output / MARKDOWN, markdown(tables, notes))
    write_text(output / CSV, comma_separated(tables))
    return [f"{r.result.cell.name}: the stored {', '.join(names)} differ from what the predictions give; "
            f"the tables show the latter" for r in rebuilt if (names := r.differing())]


def newest(found: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """Leave out results of earlier data or settings of a table, and of earlier weights of a row, and say so."""
    settings: dict[Heading, tuple[str, tuple[str, str]]] = {}
    weights: dict[tuple[Row, int], tuple[str, str]] = {}
    for result in found:
        _keep_newest(settings, Heading.of(result), result, (result.cell.data_digest, result.cell.settings_digest))
        _keep_newest(weights, (_row(result), result.cell.pretrain_seed), result, result.cell.weights_digest)
    kept: list[Result] = []
    left_out: dict[str, int] = defaultdict(int)
    for result in found:
        heading, row, cell = Heading.of(result), _row(result), result.cell
        if settings[heading][1] != (cell.data_digest, cell.settings_digest):
            left_out[f"of earlier data or settings of {cell.task} on {cell.dataset}/{cell.target}"] += 1
        elif weights[row, cell.pretrain_seed][1] != cell.weights_digest:
            left_out[f"of earlier weights of {row.label}, seed {cell.pretrain_seed}"] += 1
        else:
            kept.append(result)
    return kept, [f"{count} results {what} are left out" for what, count in sorted(left_out.items())]


def _keep_newest(best: dict[Any, Any], key: object, result: Result, value: object) -> None:
    stamp = (str(result.provenance.get("finished", "")), result.cell.digest)
    if key not in best or best[key][0] < stamp:
        best[key] = (stamp, value)


def tabled(kept: Sequence[Result], rebuilt: Sequence[Rebuilt]) -> list[Table]:
    """Sort results into tables, in the order of their headings."""
    tables: dict[Heading, Table] = {}

    def entry(result: Result) -> Entry:
        heading = Heading.of(result)
        entries = tables.setdefault(heading, Table(heading)).entries.setdefault(_row(result), {})
        return entries.setdefault(result.cell.fraction, Entry())

    for result in kept:
        if result.status == "not_applicable":
            entry(result).not_applicable.append(result.reason)
    for one in rebuilt:
        entry(one.result).rebuilt.append(one)
    return [tables[heading] for heading in sorted(tables)]


def _row(result: Result) -> Row:
    note = result.provenance.get("method", {}).get("note", "")
    return Row(result.cell.method, result.cell.recipe, result.cell.pretrain_source, note)


def _deviation(values: np.ndarray, seeds: Sequence[int]) -> float | None:
    """Standard deviation (n - 1) over one kind of seed, the others averaged; None with one seed."""
    means = [values[[s == seed for s in seeds]].mean() for seed in sorted(set(seeds))]
    return float(np.std(means, ddof=1)) if len(means) > 1 else None


# ------------------------------------------------------------------------------------------ Markdown


def markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """The whole page."""
    rows = sorted({row for table in tables for row in table.entries}, key=lambda r: (r.recipe, r.reference, r))
    lines = [
        "# Leaderboard", "",
        "Every number is rebuilt from saved predictions. Mean over seeds ± standard deviation over subset seeds "
        "[95 % interval]; the interval is a bootstrap over patients (1,000 draws, the same for all methods), of the "
        "per-draw mean over seeds. The best of each track (the rows of one recipe: same encoders, same pairs, same "
        "steps) in bold; references stand below its line and are not ranked. "
        f'"{NOT_RUN}" is not "not applicable", which has its reason below the table.', "",
    ]
    if any(not row.reference for row in rows):
        lines += ["One pre-training seed speaks of this checkpoint, not of the method; the seeds are counted beside "
                  "each name.", ""]
    noted = sorted({rf"\* {row.method}: {row.note}" for row in rows if row.note})
    lines += [f"- {note}." for note in [*noted, *notes]] + [""] * bool(noted or notes)
    for table in tables:
        lines += _section(table, rows)
    return "\n".join(lines).rstrip() + "\n"


def _section(table: Table, rows: Sequence[Row]) -> list[str]:
    h, main = table.heading, table.main
    title = f"{h.task} ({h.mode}) on {h.dataset} / {h.target}: profile {h.profile}, protocol version {h.version}"
    lines = [f"## {title}", ""]
    if main is not None:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(main.counts.items()))
        direction = "higher" if main.higher_is_better else "lower"
        lines += [f"`{main.name}`, {direction} is better, {main.range[0]:g} to {main.range[1]:g}."
                  + (f" Test: {counts}." if counts else ""), ""]
    footnotes: dict[str, int] = {}
    lines += [_grid(table, rows, main, footnotes), ""]
    for reason, number in footnotes.items():
        lines += [f"[{number}] {reason}", ""]
    return lines + _differences(table, rows, main)


def _grid(table: Table, rows: Sequence[Row], main: Metric | None, footnotes: dict[str, int]) -> str:
    """The table: the main metric at each fraction, then more metrics of a task that trains nothing."""
    name = main.name if main else ""
    others = _others(table, name)
    body = []
    empty = [""] * (len(table.fractions) + len(others))
    several = len({row.recipe for row in rows}) > 1
    for above, row in zip([None, *rows], rows, strict=False):
        if several and (above is None or above.recipe != row.recipe):
            body.append([f"*track {row.recipe}*", *empty])
        if row.reference and above is not None and above.recipe == row.recipe and not above.reference:
            body.append(["*references*", *empty])
        cells = [_cell(table, row, fraction, name, rows, main, footnotes) for fraction in table.fractions]
        body.append([_label(table, row), *cells, *(_plain(table.entry(row, None), other) for other in others)])
    header = ["method", *(name if f is None else f"{f:.0%}" for f in table.fractions), *others]
    return _table(body, header)


def _label(table: Table, row: Row) -> str:
    seeds = {r.result.cell.pretrain_seed for entry in table.entries.get(row, {}).values() for r in entry.rebuilt}
    return row.label if row.reference or not seeds else f"{row.label}, {len(seeds)} seed{'s' * (len(seeds) > 1)}"


def _cell(table: Table, row: Row, fraction: float | None, name: str, rows: Sequence[Row], main: Metric | None,
          footnotes: dict[str, int]) -> str:
    entry = table.entry(row, fraction)
    if entry is None:
        return NOT_RUN
    if not entry.rebuilt:
        return f"not applicable {_footnotes(entry.not_applicable, footnotes)}"
    summary = entry.metric(name)
    if summary.mean is None:
        return f"undefined {_footnotes([summary.reason], footnotes)}"
    bold = "**" if main is not None and _is_best(table, row, fraction, rows, main) else ""
    text = f"{bold}{summary.mean:.3f}{bold}"
    if summary.subset_deviation is not None:
        text += f" ± {summary.subset_deviation:.3f}"
    if summary.interval is not None:
        text += f" [{summary.interval[0]:.3f}, {summary.interval[1]:.3f}]"
    expected = max(len(e.rebuilt) for r in rows if r.recipe == row.recipe and (e := table.entry(r, fraction)))
    if not row.reference and len(entry.rebuilt) < expected:
        text += f" ({len(entry.rebuilt)} of {expected} runs)"
    return text


def _is_best(table: Table, row: Row, fraction: float | None, rows: Sequence[Row], main: Metric) -> bool:
    """Whether no ranked row of its track has a better mean, as printed."""
    if row.reference:
        return False
    sign = 1 if main.higher_is_better else -1
    means = {}
    for other in rows:
        entry = table.entry(other, fraction)
        if other.recipe == row.recipe and entry is not None and entry.rebuilt and not other.reference:
            mean = entry.metric(main.name).mean
            if mean is not None:
                means[other] = sign * round(mean, 3)
    return means[row] == max(means.values())


def _others(table: Table, main: str) -> list[str]:
    """Metrics that a task without training shows beside its main one, where it has them."""
    if table.fractions != [None]:
        return []
    having = {name for one in table.all_rebuilt() for name in one.metrics}
    shown = plugins.load("tasks", table.heading.task).more_metrics
    return [name for name in shown if name in having and name != main]


def _plain(entry: Entry | None, name: str) -> str:
    mean = entry.metric(name).mean if entry is not None and entry.rebuilt else None
    return "" if mean is None else f"{mean:.3f}"


def _differences(table: Table, rows: Sequence[Row], main: Metric | None) -> list[str]:
    """Each row minus the untrained encoder of the same recipe, in the same draws."""
    if main is None:
        return []
    body = []
    for row in rows:
        base = _baseline(table, row)
        if row.method != BASELINE and row in table.entries and base is not None:
            found = [_difference(table, row, base, f, main.name) for f in table.fractions]
            body += [[row.label, *found]] if set(found) != {"-"} else []
    if not body:
        return []
    header = ["method", *(main.name if f is None else f"{f:.0%}" for f in table.fractions)]
    return [f"Difference to `{BASELINE}` (untrained encoder), with its 95 % interval in the same draws:", "",
            _table(body, header), ""]


def _baseline(table: Table, row: Row) -> Row | None:
    """The random row of the same recipe: the same encoder, untrained."""
    return next((r for r in table.entries if r.method == BASELINE and r.recipe == row.recipe), None)


def _difference(table: Table, row: Row, base: Row, fraction: float | None, name: str) -> str:
    ours, theirs = table.entry(row, fraction), table.entry(base, fraction)
    if ours is None or theirs is None or not ours.rebuilt or not theirs.rebuilt:
        return "-"
    a, b = ours.metric(name), theirs.metric(name)
    if a.mean is None or b.mean is None:
        return "-"
    text = f"{a.mean - b.mean:+.3f}"
    if a.replicates is None or b.replicates is None:
        return text
    both = paired(a.replicates, b.replicates)
    return text if both is None else f"{text} [{both.interval[0]:+.3f}, {both.interval[1]:+.3f}]"


def _footnotes(reasons: Iterable[str], footnotes: dict[str, int]) -> str:
    numbers = sorted({footnotes.setdefault(reason, len(footnotes) + 1) for reason in reasons})
    return "".join(f"[{number}]" for number in numbers)


def _table(body: list[list[str]], header: list[str]) -> str:
    from tabulate import tabulate

    return tabulate(body, headers=header, tablefmt="github", disable_numparse=True)


# ----------------------------------------------------------------------------------------------- CSV

COLUMNS = ("dataset", "task", "target", "mode", "profile", "protocol_version", "fraction", "method", "recipe",
           "pretrain_source", "reference", "note", "metric", "status", "mean", "subset_deviation", "head_deviation",
           "pretrain_deviation", "interval_low", "interval_high", "runs", "reason")


def comma_separated(tables: Sequence[Table]) -> str:
    """All metrics of all rows, one line each; empty where undefined, with the reason."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for table in tables:
        h = table.heading
        for row in sorted(table.entries):
            for fraction in sorted(table.entries[row], key=lambda f: -1.0 if f is None else f):
                entry = table.entries[row][fraction]
                first = [h.dataset, h.task, h.target, h.mode, h.profile, h.version, _number(fraction), row.method,
                         row.recipe, row.source, int(row.reference), row.note]
                writer.writerows([*first, *line] for line in _csv_lines(entry))
    return buffer.getvalue()


def _csv_lines(entry: Entry) -> Iterable[list[object]]:
    if not entry.rebuilt:
        yield ["", "not applicable", *[""] * 6, len(entry.not_applicable), "; ".join(sorted(set(entry.not_applicable)))]
        return
    for name in dict.fromkeys(name for r in entry.rebuilt for name in r.metrics):
        s = entry.metric(name)
        low, high = s.interval if s.interval is not None else (None, None)
        yield [name, "done" if s.mean is not None else "undefined", _number(s.mean), _number(s.subset_deviation),
               _number(s.head_deviation), _number(s.pretrain_deviation), _number(low), _number(high), s.cells, s.reason]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"

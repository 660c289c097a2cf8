"""What a results folder says: its results sorted into tables, from the folder and from nothing else.

One table a task, dataset and target: methods as rows, fractions as columns. Each number is the mean over seeds of a
metric rebuilt from the saved predictions (rebuild.py); its interval is that of the per-draw mean over seeds, in which
pre-training seeds are drawn too. Rows of one recipe are a track: the same encoders, pairs and steps, so that only the
method differs; a track is ranked by itself (ranking.py).
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path

import numpy as np

from prior_bench import plugins
from prior_bench.grid import NO_SOURCE
from prior_bench.leaderboard import installed
from prior_bench.leaderboard.rebuild import Rebuilt, Tell, rebuild
from prior_bench.results import finished, ignored, read_results
from prior_bench.statistics import interval, over_seeds
from prior_bench.types import Metric, Result

BASELINE = "random"  # the untrained encoder, to which differences are taken


@dataclass(frozen=True, order=True, slots=True)
class Row:
    """A line of a table: a method with its weights, over all their seeds."""

    method: str
    recipe: str
    source: str
    note: str = field(default="", compare=False)  # what a reader must know of the method, e.g. a re-implementation

    @property
    def reference(self) -> bool:
        """Whether no pre-training made the weights: shown below a line, never ranked."""
        return self.source == NO_SOURCE

    @property
    def untrained_recipe(self) -> str:
        """The recipe of references with the same encoder: a changed training, as in small[training.epochs=1], is left
        out of theirs (grid.py)."""
        name, _, changes = self.recipe.partition("[")
        changed = re.findall(r"(?:^|,)([\w.]+)=", changes)
        return name if all(key.startswith("training.") for key in changed) else self.recipe

    @property
    def label(self) -> str:
        method = self.method + "*" * bool(self.note)
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

    @property
    def words(self) -> tuple[str, ...]:
        """All of it, for names of elements and files."""
        return tuple(map(str, astuple(self)))


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
    """One metric over the seeds of an entry. `mean` is None where a seed has no value; `reason` says why.

    The deviations (n - 1) are over one kind of seed, the others averaged; None with one. They are no sampling error.
    """

    name: str
    mean: float | None
    reason: str = ""
    cells: int = 0
    subset_deviation: float | None = None
    head_deviation: float | None = None
    pretrain_deviation: float | None = None
    interval: tuple[float, float] | None = None
    replicates: np.ndarray | None = None  # of the mean; pre-training seeds are drawn with the groups

    @classmethod
    def of(cls, name: str, rebuilt: Sequence[Rebuilt]) -> Summary:
        metrics = [r.metrics.get(name) for r in rebuilt]
        for metric in metrics:
            if metric is None or metric.value is None:
                return cls(name, None, metric.reason if metric else "not computed", len(rebuilt))
        values = np.array([metric.value for metric in metrics if metric is not None], float)
        subsets, heads, pretrained = (_averaged(values, [getattr(r.result.cell, kind) for r in rebuilt])
                                      for kind in ("subset_seed", "head_seed", "pretrain_seed"))
        replicates = None
        if all(name in r.replicates for r in rebuilt):
            draws = np.stack([r.replicates[name] for r in rebuilt])
            replicates = over_seeds(_averaged(draws, [r.result.cell.pretrain_seed for r in rebuilt]))
        return cls(name, float(np.mean(list(pretrained.values()))), "", len(rebuilt),
                   _deviation(subsets), _deviation(heads), _deviation(pretrained),
                   None if replicates is None else interval(replicates), replicates)


def by_size(fraction: float | None) -> float:
    """The order of fractions: first that of a task that trains nothing."""
    return -1.0 if fraction is None else fraction


def _averaged(values: np.ndarray, seeds: Sequence[int]) -> dict[int, np.ndarray]:
    """Mean of the values (runs, ...) with each seed."""
    return {seed: values[np.array(seeds) == seed].mean(axis=0) for seed in sorted(set(seeds))}


def _deviation(means: dict[int, np.ndarray]) -> float | None:
    return float(np.std(list(means.values()), ddof=1)) if len(means) > 1 else None


@dataclass(slots=True)
class Table:
    """The entries of one heading by row and fraction (None: the task trains nothing)."""

    heading: Heading
    entries: dict[Row, dict[float | None, Entry]] = field(default_factory=dict)

    @property
    def fractions(self) -> list[float | None]:
        return sorted({f for row in self.entries.values() for f in row}, key=by_size)

    @property
    def sanity(self) -> bool:
        """Whether it is of a target that checks the harness: shown, and kept out of overviews."""
        return installed.is_sanity(self.heading.dataset, self.heading.target)

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

    @property
    def tracks(self) -> dict[str, list[Row]]:
        """The rows by recipe, those that are ranked before the references."""
        found: dict[str, list[Row]] = defaultdict(list)
        for row in sorted(self.entries, key=lambda r: (r.recipe, r.reference, r)):
            found[row.recipe].append(row)
        return dict(found)

    def entry(self, row: Row, fraction: float | None) -> Entry | None:
        return self.entries.get(row, {}).get(fraction)

    def summary(self, row: Row, fraction: float | None, name: str) -> Summary | None:
        """A metric of a row at a fraction; None where it was not run or is not applicable."""
        entry = self.entry(row, fraction)
        return entry.metric(name) if entry is not None and entry.rebuilt else None

    def seeds(self, row: Row) -> int:
        """How many pre-training seeds a row has."""
        return len({r.result.cell.pretrain_seed for e in self.entries.get(row, {}).values() for r in e.rebuilt})

    def expected_runs(self, row: Row, fraction: float | None) -> int:
        """How many runs a row has if each of its pre-training seeds has all subsets and heads that its track has."""
        cells = [r.result.cell for other in self.tracks[row.recipe] if (e := self.entry(other, fraction)) is not None
                 for r in e.rebuilt]
        return len({(c.subset_seed, c.head_seed) for c in cells}) * self.seeds(row)


@dataclass(frozen=True, slots=True)
class Known:
    """The tables of a results folder, what was left out of them, and where stored numbers were not believed."""

    tables: list[Table]
    notes: list[str]
    warnings: list[str]


def known(folder: Path, memo: Path, tell: Tell = lambda done, whole: None) -> Known:
    """The tables of the results in `folder`; `memo` is where rebuilt numbers are remembered by content."""
    found = list(read_results(folder))
    kept, notes = newest(found)
    rebuilt = rebuild(folder, kept, memo, tell=tell)
    warnings = [f"{r.result.cell.name}: the stored {', '.join(names)} differ from what the predictions give; "
                f"the tables show the latter" for r in rebuilt if (names := r.differing())]
    return Known(tabled(kept, rebuilt), notes, ignored(folder) + strangers(found) + warnings)


def strangers(found: Sequence[Result]) -> list[str]:
    """What is to be said of results whose task is not installed, of which nothing can be rebuilt."""
    counts = Counter(result.cell.task for result in found if not installed.has_task(result.cell.task))
    return [f"{_left_out(count, f'of the task {task!r}, which is not installed,')}; {installed.HOW_TO_INSTALL}"
            for task, count in sorted(counts.items())]


def _left_out(count: int, what: str) -> str:
    return f"1 result {what} is left out" if count == 1 else f"{count} results {what} are left out"


def newest(found: Sequence[Result]) -> tuple[list[Result], list[str]]:
    """Leave out results of tasks that are not installed, of another version of their protocol than this program
    computes, of other data or settings of a table, and of earlier weights of a row, and say so.

    A table has the settings, and then the data, that this program would compute it with. Where no result has them, or
    the program cannot tell, it has those of the result that was finished last.
    """
    notes = strangers(found)
    found = [result for result in found if installed.has_task(result.cell.task)]
    versions = {task: plugins.load("tasks", task).version for task in {result.cell.task for result in found}}
    current = [result for result in found if result.cell.protocol_version == versions[result.cell.task]]
    by_time = sorted(current, key=lambda result: (finished(result), result.cell.digest))
    cells = {Heading.of(result): result.cell for result in current}
    here = {heading: (installed.settings_digest(cell), installed.data_digest(cell.dataset))
            for heading, cell in cells.items()}

    def as_here(result: Result) -> tuple[bool, bool]:
        settings, data = here[Heading.of(result)]
        return result.cell.settings_digest == settings, result.cell.data_digest == data

    protocols = {Heading.of(result): _protocol(result) for result in sorted(by_time, key=as_here)}  # the last counts
    weights = {(_row(result), result.cell.pretrain_seed): result.cell.weights_digest for result in by_time
               if protocols[Heading.of(result)] == _protocol(result)}
    kept: list[Result] = []
    left_out: dict[str, int] = defaultdict(int)
    for cell in (result.cell for result in found if result.cell.protocol_version != versions[result.cell.task]):
        left_out[f"of protocol version {cell.protocol_version} of {cell.task}, which this program cannot compute,"] += 1
    for result in current:
        heading, row, cell = Heading.of(result), _row(result), result.cell
        if protocols[heading] != _protocol(result):
            left_out[f"of other data or settings of {cell.task} on {cell.dataset}/{cell.target}"] += 1
        elif weights[row, cell.pretrain_seed] != cell.weights_digest:
            left_out[f"of earlier weights of {row.label}, seed {cell.pretrain_seed}"] += 1
        else:
            kept.append(result)
    return kept, [_left_out(count, what) for what, count in sorted(left_out.items())] + notes


def _protocol(result: Result) -> tuple[str, str]:
    """What is the same in all results of a table."""
    return result.cell.data_digest, result.cell.settings_digest


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

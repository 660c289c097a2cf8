"""The series behind the plots, for the page (page/plots.py) and for papers (figures.py) alike.

A chart belongs to one table and one track. It has panels (a label, a fraction, a loss term), and a panel has a line for
each method. All of it is recomputed from saved predictions, with the exception of training and pre-training:
their curves are what the training wrote down. Ranks are in ranking.py (`Overview`), they need no series of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prior_bench.label_scores import Labelled
from prior_bench.leaderboard.curves import Curve, mean_curve, precision_recall, roc, thinned
from prior_bench.leaderboard.rebuild import Rebuilt
from prior_bench.leaderboard.tables import Entry, Heading, Known, Row, Summary, Table
from prior_bench.metrics.calibration import reliability
from prior_bench.results import read_predictions

Group = Literal["data efficiency", "labels", "roc", "precision-recall", "reliability", "training", "pre-training"]
MACRO, ALL_LABELS = "mean of the labels", "all labels together"


@dataclass(frozen=True, slots=True)
class Line:
    """One method in a panel. `low` and `high` are its 95 % interval where it has one (NaN where not), else empty."""

    row: Row
    x: tuple[float | str, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()  # rows behind each point
    note: str = ""  # what sums the line up, e.g. its area with interval
    marked: int | None = None  # the point that was chosen
    stages: tuple[float, ...] = ()  # x where the later stages of a pre-training begin


@dataclass(frozen=True, slots=True)
class Panel:
    """What is seen at once. `guide` is a line to hold the others against: chance, or perfect calibration."""

    title: str
    lines: tuple[Line, ...]
    guide: tuple[tuple[float, float], tuple[float, float]] | None = None


@dataclass(frozen=True, slots=True)
class Chart:
    """Panels of one kind for one track. `heading` is None where no table is meant (pre-training)."""

    group: Group
    track: str
    x: str
    y: str
    panels: tuple[Panel, ...]
    heading: Heading | None = None
    base: float = 0.0  # where bars begin

    @property
    def rows(self) -> list[Row]:
        """The methods, those that are ranked first."""
        return ordered({line.row for panel in self.panels for line in panel.lines})


def charts(known: Known, folder: Path) -> list[Chart]:
    """All charts of a results folder, in the order of tables and tracks."""
    found = [chart for table in known.tables for track, rows in table.tracks.items()
             for chart in _of_track(table, track, rows, folder)]
    return found + _pretraining(known)


def _of_track(table: Table, track: str, rows: Sequence[Row], folder: Path) -> list[Chart]:
    some = [_data_efficiency(table, track, rows), _labels(table, track, rows, folder),
            *_label_curves(table, track, rows, folder), _training(table, track, rows)]
    return [chart for chart in some if chart is not None and chart.panels]


def ordered(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.reference, row))


def shown(value: float | None, interval: tuple[float, float] | None = None) -> str:
    """A number with its interval."""
    if value is None:
        return "undefined"
    return f"{value:.3f}" + ("" if interval is None else f" [{interval[0]:.3f}, {interval[1]:.3f}]")


def size(fraction: float | None) -> str:
    """A fraction of the training data in words; empty where nothing is trained."""
    return "" if fraction is None else f"{fraction:.0%} of the training data"


# -------------------------------------------------------------------------------------- from the tables


def _data_efficiency(table: Table, track: str, rows: Sequence[Row]) -> Chart | None:
    """The main metric over the fraction of the training data, where there are two fractions or more."""
    main = table.main
    fractions = [f for f in table.fractions if f is not None]
    if main is None:
        return None
    lines = []
    for row in ordered(rows):
        found = {f: s for f in fractions if (s := table.summary(row, f, main.name)) is not None and s.mean is not None}
        if found:
            lines.append(_with_intervals(row, [f * 100 for f in found], list(found.values())))
    if len({x for line in lines for x in line.x}) < 2:
        return None
    return Chart("data efficiency", track, "training data, %", main.name, (Panel("", tuple(lines)),), table.heading)


def _labels(table: Table, track: str, rows: Sequence[Row], folder: Path) -> Chart | None:
    """The main metric of each label or class, and their mean; a panel for each fraction, the largest first."""
    main, classes = table.main, _classes(table, folder)
    if main is None or not classes:
        return None
    stem = main.name.removesuffix("_macro")
    names = {"mean": main.name} | {c: f"{stem}_{c}" for c in classes}
    panels = []
    for fraction in reversed(table.fractions):
        lines = []
        for row in ordered(rows):
            found = {c: s for c, name in names.items()
                     if (s := table.summary(row, fraction, name)) is not None and s.mean is not None}
            if set(found) - {"mean"}:
                lines.append(_with_intervals(row, list(found), list(found.values())))
        if lines:
            panels.append(Panel(size(fraction), tuple(lines)))
    base = 0.5 if stem == "auroc" else 0.0
    return Chart("labels", track, "", "AUROC" if stem == "auroc" else stem, tuple(panels), table.heading, base)


def _with_intervals(row: Row, x: Sequence[float | str], found: Sequence[Summary]) -> Line:
    ends = [(np.nan, np.nan) if s.interval is None else s.interval for s in found]
    return Line(row, tuple(x), tuple(s.mean for s in found if s.mean is not None),
                tuple(low for low, _ in ends), tuple(high for _, high in ends), tuple(s.cells for s in found))


def _classes(table: Table, folder: Path) -> list[str]:
    """The labels or classes of a table's predictions."""
    first = next(iter(table.all_rebuilt()), None)
    return [] if first is None else list(read_predictions(folder, first.result).extra.get("classes", ()))


# --------------------------------------------------------------------------------- from the predictions


@dataclass(slots=True)
class _Curves:
    """What the label scores of one row at one fraction draw, by panel title."""

    roc: dict[str, Line] = field(default_factory=dict)
    precision_recall: dict[str, Line] = field(default_factory=dict)
    reliability: dict[str, Line] = field(default_factory=dict)
    prevalence: dict[str, float] = field(default_factory=dict)


def _label_curves(table: Table, track: str, rows: Sequence[Row], folder: Path) -> list[Chart]:
    """ROC and precision-recall curves, and reliability where scores are probabilities.

    The mean of the labels has a panel for each fraction, each label one at the largest fraction.
    """
    if table.main is None or table.main.name != "auroc_macro":
        return []
    fractions = table.fractions[::-1]
    found = {(row, f): _curves(folder, row, entry, with_labels=f == fractions[0])
             for f in fractions for row in ordered(rows)
             if (entry := table.entry(row, f)) is not None and entry.rebuilt}

    def panels(kind: str) -> tuple[Panel, ...]:
        titles = dict.fromkeys((f, title) for f in fractions for (_, g), curves in found.items() if f == g
                               for title in getattr(curves, kind))
        titles = dict.fromkeys(sorted(titles, key=lambda t: t[1] not in {MACRO, ALL_LABELS}))
        return tuple(_panel(kind, title, f, [c for (_, g), c in found.items() if g == f]) for f, title in titles)

    heading = table.heading
    return [Chart("roc", track, "false positive rate", "true positive rate", panels("roc"), heading),
            Chart("precision-recall", track, "recall", "precision", panels("precision_recall"), heading),
            Chart("reliability", track, "mean predicted probability", "share found", panels("reliability"),
                  heading)]


def _panel(kind: str, title: str, fraction: float | None, curves: Sequence[_Curves]) -> Panel:
    lines = tuple(getattr(one, kind)[title] for one in curves if title in getattr(one, kind))
    guide = ((0.0, 0.0), (1.0, 1.0))
    if kind == "precision_recall":  # chance: the share of positives
        level = next(one.prevalence[title] for one in curves if title in one.prevalence)
        guide = ((0.0, level), (1.0, level))
    return Panel(f"{title}, {size(fraction)}" if fraction is not None else title, lines, guide)


def _curves(folder: Path, row: Row, entry: Entry, with_labels: bool) -> _Curves:
    runs = [Labelled.read(read_predictions(folder, one.result)) for one in entry.rebuilt]
    weights = _weights(entry.rebuilt)
    kept = _Curves()
    in_macro = [i for i in range(len(runs[0].classes)) if all(run.in_macro[i] and not run.problems[i] for run in runs)]
    each = range(len(runs[0].classes)) if with_labels else in_macro
    drawn = {i: _mean_of_runs(runs, weights, i) for i in each if not any(run.problems[i] for run in runs)}
    for i, (receiver, precise) in drawn.items() if with_labels else ():
        name = runs[0].classes[i]
        kept.roc[name] = _line(row, receiver, f"AUROC {_summary(entry, f'auroc_{name}')}")
        kept.precision_recall[name] = _line(row, precise, f"AP {shown(_area(precise))}")
        kept.prevalence[name] = _prevalence(runs[0], i)
    if in_macro:
        kept.roc[MACRO] = _line(row, mean_curve([drawn[i][0] for i in in_macro]),
                                f"AUROC {_summary(entry, 'auroc_macro')}")
        kept.precision_recall[MACRO] = _line(row, mean_curve([drawn[i][1] for i in in_macro]),
                                             f"AP {_summary(entry, 'auprc_macro')}")
        kept.prevalence[MACRO] = float(np.mean([_prevalence(runs[0], i) for i in in_macro]))
    if all(run.probabilities for run in runs):
        kept.reliability = _reliability(row, entry, runs, in_macro, list(drawn) if with_labels else [])
    return kept


def _weights(rebuilt: Sequence[Rebuilt]) -> list[float]:
    """What each run counts in a mean in which pre-training seeds count alike, as in `tables.Summary`."""
    seeds = [one.result.cell.pretrain_seed for one in rebuilt]
    return [1 / seeds.count(seed) for seed in seeds]


def _mean_of_runs(runs: Sequence[Labelled], weights: Sequence[float], i: int) -> tuple[Curve, Curve]:
    known = [~np.isnan(run.labels[:, i]) for run in runs]
    rows = [(run.scores[k, i], run.labels[k, i]) for run, k in zip(runs, known, strict=True)]
    return mean_curve([roc(*r) for r in rows], weights), mean_curve([precision_recall(*r) for r in rows], weights)


def _line(row: Row, curve: Curve, note: str) -> Line:
    x, y = thinned(curve)
    return Line(row, _rounded(x), _rounded(y), note=note)


def _rounded(values: np.ndarray) -> tuple[float, ...]:
    return tuple(np.round(values, 4).tolist())


def _area(curve: Curve) -> float:
    from sklearn.metrics import auc

    return float(auc(*curve))


def _prevalence(run: Labelled, i: int) -> float:
    return float(np.nanmean(run.labels[:, i]))


def _summary(entry: Entry, name: str) -> str:
    found = entry.metric(name)
    return shown(found.mean, found.interval)


def _reliability(row: Row, entry: Entry, runs: Sequence[Labelled], in_macro: Sequence[int],
                 labels: Sequence[int]) -> dict[str, Line]:
    """Runs are pooled. Of exclusive classes, as in the metric `ece`, the probability of the class that was guessed."""
    error = f"ECE {_summary(entry, 'ece')}"
    if runs[0].exclusive:
        guessed = [(run.scores[rows, guess], guess == truth) for run in runs for rows, guess, truth in [run.guesses()]]
        return {"the class that is guessed": _bins(row, guessed, error)}
    found = {ALL_LABELS: _bins(row, [_known(run, i) for run in runs for i in in_macro], error)} if in_macro else {}
    return found | {runs[0].classes[i]: _bins(row, [_known(run, i) for run in runs]) for i in labels}


def _known(run: Labelled, i: int) -> tuple[np.ndarray, np.ndarray]:
    rows = ~np.isnan(run.labels[:, i])
    return run.scores[rows, i], run.labels[rows, i]


def _bins(row: Row, parts: Sequence[tuple[np.ndarray, np.ndarray]], note: str = "") -> Line:
    probabilities, labels = (np.concatenate(column) for column in zip(*parts, strict=True))
    mean, share, counts = reliability(probabilities, labels)
    return Line(row, _rounded(mean), _rounded(share), counts=tuple(counts.tolist()), note=note)


# ------------------------------------------------------------------------------- from records of training


def _training(table: Table, track: str, rows: Sequence[Row]) -> Chart | None:
    """What each validation of a head or of a fine-tuned encoder gave; a panel for each fraction, a line a run."""
    main = table.main
    if main is None:
        return None
    panels = []
    for fraction in reversed(table.fractions):
        found = [(row, one) for row in ordered(rows) if (entry := table.entry(row, fraction)) for one in entry.rebuilt]
        lines = [line for row, one in found if (line := _validations(row, one, main.name)) is not None]
        if lines:
            panels.append(Panel(size(fraction), tuple(lines)))
    return Chart("training", track, "step", f"{main.name} on validation", tuple(panels), table.heading)


def _validations(row: Row, one: Rebuilt, name: str) -> Line | None:
    details, cell = one.result.details, one.result.cell
    history = details.get("validation")  # of a probe it counts images, and is no list
    points = [[v.get("step"), v.get(name)] for v in history if isinstance(v, dict)] if isinstance(history, list) else []
    line = _recorded(row, points, f"seeds {cell.subset_seed}, {cell.head_seed}, {cell.pretrain_seed}")
    best = details.get("best_step")
    return line if line is None or best not in line.x else replace(line, marked=line.x.index(best))


def _pretraining(known: Known) -> list[Chart]:
    """The loss and its terms, and the learning rate, of all weights of a track; a panel for each."""
    tracks: dict[str, dict[tuple[Row, int], tuple[Mapping[str, Any], tuple[float, ...]]]] = {}
    for table in known.tables:
        for row, entries in table.entries.items():
            for one in (one for entry in entries.values() for one in entry.rebuilt):
                weights = one.result.provenance.get("weights")
                losses = weights.get("losses") if isinstance(weights, Mapping) else None
                if isinstance(losses, Mapping):
                    run = (losses, _stages(losses, one.result.provenance.get("recipe")))
                    tracks.setdefault(row.recipe, {}).setdefault((row, one.result.cell.pretrain_seed), run)
    found = []
    for track, runs in sorted(tracks.items()):
        first = sorted(runs.items(), key=lambda item: (item[0][0].reference, *item[0]))
        terms = dict.fromkeys(term for _, (losses, _) in first for term in losses)
        panels = [Panel(term, lines) for term in sorted(terms, key=lambda term: (term == "lr", term != "total"))
                  if (lines := tuple(line for (row, seed), (losses, stages) in first if term in losses and
                                     (line := _recorded(row, losses[term], f"seed {seed}", stages)) is not None))]
        if panels:
            found.append(Chart("pre-training", track, "step", "", tuple(panels)))
    return found


def _stages(losses: Mapping[str, Any], recipe: object) -> tuple[float, ...]:
    """Where the later stages begin, by their shares of the recipe, to half a point of the curve: steps are not told."""
    match losses, recipe:
        case {"total": [*_, [last, _]]}, {"training": {"stages": [*entries]}} if _number(last):
            shares: list[Any] = [entry.get("share") if isinstance(entry, Mapping) else None for entry in entries]
            if all(map(_number, shares)):
                return tuple(float(end) * (last + 1) for end in np.cumsum(shares)[:-1])
    return ()


def _recorded(row: Row, points: object, note: str, stages: Sequence[float] = ()) -> Line | None:
    """A line through what a result says of its training, as far as it is numbers."""
    pairs = [tuple(p) for p in points if isinstance(p, (list, tuple)) and len(p) == 2 and all(map(_number, p))] \
        if isinstance(points, list) else []
    if not pairs:
        return None
    later = tuple(step for step in stages if step > pairs[0][0])  # of a term's own first stage its curve speaks
    return Line(row, tuple(x for x, _ in pairs), tuple(y for _, y in pairs), note=note, stages=later)


def _number(value: object) -> bool:
    """Whether it is a number that can be drawn: an axis from -1e308 to 1e308 is infinitely long."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30

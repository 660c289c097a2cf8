"""What a leaderboard shows, before its markup: sheets of lines and cells that Markdown and LaTeX write alike.

A section has a sheet with the values, one with the differences to the untrained encoder, and one with the variation
over seeds, which is kept apart from the sampling error that intervals show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from prior_bench import plugins
from prior_bench.leaderboard.ranking import Comparison, Overview, compared, difference, overviews, ranks
from prior_bench.leaderboard.tables import BASELINE, Known, Row, Summary, Table
from prior_bench.statistics import Paired
from prior_bench.types import Metric

NOT_RUN = "not run"
INTRODUCTION = (
    "Every number is rebuilt from saved predictions: the mean over seeds with its 95 % interval, from a bootstrap over "
    "patients (1,000 draws, the same for all methods). Where a method has several pre-training seeds, these are drawn "
    "too (few of them, two or three, give intervals that are too short where seeds matter more than patients); with "
    "one, the number speaks of this checkpoint, not of the method.",
    "A track is the rows of one recipe (same encoders, same pairs, same steps) and is ranked by itself: rank = 1 + "
    "number of methods that are significantly better (paired in the same draws, two-sided 5 %, Holm over the table). "
    "Rank 1, the best and what is statistically tied with it, is bold where there is anything to compare. References "
    "are not ranked.",
    "The detectable difference is the smallest one between any two methods of the track that these data show with a "
    "power of 80 % (two-sided 5 %, before Holm): 2.8 standard errors of the paired difference. "
    f'"{NOT_RUN}" is not "not applicable", which has its reason below the table.',
)
DIFFERENCE = (f"Difference to `{BASELINE}` (untrained encoder) with its 95 % interval in the same draws; in round "
              "brackets the smallest difference that these data show with a power of 80 %.")
SANITY = "A sanity check: ranked here, and not counted in the mean ranks over all tables."
VARIATION = ("Variation, not sampling error: standard deviation over the seeds of the training subset, of the head, "
             "and of pre-training, the other seeds averaged.")


@dataclass(frozen=True, slots=True)
class Shown:
    """A cell: a number, its interval, and what is said after them."""

    text: str = ""
    interval: str = ""
    after: str = ""
    bold: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a sheet; without cells it is a title of the lines below it. An aside is no method."""

    label: str
    cells: tuple[Shown, ...] = ()
    aside: bool = False


@dataclass(slots=True)
class Sheet:
    """A table with what is said above (caption) and below it (footnotes). Sheets of one section stand together."""

    section: str
    caption: str
    header: list[str]
    lines: list[Line] = field(default_factory=list)
    footnotes: list[str] = field(default_factory=list)


def sheets(known: Known) -> list[Sheet]:
    """All sheets of a leaderboard: the overviews, then each table's."""
    found = [_overview(one) for one in overviews(known.tables)]
    for table in known.tables:
        comparisons = compared(table)
        found += [s for s in (_values(table, comparisons), _differences(table), _variation(table)) if s.lines]
    return found


# ------------------------------------------------------------------------------------------- the sheets


def _overview(overview: Overview) -> Sheet:
    lines = [Line(s.row.label, (Shown(f"{s.mean_rank:.2f}", interval_text(s.interval, ".2f")), Shown(str(s.first))))
             for s in overview.standings]
    versions = ", ".join(f"{task} {version}" for task, version in sorted(overview.versions.items()))
    return Sheet(f"Overview of track {overview.track}: profile {overview.profile}, protocol versions {versions}",
                 overview_caption(overview), ["method", "mean rank", "best or tied"], lines,
                 marks(s.row for s in overview.standings))


def _values(table: Table, comparisons: Sequence[Comparison]) -> Sheet:
    """The main metric at each fraction, then more metrics of a task that trains nothing."""
    main = table.main
    name = main.name if main else ""
    others, given = other_metrics(table, name), ranks(comparisons)
    notes = _Footnotes()

    def line(row: Row) -> Line:
        values = [_value(table, row, f, name, given.get((row, f)), notes) for f in table.fractions]
        return Line(_label(table, row), (*values, *(_plain(table.summary(row, None, other)) for other in others)))

    sheet = Sheet(section(table), caption(table), ["method", *columns(table, name), *others])
    for track, rows in table.tracks.items():
        ranked, references = [r for r in rows if not r.reference], [r for r in rows if r.reference]
        sheet.lines += [Line(f"track {track}")] * (len(table.tracks) > 1)
        sheet.lines += [line(row) for row in ranked]
        inside = [c for c in comparisons if c.a in ranked]
        if inside:
            sheet.lines.append(Line("detectable difference", tuple(
                Shown(detectable(inside, f)) for f in table.fractions
            ) + (Shown(),) * len(others), aside=True))
        sheet.lines += [Line("references")] * bool(references and ranked)
        sheet.lines += [line(row) for row in references]
    sheet.footnotes = [*marks(table.entries), *notes.lines()]
    return sheet


def _differences(table: Table) -> Sheet:
    """Each row minus the untrained encoder of the same recipe, in the same draws."""
    name = table.main.name if table.main else ""

    def shown(row: Row, fraction: float | None) -> Shown:
        found = from_baseline(table, row, fraction)
        return Shown("-") if found is None else signed(found)

    return Sheet(section(table), DIFFERENCE, ["method", *columns(table, name)], _lines(table, shown, Shown("-")))


def _variation(table: Table) -> Sheet:
    """Deviations over each kind of seed."""
    main = table.main
    name = main.name if main else ""

    def shown(row: Row, fraction: float | None) -> Shown:
        return Shown(variation(table.summary(row, fraction, name)))

    return Sheet(section(table), VARIATION, ["method", *columns(table, name)], _lines(table, shown, Shown()))


def _lines(table: Table, shown: Callable[[Row, float | None], Shown], empty: Shown) -> list[Line]:
    """A line for each row that has anything to show."""
    rows = [row for some in table.tracks.values() for row in some]
    lines = [Line(row.label, tuple(shown(row, fraction) for fraction in table.fractions)) for row in rows]
    return [line for line in lines if set(line.cells) != {empty}]


# --------------------------------------------------------------------------------------------- the parts


def section(table: Table) -> str:
    h = table.heading
    return f"{h.task} ({h.mode}) on {h.dataset} / {h.target}: profile {h.profile}, protocol version {h.version}"


def caption(table: Table) -> str:
    return f"{about(table.main)} {SANITY}" if table.sanity else about(table.main)


def about(main: Metric | None) -> str:
    if main is None:
        return "No cell has a value."
    counts = ", ".join(f"{name} {count}" for name, count in sorted(main.counts.items()))
    direction = "higher" if main.higher_is_better else "lower"
    about = f"`{main.name}`, {direction} is better, {main.range[0]:g} to {main.range[1]:g}."
    return about + (f" Test: {counts}." if counts else "")


def columns(table: Table, name: str) -> list[str]:
    return [name if fraction is None else f"{fraction:.0%}" for fraction in table.fractions]


def overview_caption(overview: Overview) -> str:
    return (f"Over the {overview.cells} of {overview.all_cells} cells (table and fraction) in which all methods have a "
            "value: mean rank in the order of the values, 1 is best; its 95 % interval orders them anew in each draw. "
            "Best or tied: cells in which no method is significantly better."
            + (f" Sanity checks do not count: {', '.join(overview.sanity)}." if overview.sanity else ""))


def _label(table: Table, row: Row) -> str:
    seeds = seeds_text(table, row)
    return f"{row.label}, {seeds}" if seeds else row.label


def seeds_text(table: Table, row: Row) -> str:
    """What the numbers of a method speak of; empty for a reference."""
    seeds = table.seeds(row)
    if row.reference or not seeds:
        return ""
    return "this checkpoint" if seeds == 1 else f"{seeds} seeds"


def _value(table: Table, row: Row, fraction: float | None, name: str, rank: int | None, notes: _Footnotes) -> Shown:
    entry = table.entry(row, fraction)
    if entry is None:
        return Shown(NOT_RUN)
    if not entry.rebuilt:
        return Shown("not applicable", after=notes.add(entry.not_applicable))
    summary = entry.metric(name)
    if summary.mean is None:
        return Shown("undefined", after=notes.add([summary.reason]))
    after = [f"rank {rank}"] if rank is not None else []
    expected = table.expected_runs(row, fraction)
    if not row.reference and len(entry.rebuilt) < expected:
        after.append(f"{len(entry.rebuilt)} of {expected} runs")
    return Shown(f"{summary.mean:.3f}", interval_text(summary.interval), ", ".join(after), bold=rank == 1)


def other_metrics(table: Table, main: str) -> list[str]:
    """Metrics that a task without training shows beside its main one, where it has them."""
    if table.fractions != [None]:
        return []
    having = {name for one in table.all_rebuilt() for name in one.metrics}
    shown = plugins.load("tasks", table.heading.task).more_metrics
    return [name for name in shown if name in having and name != main]


def _plain(summary: Summary | None) -> Shown:
    return Shown("" if summary is None or summary.mean is None else f"{summary.mean:.3f}")


def from_baseline(table: Table, row: Row, fraction: float | None) -> Paired | None:
    """A row minus the untrained encoder of its recipe in the main metric; None where one has no value."""
    wanted = (BASELINE, row.untrained_recipe)
    base = next((other for other in table.entries if (other.method, other.recipe) == wanted), row)
    return None if base == row or table.main is None else difference(table, row, base, fraction, table.main.name)


def variation(summary: Summary | None) -> str:
    """The deviations over each kind of seed, as far as there are several seeds."""
    kinds = () if summary is None else (("subset", summary.subset_deviation), ("head", summary.head_deviation),
                                        ("pre-training", summary.pretrain_deviation))
    return ", ".join(f"{kind} {value:.3f}" for kind, value in kinds if value is not None)


def signed(found: Paired) -> Shown:
    return Shown(f"{found.difference:+.3f}", interval_text(found.interval, "+.3f"), f"({found.detectable:.3f})")


def detectable(comparisons: Iterable[Comparison], fraction: float | None) -> str:
    """The largest of the detectable differences at a fraction."""
    found = [c.paired.detectable for c in comparisons if c.fraction == fraction]
    return f"{max(found):.3f}" if found else ""


def interval_text(interval: tuple[float, float] | None, form: str = ".3f") -> str:
    return "" if interval is None else f"[{interval[0]:{form}}, {interval[1]:{form}}]"


def marks(rows: Iterable[Row]) -> list[str]:
    """What a reader must know of the methods that are marked with a star."""
    return sorted({f"* {row.method}: {row.note}." for row in rows if row.note})


class _Footnotes:
    """Reasons, numbered as they come."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def add(self, reasons: Iterable[str]) -> str:
        numbers = sorted({self._numbers.setdefault(reason, len(self._numbers) + 1) for reason in reasons})
        return "".join(f"[{number}]" for number in numbers)

    def lines(self) -> list[str]:
        return [f"[{number}] {reason}" for reason, number in self._numbers.items()]

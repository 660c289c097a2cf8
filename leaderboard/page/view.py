"""What the page shows of a leaderboard, before its markup: a section for each table, with all that it can show.

A table shows one of several *views* at a time: its main metric with ranks, the difference to the untrained encoder, the
variation over seeds, or another metric. The first stands in the HTML; the others are data, and the page's script puts
them in its place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prior_bench.leaderboard import sheets
from prior_bench.leaderboard.page.examples import Example
from prior_bench.leaderboard.page.plots import Plot
from prior_bench.leaderboard.ranking import Comparison, Overview, compared, overviews, ranks
from prior_bench.leaderboard.records import rounded
from prior_bench.leaderboard.tables import BASELINE, Heading, Known, Row, Summary, Table, by_size

NO_FRACTION = "none"  # the filter's word for tasks that train nothing


@dataclass(frozen=True, slots=True)
class Number:
    """What stands in one place. `sort` is None where there is nothing to order by.

    `bar` is the interval with its mean, in percent of the scale that all numbers of a metric in the table share.
    """

    text: str
    interval: str = ""
    after: str = ""
    bold: bool = False
    sort: float | None = None
    bar: tuple[float, float, float] | None = None

    def as_list(self) -> list[Any]:
        return [self.text, self.interval, self.after, self.bold, self.sort, self.bar]


@dataclass(frozen=True, slots=True)
class Column:
    """`number` is the place among a view's numbers; a rank stands right of its number, in the first view alone."""

    label: str
    number: int
    fraction: str
    rank: bool = False


@dataclass(frozen=True, slots=True)
class View:
    """One thing that a table can show: for each row its numbers, None where there is none."""

    label: str
    caption: str
    header: list[str]
    higher: bool
    numbers: dict[Row, list[Number | None]]


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of a track that are ranked, or its references. `aside` is its last line, for each number."""

    track: str
    references: bool
    rows: list[Row]
    aside: list[str]

    @property
    def title(self) -> str:
        return f"Track {self.track}" + (", references (not ranked)" if self.references else "")


@dataclass(slots=True)
class Section:
    """A table of the leaderboard, with what is asked of it while it is written."""

    id: str
    table: Table
    title: str
    views: list[View]
    columns: list[Column]
    groups: list[Group]
    ranks: dict[tuple[Row, float | None], int]
    comparisons: list[Comparison]
    marks: list[str]
    rows: list[Row] = field(default_factory=list)  # in the order of the page's data
    best_first: int = 0  # the number that the table is sorted by at first
    plots: dict[str, list[Plot]] = field(default_factory=dict)  # by what they show
    examples: list[Example] = field(default_factory=list)

    @property
    def heading(self) -> Heading:
        return self.table.heading

    @property
    def places(self) -> list[float | None]:
        return self.table.fractions + [None] * (len(self.views[0].header) - len(self.table.fractions))

    def entry_key(self, row: Row, number: int) -> str | None:
        """The name of what is known behind a number, or None where nothing was run."""
        fractions = self.table.fractions
        at = min(number, len(fractions) - 1)
        return f"r{self.rows.index(row)}f{at}" if self.table.entry(row, fractions[at]) is not None else None

    def rank(self, row: Row, number: int) -> int | None:
        return self.ranks.get((row, self.places[number]))

    def seeds(self, row: Row) -> str:
        return sheets.seeds_text(self.table, row)

    def fraction_key(self, number: int) -> str:
        return fraction_key(self.places[number])


@dataclass(frozen=True, slots=True)
class OverviewSection:
    id: str
    overview: Overview
    caption: str
    marks: list[str]
    plots: list[Plot]


@dataclass(frozen=True, slots=True)
class Page:
    overviews: list[OverviewSection]
    sections: list[Section]
    training: list[Plot]  # of pre-training, which belongs to no table
    choices: dict[str, dict[str, str]]  # the filters: name to value to label
    versions: dict[str, list[int]]  # protocol versions by task
    cells: int


def page(known: Known, plots: Sequence[Plot], examples: Sequence[Example] = ()) -> Page:
    """All sections, with ids that are the same for the same headings."""
    names = _Names([*(plot.id for plot in plots), *(example.id for example in examples)])
    summaries = [OverviewSection(names.new(f"overview-{one.track}-{one.profile}"), one, sheets.overview_caption(one),
                                 sheets.marks(s.row for s in one.standings),
                                 [plot for plot in plots if plot.group == "ranks"
                                  and (plot.heading.profile, plot.track) == (one.profile, one.track)])
                 for one in overviews(known.tables)]
    sections = [_section(table, names) for table in known.tables]
    for section in sections:
        for plot in plots:
            if plot.heading == section.heading:
                section.plots.setdefault(plot.group, []).append(plot)
        section.examples = [one for one in examples if one.heading == section.heading]
    versions: dict[str, set[int]] = {}
    for table in known.tables:
        versions.setdefault(table.heading.task, set()).add(table.heading.version)
    cells = sum(len(e.rebuilt) + len(e.not_applicable) for t in known.tables for row in t.entries.values()
                for e in row.values())
    training = [plot for plot in plots if plot.group != "ranks" and not plot.heading.task]
    return Page(summaries, sections, training, _choices(known.tables),
                {task: sorted(found) for task, found in sorted(versions.items())}, cells)


def title(heading: Heading) -> str:
    mode = "" if heading.mode == heading.task else f" ({heading.mode})"
    return f"{heading.task[:1].upper()}{heading.task[1:]}{mode} on {heading.dataset} / {heading.target}"


def fraction_key(fraction: float | None) -> str:
    return NO_FRACTION if fraction is None else f"{fraction:g}"


def fraction_label(fraction: float | None) -> str:
    return "nothing trained" if fraction is None else f"{100 * fraction:g}%"


def _section(table: Table, names: _Names) -> Section:
    comparisons, h = compared(table), table.heading
    section = Section(names.new("-".join((h.task, h.mode, h.dataset, h.target, h.profile, f"v{h.version}"))), table,
                      title(h), _views(table), [], [], ranks(comparisons), comparisons, sheets.marks(table.entries))
    section.rows = [row for rows in table.tracks.values() for row in rows]
    section.columns = _columns(section)
    section.best_first = _best_first(section)
    section.groups = _groups(section)
    return section


def _columns(section: Section) -> list[Column]:
    ranked = {fraction for _, fraction in section.ranks}
    found = []
    for number, label in enumerate(section.views[0].header):
        fraction = section.places[number]
        found.append(Column(label, number, fraction_key(fraction)))
        if number < len(section.table.fractions) and fraction in ranked:
            found.append(Column("rank", number, fraction_key(fraction), rank=True))
    return found


def _best_first(section: Section) -> int:
    """The number that most rows have; of several the last: the largest fraction, where that was run."""
    view = section.views[0]
    having = [sum(numbers[i] is not None and numbers[i].sort is not None  # type: ignore[union-attr]
                  for numbers in view.numbers.values()) for i in range(len(section.table.fractions))]
    return max(range(len(having)), key=lambda i: (having[i], i), default=0)


def _groups(section: Section) -> list[Group]:
    view, fractions = section.views[0], section.table.fractions

    def order(row: Row) -> tuple[bool, float]:
        number = view.numbers[row][section.best_first]
        value = None if number is None else number.sort
        return value is None, 0.0 if value is None else -value if view.higher else value

    groups = []
    for track, rows in section.table.tracks.items():
        for references in (False, True):
            some = sorted((row for row in rows if row.reference == references), key=order)
            inside = [c for c in section.comparisons if c.a in some]
            aside = [sheets.detectable(inside, fraction) for fraction in fractions] if inside else []
            if some:
                groups.append(Group(track, references, some, aside))
    return groups


# --------------------------------------------------------------------------------------------- the views


def _views(table: Table) -> list[View]:
    main = table.main
    if main is None:
        return [View("status", _plain(sheets.caption(table)), _header(table, "status"), True,
                     {row: [_number(table, row, f, "") for f in table.fractions] for row in table.entries})]
    others = sheets.other_metrics(table, main.name)
    first = _metric_view(table, main.name, main.higher_is_better, _plain(sheets.caption(table)), others)
    found = [first, _differences(table, main.higher_is_better), _variations(table)]
    for metric in {m.name: m for one in table.all_rebuilt() for m in one.metrics.values()}.values():
        if metric.name != main.name:
            found.append(_metric_view(table, metric.name, metric.higher_is_better, _plain(sheets.about(metric))))
    return [view for view in found if view is first or any(n is not None for row in view.numbers.values() for n in row)]


def _header(table: Table, name: str) -> list[str]:
    return [name if fraction is None else fraction_label(fraction) for fraction in table.fractions]


def _metric_view(table: Table, name: str, higher: bool, caption: str, others: Sequence[str] = ()) -> View:
    """A metric at each fraction, then more metrics of a task that trains nothing."""
    scale = _Scale(table, name)
    scales = {other: _Scale(table, other) for other in others}
    given = ranks(compared(table)) if table.main is not None and table.main.name == name else {}
    numbers = {row: [*(_number(table, row, f, name, scale, given.get((row, f))) for f in table.fractions),
                     *(_number(table, row, None, other, scales[other]) for other in others)] for row in table.entries}
    return View(name, caption, [*_header(table, name), *others], higher, numbers)


def _number(table: Table, row: Row, fraction: float | None, name: str, scale: _Scale | None = None,
            rank: int | None = None) -> Number | None:
    entry = table.entry(row, fraction)
    if entry is None:
        return None
    if not entry.rebuilt:
        return Number("not applicable", after="; ".join(sorted(set(entry.not_applicable))))
    summary = entry.metric(name)
    if summary.mean is None:
        return Number("undefined", after=summary.reason)
    expected = table.expected_runs(row, fraction)
    missing = not row.reference and len(entry.rebuilt) < expected
    return Number(f"{summary.mean:.3f}", sheets.interval_text(summary.interval),
                  f"{len(entry.rebuilt)} of {expected} runs" if missing else "", rank == 1, rounded(summary.mean),
                  scale.bar(summary) if scale is not None else None)


def _differences(table: Table, higher: bool) -> View:
    def number(row: Row, fraction: float | None) -> Number | None:
        found = sheets.from_baseline(table, row, fraction)
        if found is None:
            return None
        shown = sheets.signed(found)
        return Number(shown.text, shown.interval, shown.after, sort=rounded(found.difference))

    return View(f"difference to {BASELINE}", _plain(sheets.DIFFERENCE), _header(table, "difference"), higher,
                _by_row(table, number))


def _variations(table: Table) -> View:
    assert table.main is not None
    name = table.main.name

    def number(row: Row, fraction: float | None) -> Number | None:
        summary = table.summary(row, fraction, name)
        text = sheets.variation(summary)
        if summary is None or not text:
            return None
        kinds = (summary.subset_deviation, summary.head_deviation, summary.pretrain_deviation)
        return Number(text, sort=rounded(max(kind for kind in kinds if kind is not None)))

    return View("variation over seeds", sheets.VARIATION, _header(table, "deviation"), False, _by_row(table, number))


def _by_row(table: Table, number: Callable[[Row, float | None], Number | None]) -> dict[Row, list[Number | None]]:
    return {row: [number(row, fraction) for fraction in table.fractions] for row in table.entries}


class _Scale:
    """From the lowest to the highest end of a metric's intervals in a table."""

    def __init__(self, table: Table, name: str) -> None:
        found = [s for row, entries in table.entries.items() for fraction in entries
                 if (s := table.summary(row, fraction, name)) is not None and s.mean is not None]
        ends = [value for s in found if s.mean is not None for value in (s.mean, *(s.interval or ()))]
        self.low, self.high = min(ends, default=0.0), max(ends, default=0.0)

    def bar(self, summary: Summary) -> tuple[float, float, float] | None:
        if summary.interval is None or summary.mean is None or self.high <= self.low:
            return None
        low, mean, high = (round(100 * (v - self.low) / (self.high - self.low), 1)
                           for v in (summary.interval[0], summary.mean, summary.interval[1]))
        return low, mean, high


# ------------------------------------------------------------------------------------------- small things


def _plain(markdown: str) -> str:
    return markdown.replace("`", "")


def _choices(tables: Iterable[Table]) -> dict[str, dict[str, str]]:
    """What can be chosen of each filter, in the order of the page."""
    some = list(tables)
    rows = sorted({row for table in some for row in table.entries})
    fractions = sorted({f for table in some for f in table.fractions}, key=by_size)

    def texts(found: Iterable[str]) -> dict[str, str]:
        return {text: text for text in sorted(set(found))}

    return {
        "method": texts(row.method for row in rows),
        "task": texts(table.heading.task for table in some),
        "dataset": texts(table.heading.dataset for table in some),
        "fraction": {fraction_key(f): fraction_label(f) for f in fractions},
        "track": texts(row.recipe for row in rows),
        "profile": texts(table.heading.profile for table in some),
    }


class _Names:
    """Ids from words: letters, digits and hyphens; where two would be alike the later one has a number."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)

    def new(self, words: str) -> str:
        base = re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")
        name, number = base, 1
        while name in self._taken:
            number += 1
            name = f"{base}-{number}"
        self._taken.add(name)
        return name

"""Two methods side by side: the difference of the main metric in each cell, in the same bootstrap draws.

Compared are rows of one recipe (one track) pre-trained on the same data, or one of them a reference, over the subset
and head seeds that both have. A reference may also have another recipe, where a table has no recipe of both, and
METHOD@RECIPE asks for a row of one recipe, whatever that of the other is. What cannot be compared is listed with its
reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import product
from pathlib import Path

from prior_bench import plugins
from prior_bench.errors import UserError, unknown_name
from prior_bench.leaderboard.rebuild import Rebuilt, Tell, groups_of, rebuild
from prior_bench.leaderboard.sheets import NOT_RUN
from prior_bench.leaderboard.tables import Heading, Row, Summary, Table, newest, strangers, tabled
from prior_bench.results import ignored, read_predictions, some_results
from prior_bench.statistics import Paired, paired
from prior_bench.types import Cell, Result


@dataclass(frozen=True, slots=True)
class Place:
    """Where two methods meet: a table, a track (of two recipes, both), and a fraction (None: nothing is trained)."""

    heading: Heading
    recipe: str
    fraction: float | None = None

    def __str__(self) -> str:
        h = self.heading
        task = h.task if h.mode == h.task else f"{h.task} ({h.mode})"
        profile = "" if h.profile == "standard" else f", profile {h.profile}"
        size = "" if self.fraction is None else f", {self.fraction:.0%}"
        return f"{task} on {h.dataset}/{h.target}{profile}, {self.recipe}{size}"


@dataclass(frozen=True, slots=True)
class Side:
    """What is asked for on one side: a method in one recipe, or (None) in any."""

    asked: str  # as it was typed
    method: str
    recipe: str | None

    def __str__(self) -> str:
        return self.asked

    def has(self, one: Row | Cell) -> bool:
        return one.method == self.method and self.recipe in (None, one.recipe)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two methods in one place, by the task's main metric."""

    place: Place
    a: Summary
    b: Summary
    paired: Paired
    groups: int  # leak groups that were resampled
    pretrain_seeds: tuple[int, int]  # how many, of each
    pairs: list[tuple[Rebuilt, Rebuilt]]  # the runs with the same seeds of all kinds


@dataclass(frozen=True, slots=True)
class LeftOut:
    place: Place
    reason: str


def compare(folder: Path, asked: tuple[str, str], memo: Path, recipe: str | None = None,
            tell: Tell = lambda done, whole: None,
            warn: Callable[[str], None] = lambda text: None) -> list[Comparison | LeftOut]:
    """Every place in which one of two methods has a result, in the order of the tables.

    Args:
        asked: METHOD or METHOD@RECIPE.
        memo: where rebuilt numbers are remembered by content.
        recipe: of those for which none is asked.
        tell: called after each result that was rebuilt.
        warn: called with what is to be said of the folder.
    """
    results = some_results(folder)
    for text in ignored(folder) + strangers(results):
        warn(text)
    kept, notes = newest(results)
    for name in asked:
        _check_there(folder, name, results, kept, notes)
    a, b = (_side(folder, name, recipe, kept) for name in asked)
    if a.method == b.method and (a.recipe == b.recipe or None in (a.recipe, b.recipe)):
        raise UserError(f"{a.method!r} is compared with itself", expected="two methods, or two recipes of one, as in "
                        f"{a.method}@small {a.method}@small-long")
    wanted = [result for result in kept if a.has(result.cell) or b.has(result.cell)]
    tables = tabled(wanted, rebuild(folder, kept, memo, wanted, tell))
    return [found for table in tables for found in _in_table(folder, table, (a, b))]


def _methods(results: Iterable[Result], asked: str) -> list[str]:
    """The methods of results that METHOD or METHOD@RECIPE may mean: a method's name may have an @ of its own."""
    return [method for method in {result.cell.method for result in results} if f"{asked}@".startswith(f"{method}@")]


def _check_there(folder: Path, asked: str, found: Sequence[Result], kept: Sequence[Result],
                 notes: Sequence[str]) -> None:
    """A UserError where no result of the method can be compared, which says why and what there is."""
    if _methods(kept, asked):
        return
    there, name = sorted({result.cell.method for result in kept}), asked.partition("@")[0]
    if left_out := _methods(found, asked):
        what, fix = f"all results of {left_out[0]!r} are left out", "; ".join(notes)
    elif plugins.registered("methods", name) in plugins.names("methods"):
        what = f"the method {name!r} is not in these results"
        fix = f"run it first: prior-bench run --method {name} --output {folder}"
    else:
        raise unknown_name("method", name, there, where=str(folder))
    raise UserError(what, where=str(folder), expected=f"one of {', '.join(there)}" if there else "", fix=fix)


def _side(folder: Path, asked: str, recipe: str | None, kept: Sequence[Result]) -> Side:
    method = max(_methods(kept, asked), key=len)
    recipe = asked.removeprefix(method).removeprefix("@") or recipe
    there = sorted({result.cell.recipe for result in kept if result.cell.method == method})
    if recipe is not None and recipe not in there:
        near = "".join(f", or did you mean {name!r}?" for name in get_close_matches(recipe, there, n=1, cutoff=0.5))
        raise UserError(f"the recipe {recipe!r} of {method!r} is not in these results", where=str(folder),
                        expected=f"one of {', '.join(there)}", fix=f"run it first{near}")
    return Side(asked, method, recipe)


def _in_table(folder: Path, table: Table, sides: tuple[Side, Side]) -> Iterator[Comparison | LeftOut]:
    for recipes in _recipes(table, sides):
        place = Place(table.heading, " and ".join(dict.fromkeys(recipes)))
        ours, theirs = ([row for row in sorted(table.entries) if side.has(row) and row.recipe == recipe]
                        for side, recipe in zip(sides, recipes, strict=True))
        for side, rows in zip(sides, (ours, theirs), strict=True):
            if not rows:
                yield LeftOut(place, f"{side}: {NOT_RUN}")
        for a, b in product(ours, theirs):
            if a.source != b.source and not (a.reference or b.reference):
                yield LeftOut(place, f"pre-trained on other data: {a.label} and {b.label}")
                continue
            for fraction in table.fractions:
                yield _at_fraction(folder, table, replace(place, fraction=fraction), sides, (a, b))


def _recipes(table: Table, sides: tuple[Side, Side]) -> list[tuple[str, str]]:
    """The recipes to hold against each other: those asked for, equal ones, or all of a reference where it shares
    none."""
    asked = [side.recipe for side in sides if side.recipe is not None]
    if len(asked) == len(sides):
        return [(asked[0], asked[1])]
    ours, theirs = ({row.recipe for row in table.entries if side.has(row)} for side in sides)
    reference = any(row.reference for row in table.entries)  # of the two, as there are no others
    if reference and ours and theirs and not ours & theirs:
        return list(product(sorted(ours), sorted(theirs)))
    return [(recipe, recipe) for recipe in asked or sorted(ours | theirs)]


def _at_fraction(folder: Path, table: Table, place: Place, sides: tuple[Side, Side],
                 rows: tuple[Row, Row]) -> Comparison | LeftOut:
    done: list[list[Rebuilt]] = []
    for side, row in zip(sides, rows, strict=True):
        entry = table.entry(row, place.fraction)
        if entry is None or not entry.rebuilt:
            reasons = "; ".join(sorted(set(entry.not_applicable))) if entry is not None else NOT_RUN
            return LeftOut(place, f"{side}: {reasons}")
        done.append(entry.rebuilt)
    common = {_seeds(one) for one in done[0]} & {_seeds(one) for one in done[1]}
    if not common:
        return LeftOut(place, "no subset and head seeds that both have")
    done = [[one for one in rebuilt if _seeds(one) in common] for rebuilt in done]
    assert table.main is not None  # there are results
    a, b = (Summary.of(table.main.name, rebuilt) for rebuilt in done)
    for side, summary in zip(sides, (a, b), strict=True):
        if summary.mean is None:
            return LeftOut(place, f"{side}: {summary.name} is undefined: {summary.reason}")
    if a.replicates is None or b.replicates is None or (both := paired(a.replicates, b.replicates)) is None:
        return LeftOut(place, f"{a.name} is undefined in too many draws")
    groups = len(groups_of(folder, done[0][0].result))
    seeds = [len({one.result.cell.pretrain_seed for one in rebuilt}) for rebuilt in done]
    other = {(*_seeds(one), one.result.cell.pretrain_seed): one for one in done[1]}
    pairs = [(one, other[key]) for one in done[0]
             if (key := (*_seeds(one), one.result.cell.pretrain_seed)) in other]
    return Comparison(place, a, b, both, groups, (seeds[0], seeds[1]), pairs)


@dataclass(frozen=True, slots=True)
class LabelTest:
    """A paired test of one metric in one pair of runs, by the task's own test (`Task.p_values`), unadjusted."""

    place: Place
    seeds: str
    metric: str
    a: float
    b: float
    test: str
    p: float


def label_tests(folder: Path, comparison: Comparison) -> Iterator[LabelTest]:
    """The tests without draws of each pair of runs; none where the task has none."""
    for pair in comparison.pairs:
        cell = pair[0].result.cell
        a, b = (read_predictions(folder, one.result) for one in pair)
        seeds = f"{cell.subset_seed}, {cell.head_seed}, {cell.pretrain_seed}"
        for metric, (test, p) in plugins.load("tasks", cell.task)().p_values(a, b).items():
            value_a, value_b = (one.metrics[metric].value for one in pair)
            assert value_a is not None  # what is tested is defined
            assert value_b is not None
            yield LabelTest(comparison.place, seeds, metric, value_a, value_b, test, p)


def _seeds(rebuilt: Rebuilt) -> tuple[int, int]:
    return rebuilt.result.cell.subset_seed, rebuilt.result.cell.head_seed

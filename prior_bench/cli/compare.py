"""`prior-bench compare`: two methods of a results folder, paired cell by cell."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prior_bench.cli.common import (
    CacheOption,
    PluginOption,
    ResultsOption,
    add_plugins,
    cache_folder,
    counted,
    verb,
    warn,
)
from prior_bench.errors import UserError

if TYPE_CHECKING:
    from prior_bench.leaderboard.comparison import Comparison, LabelTest


@verb
def compare(
    a: Annotated[str, typer.Argument(help="A method of the results, or METHOD@RECIPE.")],
    b: Annotated[str, typer.Argument(help="Another one.")],
    results: ResultsOption = Path("results"),
    recipe: Annotated[str | None, typer.Option(
        help="Compare in this recipe only, but where one follows an @.", show_default=False)] = None,
    labels: Annotated[bool, typer.Option(
        "--labels", help="Add a test of each label, run by run: DeLong's of AUROC, sign flips of accuracy.")] = False,
    cache: CacheOption = None,
    plugin: PluginOption = None,
) -> None:
    """Compare two methods, or recipes of one, cell by cell, in the same bootstrap draws, with p-values adjusted over
    the table (Holm)."""
    add_plugins(plugin)
    from prior_bench.leaderboard import comparison

    found = comparison.compare(results, (a, b), cache_folder(cache) / "leaderboard", recipe, counted(), warn)
    compared = [one for one in found if isinstance(one, comparison.Comparison)]
    left_out = [f"\n  {one.place}: {one.reason}" for one in found if isinstance(one, comparison.LeftOut)]
    if not compared:
        raise UserError(f"nothing can be compared{''.join(left_out)}")
    typer.echo(table(compared, a, b))
    if any(1 in one.pretrain_seeds for one in compared):
        typer.echo("One pre-training seed speaks of this checkpoint, not of the method.")
    tests = [test for one in compared for test in comparison.label_tests(results, one)] if labels else []
    if tests:
        typer.echo(f"\n{label_table(tests, a, b)}")
    if left_out:
        typer.echo(f"\nnot compared:{''.join(left_out)}")


def table(compared: list[Comparison], a: str, b: str) -> str:
    """One line a cell, and how to read it."""
    from tabulate import tabulate

    from prior_bench.statistics import holm

    adjusted = holm([one.paired.p for one in compared])
    body = [[one.place, one.a.name, f"{one.a.mean:.3f}", f"{one.b.mean:.3f}",
             f"{_difference(one):+.3f}", f"[{one.paired.interval[0]:+.3f}, {one.paired.interval[1]:+.3f}]",
             _p(p), one.groups, f"{one.a.cells}, {one.b.cells}"]
            for one, p in zip(compared, adjusted, strict=True)]
    header = ["cell", "metric", a, b, f"{a} - {b}", "95 % interval", "p (Holm)", "groups", "runs"]
    return tabulate(body, headers=header, disable_numparse=True, colalign=("left", "left", *["right"] * 7))


def label_table(tests: list[LabelTest], a: str, b: str) -> str:
    """One line a label and run."""
    from tabulate import tabulate

    from prior_bench.statistics import holm

    adjusted = holm([test.p for test in tests])
    body = [[test.place, test.seeds, test.metric, f"{test.a:.3f}", f"{test.b:.3f}", f"{test.a - test.b:+.3f}",
             test.test, _p(p)] for test, p in zip(tests, adjusted, strict=True)]
    header = ["cell", "seeds of subset, head, pre-training", "metric", a, b, f"{a} - {b}", "test", "p (Holm)"]
    return tabulate(body, headers=header, disable_numparse=True,
                    colalign=("left", "left", "left", "right", "right", "right", "left", "right"))


def _p(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "<0.001"


def _difference(one: Comparison) -> float:
    """Of the two means as they are printed beside it; the mean over draws is `paired.difference`."""
    assert one.a.mean is not None
    assert one.b.mean is not None
    return one.a.mean - one.b.mean

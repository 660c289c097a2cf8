"""`prior-bench check-method NAME`: run the conformance suite (`prior_bench.testing`) over a method."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from prior_bench.cli.common import PluginOption, add_plugins, verb
from prior_bench.cli.run import overrides


@verb
def check(
    name: Annotated[str, typer.Argument(help="A method, as in `prior-bench list`.")],
    recipe: Annotated[str, typer.Option(help="Recipe to build it with, as in `prior-bench list`.")] = "small",
    set_: Annotated[list[str] | None, typer.Option(
        "--set", help="Change a recipe's value, as in width=64; may be repeated.", metavar="KEY=VALUE",
        show_default=False)] = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights.", min=0)] = 0,
    plugin: PluginOption = None,
) -> None:
    """Check that a method keeps the rules of the encoder interface; exit code 1 where it does not."""
    add_plugins(plugin)
    from prior_bench import plugins, recipe_files, recipes

    kind = plugins.load("methods", name)
    values = overrides(set_ or [])
    if encoder := plugins.family(name)[1]:
        values["encoder"] = encoder
    chosen = recipes.load(recipe_files.recipe_file(name), recipe, kind.recipe_class, values)
    from prior_bench.testing import check_method, sample_texts
    from prior_bench.weights import new_method

    outcomes = check_method(new_method(kind, chosen, seed, sample_texts()), raise_on_failure=False)
    told: set[str] = set()
    for outcome in outcomes:
        state = "FAILED" if outcome.problem else "-" if outcome.skipped else "ok"
        typer.echo(f"{state:7} {outcome.name}" + (f": {outcome.skipped}" if outcome.skipped else ""))
        if outcome.problem:
            problem = ["the same problem"] if outcome.problem in told else outcome.problem.splitlines()
            for line in (*problem, *textwrap.wrap(f"The rule: {outcome.rule}", 110)):
                typer.echo(f"        {line}")
            told.add(outcome.problem)
    failed, skipped = (sum(map(bool, those)) for those in zip(*((o.problem, o.skipped) for o in outcomes), strict=True))
    asked = len(outcomes) - skipped
    beside = f", {skipped} do not apply" if skipped else ""
    typer.echo(f"{name} ({recipe}): {asked - failed} of {asked} checks passed{beside}")
    if failed:
        raise typer.Exit(1)

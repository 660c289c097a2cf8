"""`prior-bench score`: are the stored numbers those that the saved predictions give?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prior_bench.cli.common import PluginOption, add_plugins, counted, some, verb, warn


@verb
def score(
    results: Annotated[Path, typer.Argument(help="Folder that `prior-bench run` wrote.")],
    plugin: PluginOption = None,
) -> None:
    """Recompute every metric from the saved predictions; exit code 1 where a stored number differs."""
    add_plugins(plugin)
    from prior_bench.leaderboard.rebuild import problems
    from prior_bench.results import ignored, readable

    found, broken = readable(results)
    for text in ignored(results):
        warn(text)
    for path, problem in broken.items():
        typer.echo(f"{path.stem}: {problem}")
    wrong = len(broken)
    tell = counted()
    for done, result in enumerate(found, 1):
        said = problems(results, result)
        tell(done, len(found))
        for problem in said:
            typer.echo(f"{result.cell.name}: {problem}")
        wrong += bool(said)
    metrics = sum(len(result.metrics) for result in found)
    typer.echo(f"{results}: {some(len(found) + len(broken), 'cell')}, {some(metrics, 'metric')}; "
               + (f"in {wrong} of them a number differs or cannot be had" if wrong else
                  "all are what the predictions give"))
    if wrong:
        raise typer.Exit(1)

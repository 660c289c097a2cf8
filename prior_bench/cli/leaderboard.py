"""`prior-bench leaderboard`: write the tables again from a results folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prior_bench.cli.common import CacheOption, PluginOption, add_plugins, cache_folder, verb


@verb
def leaderboard(
    results: Annotated[Path, typer.Argument(help="Folder that `prior-bench run` wrote.")] = Path("results"),
    output: Annotated[Path | None, typer.Option(
        help="Folder for the tables. [default: RESULTS]", show_default=False)] = None,
    from_: Annotated[list[Path] | None, typer.Option(
        "--from", help="An archive of `prior-bench submit` to verify and add first; may be repeated.",
        show_default=False)] = None,
    published: Annotated[bool, typer.Option(
        "--published", help="Add the numbers that papers print, apart from the results and never ranked.")] = False,
    cache: CacheOption = None,
    plugin: PluginOption = None,
) -> None:
    """Write the tables (Markdown, CSV, JSON, LaTeX) from results, every number rebuilt from the saved predictions."""
    from prior_bench.leaderboard import files
    from prior_bench.results import check_writable

    add_plugins(plugin)
    if from_:
        from prior_bench.leaderboard import archive
        from prior_bench.leaderboard.truth import AtHand

        done = archive.add(from_, results, AtHand(cache_folder(cache)))
        for dataset, reason in done.unchecked.items():
            typer.echo(f"warning: labels were not held against {dataset}: {reason}", err=True)
        typer.echo(f"added {done.cells} cells to {results}; {done.known} were there already")
    folder = output or results
    if results.is_dir():  # else reading it says what is wrong with it
        check_writable(folder, 1 << 20, "--output")
    for warning in files.write(results, folder, cache_folder(cache) / "leaderboard", published):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"wrote {', '.join(str(folder / name) for name in files.FILES)}")

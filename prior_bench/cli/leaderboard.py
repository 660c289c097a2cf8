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
    cache: CacheOption = None,
    plugin: PluginOption = None,
) -> None:
    """Write LEADERBOARD.md and leaderboard.csv from results, every number rebuilt from the saved predictions."""
    from prior_bench.leaderboard import tables
    from prior_bench.results import check_writable

    add_plugins(plugin)
    if from_:
        from prior_bench.leaderboard import archive

        new, known = archive.add(from_, results)
        typer.echo(f"added {new} cells to {results}; {known} were there already")
    folder = output or results
    if results.is_dir():  # else tables says what is wrong with it
        check_writable(folder, 1 << 20, "--output")
    for warning in tables.write(results, folder, memo=cache_folder(cache) / "leaderboard"):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"wrote {folder / tables.MARKDOWN} and {folder / tables.CSV}")

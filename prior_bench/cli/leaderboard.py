"""`prior-bench leaderboard`: write the tables again from a results folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prior_bench.cli.common import (
    CacheOption,
    DataRootOption,
    PluginOption,
    add_plugins,
    cache_folder,
    comma,
    counted,
    some,
    verb,
    warn,
)


@verb
def leaderboard(
    results: Annotated[Path, typer.Argument(help="Folder that `prior-bench run` wrote.")] = Path("results"),
    output: Annotated[Path | None, typer.Option(
        help="Folder for the tables. [default: RESULTS]", show_default=False)] = None,
    from_: Annotated[list[Path] | None, typer.Option(
        "--from", help="An archive of `prior-bench submit` to verify and add first; may be repeated.",
        show_default=False)] = None,
    html: Annotated[Path | None, typer.Option(
        help="Write a page too, a static site that opens from disk, into this folder.", show_default=False)] = None,
    figures: Annotated[Path | None, typer.Option(
        help="Draw the plots too, for papers: PNG and SVG into this folder.", show_default=False)] = None,
    examples_of: Annotated[str | None, typer.Option(
        help="Data sets, by comma, whose real images the page may show; their owners may forbid to pass them on.",
        show_default=False)] = None,
    published: Annotated[bool, typer.Option(
        "--published", help="Add the numbers that papers print, apart from the results and never ranked.")] = False,
    data_root: DataRootOption = None,
    cache: CacheOption = None,
    plugin: PluginOption = None,
) -> None:
    """Write the tables (Markdown, CSV, JSON, LaTeX) from results, every number rebuilt from the saved predictions."""
    from prior_bench import plugins
    from prior_bench.files import check_writable
    from prior_bench.leaderboard import files
    from prior_bench.leaderboard.page import INDEX, Site
    from prior_bench.results import some_result_files

    add_plugins(plugin)
    caches = cache_folder(cache)
    if from_:
        from prior_bench.leaderboard import archive
        from prior_bench.leaderboard.truth import AtHand

        done = archive.add(from_, results, AtHand(caches, data_root))
        for dataset, reason in done.unchecked.items():
            warn(f"labels were not held against {dataset}: {reason}")
        typer.echo(f"added {some(done.cells, 'cell')} to {results}; {done.known} were there already")
    if not published:  # which has rows of its own
        some_result_files(results)
    folder = output or results
    if results.is_dir():  # else reading it says what is wrong with it
        for wanted, mebibytes, option in ((folder, 1, "--output"), (html, 32, "--html"), (figures, 32, "--figures")):
            if wanted is not None:
                check_writable(wanted, mebibytes << 20, option)
    for name in comma(examples_of):
        plugins.load("datasets", name)  # a name that is none is told now
    site = None if html is None else Site(html, caches, data_root, tuple(comma(examples_of)))
    for warning in files.write(results, folder, caches / "leaderboard", published, site, figures, counted()):
        warn(warning)
    written = [*(folder / name for name in files.FILES), html and html / INDEX, figures]
    typer.echo(f"wrote {', '.join(str(path) for path in written if path is not None)}")

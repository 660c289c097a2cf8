"""`prior-bench submit`: pack results into one archive that others can check and add to their leaderboard."""

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
    some,
    verb,
    warn,
)


@verb
def submit(
    results: Annotated[Path, typer.Argument(help="Folder that `prior-bench run` wrote.")],
    output: Annotated[Path | None, typer.Option(
        help="The archive to write. [default: RESULTS.zip]", show_default=False)] = None,
    data_root: DataRootOption = None,
    cache: CacheOption = None,
    plugin: PluginOption = None,
) -> None:
    """Pack predictions, results and manifests of digests into one archive, after recomputing every number and holding
    the labels against the data sets that are here."""
    add_plugins(plugin)
    from prior_bench.leaderboard import archive
    from prior_bench.leaderboard.truth import AtHand
    from prior_bench.results import ignored

    path = output or Path(f"{results.resolve().name}.zip")
    done = archive.pack(results, path, AtHand(cache_folder(cache), data_root))
    for text in ignored(results):
        warn(text)
    for dataset, reason in done.unchecked.items():
        warn(f"labels were not held against {dataset}: {reason}")
    typer.echo(f"wrote {path}: {some(done.cells, 'cell')}, {path.stat().st_size / 2**20:.1f} MiB; "
               f"to add it: prior-bench leaderboard RESULTS --from {path}")

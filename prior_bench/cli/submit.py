"""`prior-bench submit`: pack results into one archive that others can check and add to their leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prior_bench.cli.common import PluginOption, add_plugins, verb


@verb
def submit(
    results: Annotated[Path, typer.Argument(help="Folder that `prior-bench run` wrote.")],
    output: Annotated[Path | None, typer.Option(
        help="The archive to write. [default: RESULTS.zip]", show_default=False)] = None,
    plugin: PluginOption = None,
) -> None:
    """Pack predictions, results and a manifest of digests into one archive, after recomputing every number."""
    add_plugins(plugin)
    from prior_bench.leaderboard import archive

    path = output or Path(f"{results.resolve().name}.zip")
    cells = archive.pack(results, path)
    typer.echo(f"wrote {path}: {cells} cells, {path.stat().st_size / 2**20:.1f} MiB; "
               f"to add it: prior-bench leaderboard RESULTS --from {path}")

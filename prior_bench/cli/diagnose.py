"""`prior-bench diagnose WEIGHTS`: loss curves, the use of prototypes, and whether sentences point to their findings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from prior_bench.cli.common import CacheOption, DataRootOption, PluginOption, add_plugins, cache_folder, verb


@verb
def diagnose(
    weights: Annotated[Path, typer.Argument(help="The folder that `prior-bench pretrain` printed.")],
    dataset: Annotated[str, typer.Option(help="Whose test reports to look at.")] = "phantom",
    output: Annotated[Path, typer.Option(help="Folder for diagnosis.json and the pictures.")] = Path("diagnosis"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    cache: CacheOption = None,
    data_root: DataRootOption = None,
    plugin: PluginOption = None,
) -> None:
    """Look into trained weights: loss curves, the use of prototypes or queries, and the pointing game."""
    add_plugins(plugin)
    import json

    from prior_bench import grid, results
    from prior_bench.engine.precision import choose
    from prior_bench.engine.pretrain import log_file, read_log
    from prior_bench.files import check_writable, write_text
    from prior_bench.weights import load_method
    from prior_bench.weights_folder import find, weights_digest

    home = cache_folder(cache)
    if (ours := find(weights)) is not None:
        weights = ours.path
    method = load_method(weights)
    data = grid.open_dataset(dataset, grid.Request(methods=[method.name], cache=home, data_root=data_root))
    check_writable(output, 1 << 20, "--output")
    method.to(choose(device).device)
    rows = read_log(log_file(weights))
    if not rows:
        typer.echo(f"no curves: there is no log at {log_file(weights)}")
    from prior_bench.diagnosis import diagnose as look

    found = look(method, rows, data.dataset, output, home / "images", typer.echo)
    about = {"method": method.name, "weights": weights_digest(weights), "dataset": dataset, "data": data.digest}
    content = json.dumps(results.jsonable({**about, **found}), indent=1)
    write_text(output / "diagnosis.json", content + "\n")
    for line in _summary(found):
        typer.echo(line)
    typer.echo(f"wrote {output}")


def _summary(found: Mapping[str, Any]) -> Iterator[str]:
    for name, term in found.get("curves", {}).items():
        yield f"{name}: {term['first']:.4g} to {term['last']:.4g}, from step {term['from_step']}"
    for name, use in found.get("use", {}).items():
        yield (f"use by {name}: entropy {use['entropy']:.3f}, of one alone {use['entropy_of_one']:.3f}, first choices "
               f"{use['first_choices']:.0%} of {use['prototypes']}")
    for name, kinds in found.get("pointing", {}).items():
        for kind, game in kinds.items():
            low, high = game["interval"] or (float("nan"),) * 2
            yield (f"pointing, {name}, {kind}: {game['hits']:.3f} [{low:.3f}, {high:.3f}] of {game['sentences']}; "
                   f"chance {game['chance']:.3f}, habit {game['habit']:.3f}, reachable {game['reachable']:.3f}")

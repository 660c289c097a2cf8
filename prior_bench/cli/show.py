"""`prior-bench show`: everything about one cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prior_bench.cli.common import CacheOption, PluginOption, ResultsOption, add_plugins, cache_folder, verb, warn
from prior_bench.errors import UserError, unknown_name

if TYPE_CHECKING:
    from prior_bench.leaderboard.rebuild import Rebuilt
    from prior_bench.types import Cell, Result


@verb
def show(
    cell: Annotated[str, typer.Argument(help="A file of the cell, its name, or how its name alone begins.")],
    results: ResultsOption = Path("results"),
    json: Annotated[bool, typer.Option("--json", help="Print the stored JSON as it is.")] = False,
    cache: CacheOption = None,
    plugin: PluginOption = None,
) -> None:
    """Print everything about one cell: metrics with intervals, seeds, settings, digests, provenance, warnings."""
    path = find(*place(cell, results))
    folder = path.parent
    if json:
        typer.echo(path.read_text(encoding="utf-8"), nl=False)
        return
    add_plugins(plugin)
    from prior_bench.leaderboard.rebuild import check_installed, rebuild
    from prior_bench.leaderboard.tables import newest
    from prior_bench.results import predictions_path, read_result, readable

    result = read_result(path)
    check_installed(result)
    found, broken = readable(folder)
    for file, problem in broken.items():
        warn(f"{file} is left out of the draws: {problem}")
    kept, _ = newest(found)  # as in the tables, whose draws come from these
    shown = result in kept
    if result.status == "done" and not predictions_path(folder, result.cell).is_file():
        warn("the predictions are missing: the numbers are those that are stored, and have no intervals")
        rebuilt = [stored(result)]
    else:
        there = [one for one in kept if predictions_path(folder, one.cell).is_file()]
        rebuilt = rebuild(folder, there if shown else [*there, result], cache_folder(cache) / "leaderboard", [result])
    typer.echo("\n".join(describe(result, rebuilt[0] if rebuilt else None, shown)))


def stored(result: Result) -> Rebuilt:
    """A result whose numbers cannot be rebuilt, as it stands in its file."""
    from prior_bench.leaderboard.rebuild import Rebuilt

    return Rebuilt(result, {metric.name: metric for metric in result.metrics}, {})


def place(cell: str, results: Path) -> tuple[Path, str]:
    """The folder and the name in it: of a path, or of a name as it was typed, with a method's name as in the tables."""
    from prior_bench.types import safe_name

    path = Path(cell)
    if len(path.parts) < 2 or (":" in cell and not path.parent.is_dir()):  # a name on the hub has a slash too
        return results, safe_name("/".join(path.parts))
    return path.parent, path.name


def find(folder: Path, name: str) -> Path:
    """The JSON file of the cell of that name, or of the only one whose name begins so."""
    from prior_bench.results import some_result_files

    stem = name.removesuffix(".json").removesuffix(".parquet")
    names = [path.stem for path in some_result_files(folder)]
    found = [known for known in names if known == stem] or [known for known in names if known.startswith(stem)]
    if not found and (other := next((path for path in (folder / name, Path(name)) if path.exists()), None)):
        raise UserError(f"this is no cell but a {'folder' if other.is_dir() else 'file of another kind'}",
                        where=str(other), expected=f"a file of a cell or its name, as {names[0]}",
                        fix=f"see the .json files of {folder}")
    if not found:
        parts = stem.count("_") + 1
        beginnings = {"_".join(known.split("_")[:parts]) for known in names}  # as much of each name as was given
        raise unknown_name("beginning of a cell's name:", stem, beginnings, where=str(folder),
                           see=f"the .json files of {folder}, as {names[0]}.json")
    if len(found) > 1:
        raise UserError(f"{len(found)} cells begin with {stem!r}", where=str(folder), expected="one cell",
                        fix=f"add to the name, as in {found[0]}")
    return folder / f"{found[0]}.json"


def describe(result: Result, rebuilt: Rebuilt | None, in_tables: bool) -> Iterator[str]:
    """The lines to print. `rebuilt` is None where the cell is not applicable."""
    from prior_bench.leaderboard.rebuild import remarks

    yield result.cell.name
    for name, value in _identity(result.cell).items():
        yield f"  {name:10}{value}"
    if rebuilt is None:
        yield f"  {'status':10}not applicable: {result.reason}"
    else:
        yield from ["", _metrics(rebuilt)]
    for title, values in (("details", result.details), ("provenance", result.provenance)):
        if values:
            yield from ["", f"{title}:", _yaml(values)]
    yield ""
    if not in_tables:
        yield "warning: the tables leave this cell out: the folder has newer weights, or other data or settings"
    yield from (f"warning: {text}" for text in remarks(result, rebuilt))


def _identity(cell: Cell) -> dict[str, str]:
    """What the cell is: the fields of its name and digest, in words."""
    from prior_bench.grid import NO_SOURCE

    made = "no pre-training" if cell.pretrain_source == NO_SOURCE else f"pre-trained on {cell.pretrain_source}"
    data = f"{cell.dataset} / {cell.target}"
    if cell.fraction is not None:
        data += f", {cell.fraction:.0%} of training data, subset seed {cell.subset_seed}, head seed {cell.head_seed}"
    return {
        "weights": f"{cell.method} ({cell.recipe}), {made}, seed {cell.pretrain_seed}; digest {cell.weights_digest}",
        "protocol": f"{cell.task} ({cell.mode}), profile {cell.profile}, version {cell.protocol_version}; "
                    f"settings {cell.settings_digest}",
        "data": f"{data}; digest {cell.data_digest}",
    }


def _metrics(rebuilt: Rebuilt) -> str:
    """The metrics as the predictions give them now, with their intervals."""
    from tabulate import tabulate

    from prior_bench.statistics import interval

    body = []
    for metric in rebuilt.metrics.values():
        value = f"undefined: {metric.reason}" if metric.value is None else f"{metric.value:.4f}"
        limits = interval(rebuilt.replicates[metric.name]) if metric.name in rebuilt.replicates else None
        counts = ", ".join(f"{name} {count}" for name, count in sorted(metric.counts.items()))
        body.append([metric.name, value, f"[{limits[0]:.4f}, {limits[1]:.4f}]" if limits else "-",
                     "higher" if metric.higher_is_better else "lower", counts])
    return tabulate(body, headers=["metric", "value", "95 % interval", "better", "counts"], disable_numparse=True)


def _shortened(value: Any) -> Any:
    """Curves, lists of [step, value], by their ends; `--json` has all of them."""
    if isinstance(value, Mapping):
        return {key: _shortened(one) for key, one in value.items()}
    if isinstance(value, list) and len(value) > 2 and all(map(_step_and_value, value)):
        (start, first), (stop, last) = value[0], value[-1]
        return {"points": len(value), "steps": f"{start} to {stop}", "first": first, "last": last}
    return value


def _step_and_value(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], int)


def _yaml(values: Mapping[str, Any]) -> str:
    import yaml

    text = yaml.safe_dump(_shortened(values), sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
    return "\n".join(f"  {line}" for line in text.splitlines())

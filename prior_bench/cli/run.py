"""`prior-bench run`: pre-train what is needed, evaluate what is missing, write the leaderboard."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prior_bench.cli.common import (
    INTERRUPTED,
    CacheOption,
    DataRootOption,
    PluginOption,
    add_plugins,
    cache_folder,
    comma,
    counted,
    numbers,
    seeds,
    some,
    tell_left_out,
    verb,
)
from prior_bench.errors import UserError

if TYPE_CHECKING:
    from prior_bench.execution import Summary
    from prior_bench.grid import Grid, Weights


@verb
def run(
    method: Annotated[str, typer.Option(help="Methods by comma, as in `prior-bench list`, or all.")],
    task: Annotated[str, typer.Option(help="Tasks by comma, or all.")] = "all",
    dataset: Annotated[str, typer.Option(help="Datasets to evaluate on, by comma.")] = "phantom",
    target: Annotated[str | None, typer.Option(
        help="Targets of the datasets, by comma. [default: each dataset's default ones]", show_default=False)] = None,
    pretrain_on: Annotated[str | None, typer.Option(
        help="Dataset to pre-train on. [default: the dataset, if one has reports]", show_default=False)] = None,
    fraction: Annotated[str, typer.Option(help="Shares of the training data, by comma.")] = "0.01,0.1,1",
    seed: Annotated[str, typer.Option(help="Seeds of the weights (pre-training), by comma.")] = "0",
    subset_seed: Annotated[str | None, typer.Option(
        help="Seeds of the training subsets, by comma. [default: the dataset's]", show_default=False)] = None,
    mode: Annotated[str | None, typer.Option(
        help="Modes by comma, e.g. linear, finetune. [default: each task's first]", show_default=False)] = None,
    profile: Annotated[str, typer.Option(help="Evaluation protocol: standard, standard-local or paper.")] = "standard",
    recipe: Annotated[str, typer.Option(help="Recipe of the weights, as in `prior-bench list`.")] = "small",
    set_: Annotated[list[str] | None, typer.Option(
        "--set", help="Change a recipe's value, as in training.epochs=1; may be repeated.", metavar="KEY=VALUE",
        show_default=False)] = None,
    weights: Annotated[Path | None, typer.Option(
        help="Released or own weights (file or folder) in place of pre-training.", show_default=False)] = None,
    allow_partial_weights: Annotated[bool, typer.Option(
        "--allow-partial-weights", help="Accept weights that do not fill the whole encoder.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    output: Annotated[Path, typer.Option(help="Folder for results and leaderboard.")] = Path("results"),
    cache: CacheOption = None,
    data_root: DataRootOption = None,
    plugin: PluginOption = None,
    max_bad_images: Annotated[int, typer.Option(
        help="Images per dataset that may be unreadable; they are left out and listed.", min=0)] = 0,
    ray: Annotated[str | None, typer.Option(
        help="Run each set of weights as a task of a Ray cluster: its address, auto, or local. Folders must be shared.",
        show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option(
        "--dry-run", help="Print the cells and what would run; compute nothing.")] = False,
) -> None:
    """Evaluate methods on tasks: pre-trains what is needed, runs what is missing, writes the leaderboard."""
    from prior_bench import grid

    add_plugins(plugin)
    subset_seeds = seeds(subset_seed, "--subset-seed") if subset_seed else None
    planned = grid.plan(grid.Request(
        methods=comma(method), tasks=comma(task), datasets=comma(dataset), targets=comma(target),
        pretrain_on=pretrain_on, fractions=numbers(fraction, "--fraction", float, "0.01, 0.1 or 1"),
        seeds=seeds(seed, "--seed"), subset_seeds=subset_seeds, modes=comma(mode),
        profile=profile, recipe=recipe, overrides=overrides(set_ or []), weights=weights,
        allow_partial_weights=allow_partial_weights, device=device, precision=precision, output=output,
        cache=cache_folder(cache), data_root=data_root, max_bad_images=max_bad_images))
    for opened in planned.datasets.values():
        tell_left_out(opened.dataset)
    for name, why in planned.left_out.items():
        typer.echo(f"left out: {name} {why}")
    if dry_run:
        if set_:  # the recipes as they stand need no check, which imports torch
            from prior_bench.execution import check_recipes

            check_recipes(planned)
        typer.echo(describe(planned))
    else:
        _carry_out(planned, ray, plugin or [])


def overrides(pairs: list[str]) -> dict[str, Any]:
    """`training.epochs=1` and the like; the value is read as YAML."""
    import yaml

    found = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UserError(f"not a setting: {pair!r}", where="--set", expected="KEY=VALUE, as in training.epochs=1")
        try:
            found[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(f"the value of {key!r} cannot be read: {value!r}", where="--set",
                            expected="a YAML value") from error
    return found


def describe(planned: Grid) -> str:
    """What `--dry-run` prints: the weights, the cells, which are done."""
    missing = set(planned.missing)
    lines = [f"{some(len(planned.cells), 'cell')}: {len(planned.cells) - len(missing)} done, {len(missing)} to run; "
             f"results in {planned.request.output}", "", "weights:"]
    for weights in dict.fromkeys(cell.weights for cell in planned.cells):
        lines.append(f"  {weights.title}: {_state(weights)}")
    lines += ["", "cells:"]
    for cell in planned.cells:
        lines.append(f"  {'to run' if cell in missing else 'done':7}{cell.title}")
    return "\n".join(lines)


def _state(weights: Weights) -> str:
    """What there is to do for weights before they can be evaluated."""
    from prior_bench.grid import NO_SOURCE

    if weights.source == NO_SOURCE:
        return "nothing to train"
    if weights.source.startswith("file:"):
        return "read before" if weights.digest else "to be read"
    return "pre-trained" if weights.digest else "to be pre-trained"


def _carry_out(planned: Grid, ray: str | None, plugin_files: list[Path]) -> None:
    """Run what is missing, then show what there is."""
    missing = planned.missing
    output = planned.request.output
    summary = None
    if missing:
        summary = _execute(planned, ray, plugin_files)
    else:
        typer.echo(f"nothing to do: all {len(planned.cells)} cells are done")
    _write_leaderboard(planned, again=bool(missing))
    typer.echo(f"leaderboard: {output / 'LEADERBOARD.md'}")
    if summary is None or not summary.failed:
        return
    for name, trace in summary.failed.items():
        typer.echo(f"\nfailed: {name}\n{trace}", err=True)
    others = "; the others are stored" if summary.lost < len(planned.cells) else ""
    typer.echo(f"{some(summary.lost, 'cell')} failed with the errors above{others}. Of a method of your own, "
               "`prior-bench check-method NAME` says which rules it breaks.", err=True)
    raise typer.Exit(1)


def _execute(planned: Grid, ray: str | None, plugin_files: list[Path]) -> Summary:
    from prior_bench.cli.display import LiveDisplay, PlainDisplay
    from prior_bench.cluster import execute_on_ray
    from prior_bench.execution import execute

    display = LiveDisplay(planned) if sys.stdout.isatty() else PlainDisplay(planned)
    try:
        with display:
            summary = execute_on_ray(planned, display, ray, plugin_files) if ray else execute(planned, display)
    except KeyboardInterrupt:
        typer.echo("interrupted; what was finished is stored, and the same command goes on from there", err=True)
        raise typer.Exit(INTERRUPTED) from None
    typer.echo(display.summary())
    return summary


def _write_leaderboard(planned: Grid, again: bool) -> None:
    """The leaderboard's files beside the results, unless they are newer than every result."""
    from prior_bench.results import result_files

    output = planned.request.output
    written = output / "LEADERBOARD.md"
    if not again and written.is_file():
        newest = max((path.stat().st_mtime_ns for path in result_files(output)), default=0)
        if written.stat().st_mtime_ns >= newest:
            return
    from prior_bench.leaderboard import files

    for warning in files.write(output, output, planned.request.cache / "leaderboard", tell=counted()):
        typer.echo(f"warning: {warning}", err=True)

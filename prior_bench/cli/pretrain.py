"""`prior-bench pretrain`: make the weights that a recipe gives on a dataset; `run` finds them in the cache."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
    tell_left_out,
    verb,
)
from prior_bench.cli.run import overrides
from prior_bench.engine.pretrain import log_file
from prior_bench.errors import UserError
from prior_bench.files import check_writable, replace_folder
from prior_bench.weights_folder import META

if TYPE_CHECKING:
    from prior_bench.engine.pretrain import Report


@verb
def pretrain(
    method: Annotated[str, typer.Option(help="A method, as in `prior-bench list`.")],
    dataset: Annotated[str, typer.Option(help="A dataset with reports.")],
    recipe: Annotated[str, typer.Option(help="Recipe of the weights, as in `prior-bench list`.")] = "small",
    seed: Annotated[int, typer.Option(help="Seeds initialisation, order, augmentation and dropout.", min=0)] = 0,
    set_: Annotated[list[str] | None, typer.Option(
        "--set", help="Change a recipe's value, as in training.epochs=1; may be repeated.", metavar="KEY=VALUE",
        show_default=False)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16, where the recipe leaves it open.")] = "auto",
    output: Annotated[Path | None, typer.Option(
        help="Also copy the weights folder to here.", show_default=False)] = None,
    wandb: Annotated[str | None, typer.Option(
        help="Also send each step's losses to this Weights & Biases project (pip install prior-bench[wandb]).",
        show_default=False)] = None,
    cache: CacheOption = None,
    data_root: DataRootOption = None,
    plugin: PluginOption = None,
    max_bad_images: Annotated[int, typer.Option(
        help="Images that may be unreadable; they are left out and listed.", min=0)] = 0,
) -> None:
    """Pre-train a method. The same command again continues after a kill, and is done at once when it is complete."""
    add_plugins(plugin)
    from prior_bench import grid, plugins, provenance, recipe_files, recipes
    from prior_bench.engine.pretrain import pretrain as train

    home = cache_folder(cache)
    kind = plugins.load("methods", method)
    chosen = recipes.load(recipe_files.recipe_file(method), recipe, kind.recipe_class, overrides(set_ or []))
    request = grid.Request(methods=[method], cache=home, data_root=data_root, max_bad_images=max_bad_images)
    data = grid.open_dataset(dataset, request).dataset
    tell_left_out(data)
    if output is not None:
        check_writable(output.parent, 1 << 20, "--output")
        _check_replaceable(output)
    from prior_bench.engine.precision import choose

    try:
        with (_progress(f"{method} ({recipe}) on {dataset}") as report,
              _sent_to(wandb, f"{method}-{recipe}-{dataset}-{seed}", chosen.model_dump(mode="json")) as log):
            weights = train(method, chosen, data, seed=seed, precision=choose(device, precision), cache=home,
                            report=report, command=provenance.command(), log=log)
    except KeyboardInterrupt:
        typer.echo("interrupted; the last checkpoint is kept, and the same command goes on from there", err=True)
        raise typer.Exit(INTERRUPTED) from None
    if not _is_first():
        return
    typer.echo(f"weights: {weights}")
    typer.echo(f"loss curves: {weights.parent / 'loss_curves.png'}")
    if output is not None:
        _copy(weights, output)
        typer.echo(f"copied to: {output}")


def _is_first() -> bool:
    """Whether this is the process that tells and copies, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def _check_replaceable(output: Path) -> None:
    """Nothing but weights of ours is replaced."""
    if output.is_dir() and any(output.iterdir()) and not (output / META).is_file():
        raise UserError("the folder holds other files than weights", where=str(output), expected="a new folder",
                        fix="give another --output")


def _copy(weights: Path, output: Path) -> None:
    """The weights folder with its log, in one step."""
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    shutil.copytree(weights, temporary)
    shutil.copy(log_file(weights), temporary)
    replace_folder(temporary, output)


@contextmanager
def _sent_to(project: str | None, name: str, config: dict[str, Any]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A callback that sends rows of the log to a Weights & Biases project; without one, and on every rank but the
    first, it does nothing."""
    if project is None or not _is_first():
        yield lambda row: None
        return
    try:
        import wandb
    except ImportError as error:
        raise UserError("wandb is not installed", where="--wandb", fix="pip install 'prior-bench[wandb]'") from error
    with ExitStack() as stack:
        runs: list[Any] = []

        def send(row: Mapping[str, Any]) -> None:
            if not runs:  # a run that is complete has nothing to send
                runs.append(stack.enter_context(wandb.init(project=project, name=name, config=config)))
            runs[0].log({key: value for key, value in row.items() if key != "step"}, step=row["step"])

        yield send


@contextmanager
def _progress(title: str) -> Iterator[Report]:
    """A callback that draws a bar on a terminal, and elsewhere prints a line for each twentieth of a phase."""
    if not sys.stdout.isatty():
        yield _plain_lines()
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f} %"),
               TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[text]}", markup=False))
    with Progress(*columns) as bar:
        tasks: dict[str, int] = {}

        def report(phase: str, share: float, text: str) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(f"{title}: {phase}", total=1.0, text="")
            bar.update(tasks[phase], completed=share, text=text)  # type: ignore[arg-type]

        yield report


def _plain_lines() -> Report:
    told: set[tuple[str, int]] = set()

    def report(phase: str, share: float, text: str) -> None:
        step = (phase, int(share * 20))
        if step not in told:
            told.add(step)
            typer.echo(f"{phase} {share:.0%} {text}".rstrip())

    return report

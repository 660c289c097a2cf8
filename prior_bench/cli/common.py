"""What the verbs share: how errors leave the program, lists by comma, and where caches lie."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, TypeVar

import typer

from prior_bench.errors import UserError
from prior_bench.files import CACHE_VARIABLE, default_cache

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 130
PATIENCE = 5.0  # seconds of silence that a user bears
# What the system refuses, which no bug of ours causes: permissions, full disks, a file in a folder's place.
REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EEXIST, errno.ENOTDIR,
           errno.EISDIR}

CacheOption = Annotated[Path | None, typer.Option(
    "--cache", show_default=False,
    help=f"Folder for weights, images and features. [default: ${CACHE_VARIABLE}, or the user's cache folder]")]
DataRootOption = Annotated[Path | None, typer.Option(
    "--data-root", help="Folder that holds the real data sets. [default: $PRIOR_BENCH_DATA]", show_default=False)]
PluginOption = Annotated[list[Path] | None, typer.Option(
    "--plugin", help="A Python file with your own methods, tasks or datasets; may be repeated.", show_default=False)]
ResultsOption = Annotated[Path, typer.Option("--results", help="Folder that `prior-bench run` wrote.")]


def verb(function: Callable[P, R]) -> Callable[P, R]:
    """A UserError, and what the system refuses, ends in its message and exit code 2, Ctrl-C in 130; all else is a bug
    and keeps its traceback."""

    @functools.wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            typer.echo(f"error: {error}", err=True)
            raise typer.Exit(2) from None
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            refused = UserError(f"the system refuses: {error.strerror}", where=str(error.filename or ""),
                                fix="mend permissions or free space there, or name another file or folder")
            typer.echo(f"error: {refused}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.echo("interrupted", err=True)
            raise typer.Exit(INTERRUPTED) from None

    return guarded


def comma(text: str | None) -> list[str]:
    """"a, b" to ["a", "b"], without repetitions."""
    return list(dict.fromkeys(part.strip() for part in (text or "").split(",") if part.strip()))


def numbers(text: str, option: str, convert: Callable[[str], Any], expected: str) -> list[Any]:
    """A list by comma of numbers; anything else is a UserError that names the option."""
    try:
        return [convert(part) for part in comma(text)]
    except ValueError as error:
        raise UserError(f"not a list of numbers: {text!r}", where=option, expected=expected) from error


def seeds(text: str, option: str) -> list[int]:
    """A list by comma of seeds; numpy and torch take none below zero."""
    found: list[int] = numbers(text, option, int, "whole numbers, as in 0,1")
    if bad := [seed for seed in found if seed < 0]:
        raise UserError(f"not a seed: {bad[0]}", where=option, expected="0 or more", fix="give another seed")
    return list(dict.fromkeys(found))


def some(count: int, noun: str) -> str:
    """1 cell, 2 cells."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def cache_folder(given: Path | None) -> Path:
    return default_cache() if given is None else given


def tell_left_out(dataset: Dataset) -> None:
    """A line that lists the unreadable images that --max-bad-images left out."""
    if dataset.exclude:
        typer.echo(f"left out: {len(dataset.exclude)} unreadable images of {dataset.name}: "
                   f"{', '.join(sorted(dataset.exclude))}")


def counted() -> Callable[[int, int], None]:
    """A callback that says how many cells' numbers are rebuilt, one line every few seconds; of few nothing is heard."""
    told = monotonic()

    def tell(done: int, whole: int) -> None:
        nonlocal told
        if done < whole and monotonic() - told > PATIENCE:
            told = monotonic()
            typer.echo(f"numbers rebuilt from predictions: {done} of {whole} cells", err=True)

    return tell


def warn(text: str) -> None:
    typer.echo(f"warning: {text}", err=True)


def add_plugins(files: list[Path] | None) -> None:
    from prior_bench import plugins

    added: dict[str, Path] = {}
    for file in files or ():
        for name in plugins.add_file(file):
            if added.setdefault(name, file) != file:
                raise UserError(f"two plug-in files have the name {name!r}", where=f"{added[name]} and {file}",
                                fix="give one of the two classes another `name`")

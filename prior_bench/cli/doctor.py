"""`prior-bench doctor`: what is installed, what will be used, what is missing, and the fix for each problem."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from prior_bench.cli.common import CacheOption, DataRootOption, PluginOption, add_plugins, cache_folder, some, verb
from prior_bench.errors import UserError

Status = Literal["ok", "note", "problem"]
Finding = tuple[Status, str, str]  # status, what, fix
LIBRARIES = ("mmengine", "mmcv", "mmdet", "mmseg")


@verb
def doctor(
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    cache: CacheOption = None,
    data_root: DataRootOption = None,
    plugin: PluginOption = None,
) -> None:
    """Print versions, device, precision, mmcv operators and data, with the fix for each problem. Exit code 2 if any."""
    add_plugins(plugin)
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "packages": _packages,
        "OpenMMLab": _openmmlab,
        "device": lambda: _device(device, precision),
        "cache": lambda: _cache(cache_folder(cache)),
        "data": lambda: _data(data_root, cache_folder(cache)),
    }
    problems = 0
    for title, check in checks.items():
        typer.echo(f"{title}:")
        for status, what, fix in check():
            problems += status == "problem"
            typer.echo(f"  {'PROBLEM ' if status == 'problem' else ''}{what}")
            if fix:
                typer.echo(f"    fix: {fix}")
    typer.echo(some(problems, "problem") if problems else "no problems")
    if problems:
        raise typer.Exit(2)


def _packages() -> Iterator[Finding]:
    from prior_bench.provenance import git_commit, package_versions

    commit = git_commit()
    yield "ok", f"Python {platform.python_version()} on {platform.platform()}", ""
    for name, number in package_versions().items():
        yield "ok", f"{name} {number}" + (f" ({commit})" if name == "prior-bench" and commit else ""), ""


def _openmmlab() -> Iterator[Finding]:
    """Which family and which operators; hints are problems where something cannot be imported, and else notes."""
    from prior_bench.engine.openmmlab import describe

    try:
        found = describe()
    except UserError as error:
        yield "problem", f"{error.what} ({error.where})", error.fix
        return
    yield "ok", f"{found.family}: {', '.join(f'{name} {number}' for name, number in found.versions.items())}", ""
    yield "ok", f"operators: {found.operators}", ""
    yield "ok", f"opencv: {', '.join(f'{name} {number}' for name, number in found.opencv.items()) or 'none'}", ""
    broken = not _imports("cv2") or len(found.versions) < len(LIBRARIES)
    for hint in found.hints:
        yield "problem" if broken else "note", hint, ""


def _imports(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _device(device: str, precision: str) -> Iterator[Finding]:
    import torch

    from prior_bench.engine.precision import choose
    from prior_bench.execution import device_name

    try:
        chosen = choose(device, precision)
    except UserError as error:
        yield "problem", error.what, error.fix or error.expected
        return
    threads = some(torch.get_num_threads(), "thread")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "ok", f"{device_name(chosen)}, {some(cores or 1, 'core')}, {threads}", ""
    yield "ok", f"precision {chosen.name}, channels_last", ""
    if torch.version.cuda and not torch.cuda.is_available():
        yield "note", f"torch is built for CUDA {torch.version.cuda} and finds no GPU here", ""


def _cache(folder: Path) -> Iterator[Finding]:
    from prior_bench.execution import CACHE_NEEDS
    from prior_bench.files import check_writable

    try:
        check_writable(folder, CACHE_NEEDS, "--cache")
        yield "ok", str(folder), ""
    except UserError as error:
        yield "problem", f"{folder}: {error.what}", error.fix


def _data(data_root: Path | None, cache: Path) -> Iterator[Finding]:
    """Real data that is missing is no problem until it is asked for, but a data root that is given and has none is."""
    from prior_bench import plugins
    from prior_bench.data.dataset import DATA_ROOT_VARIABLE, chosen_root

    given = chosen_root(data_root)
    if given is not None and not given.is_dir():
        yield ("problem", f"the data root {'is no folder' if given.exists() else 'does not exist'}: {given}",
               f"give the folder that holds the data sets as --data-root or in ${DATA_ROOT_VARIABLE}")
    found = 0  # of those that need files
    for name in plugins.names("datasets"):
        try:
            kind = plugins.load("datasets", name)
            root = kind.find_root(data_root)
        except UserError as error:
            yield "note", _said(name, error), ""
            continue
        if root is None:
            yield "ok", f"{name}: built in", ""
            continue
        found += 1
        try:
            studies = kind(root=root, cache=cache).studies
            yield "ok", f"{name}: {len(studies)} studies in {root}", ""
        except UserError as error:
            yield "problem", _said(name, error), ""
    if data_root is not None and data_root.is_dir() and not found:
        yield ("problem", f"the data root holds no data set: {data_root}",
               "give the folder in which the folders named above lie")


def _said(name: str, error: UserError) -> str:
    """All that an error says, in the lines below the data set's."""
    return f"{name}: {error}".replace("\n", "\n  ")

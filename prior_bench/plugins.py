"""Finds methods, tasks and datasets by entry point, without importing them.

Three groups: `prior_bench.methods`, `prior_bench.tasks`, `prior_bench.datasets`. A third party's package adds one in
the way ours do: one line in its pyproject. `--plugin file.py` adds every Method, Task and Dataset class of one file.
"""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
import traceback
from contextlib import suppress
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from prior_bench.digests import digest_bytes
from prior_bench.errors import UserError, unknown_name

KINDS = ("methods", "tasks", "datasets")
_from_files: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}


@cache
def _entry_points(kind: str) -> dict[str, EntryPoint]:
    return {e.name: e for e in entry_points(group=f"prior_bench.{kind}")}


def names(kind: str) -> list[str]:
    """Names of one kind, built-in and third-party; imports nothing."""
    return sorted({*_entry_points(kind), *_from_files[kind]})


def family(name: str) -> tuple[str, str]:
    """A name and what follows its colon: ("timm", "resnet50.a1_in1k") of "timm:resnet50.a1_in1k"."""
    base, _, encoder = name.partition(":")
    return base, encoder


def registered(kind: str, name: str) -> str:
    """The name without what follows a method's colon."""
    return family(name)[0] if kind == "methods" else name


def load(kind: str, name: str) -> Any:
    """The class registered under `name`; an unknown name is a UserError with the nearest names."""
    name = registered(kind, name)
    if name in _from_files[kind]:
        return _from_files[kind][name]
    if name not in _entry_points(kind):
        raise unknown_name(kind.removesuffix("s"), name, names(kind))
    entry = _entry_points(kind)[name]
    try:
        return entry.load()
    except ImportError as error:
        package = entry.dist.name if entry.dist else entry.value
        raise UserError(f"the {kind.removesuffix('s')} {name!r} cannot be imported: {error}",
                        where=entry.value, fix=f"reinstall {package} with its dependencies") from error


def sources(kind: str, name: str) -> Path:
    """The package folder of a plug-in, or its file where it stands alone; found without importing it."""
    name = registered(kind, name)
    if name in _from_files[kind]:
        return sources_of(_from_files[kind][name])
    entry = _entry_points(kind)[name]
    spec = None
    with suppress(ImportError):  # of the package that it is in
        spec = importlib.util.find_spec(entry.module)
    if spec is None or spec.origin is None:
        raise UserError(f"the sources of the {kind.removesuffix('s')} {name!r} were not found", where=entry.value,
                        fix="reinstall the package that has it")
    return _package_or_file(Path(spec.origin))


def sources_of(plugin: type) -> Path:
    """As `sources`, of a class that is at hand."""
    return _package_or_file(Path(inspect.getfile(plugin)))


def _package_or_file(file: Path) -> Path:
    """The folder of the package that a module is in, as what it computes may hang on its neighbours; the module's file
    where it stands alone."""
    return file.parent if (file.parent / "__init__.py").is_file() else file


def import_file(name: str, path: Path) -> ModuleType:
    """The module that a file makes, known from now on under `name`."""
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError("this is no Python file", where=str(path), fix="give a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def add_file(path: Path) -> list[str]:
    """Register the plug-in classes that a Python file defines; returns their names."""
    from prior_bench.data.dataset import Dataset
    from prior_bench.method import Method
    from prior_bench.task import Task

    path = Path(path)
    if not path.is_file():
        raise UserError("the plug-in file does not exist", where=str(path), fix="give --plugin the path of a .py file")
    # Files of one name in several folders are several modules.
    name = f"prior_bench_plugin_{path.stem}_{digest_bytes(str(path.resolve()).encode())[:8]}"
    try:
        module = import_file(name, path)
    except UserError:
        raise
    except Exception as error:  # whatever its author wrote
        raise UserError(f"the plug-in file cannot be imported: {type(error).__name__}: {_message(error)}",
                        where=_place(path, error), fix="mend the file, or leave --plugin out") from error
    added = []
    for value in vars(module).values():
        if not inspect.isclass(value) or value.__module__ != name or inspect.isabstract(value):
            continue
        for kind, base in (("methods", Method), ("tasks", Task), ("datasets", Dataset)):
            if issubclass(value, base):
                _check_class(kind, value, base, path)
                _from_files[kind][value.name] = value
                added.append(value.name)
    if not added:
        raise UserError("the plug-in file defines no method, task or dataset", where=str(path),
                        expected="a subclass of prior_bench.method.Method, prior_bench.task.Task or "
                                 "prior_bench.data.dataset.Dataset")
    return added


def _check_class(kind: str, plugin: type, base: type, path: Path) -> None:
    """Refuse a class that lacks what every plug-in of its kind says of itself, or whose name is no name or taken."""
    said = {name for above in base.__mro__ for name, type_ in vars(above).get("__annotations__", {}).items()
            if str(type_).startswith("ClassVar")}
    if lacking := sorted(name for name in said if not hasattr(plugin, name)):
        raise UserError(f"the class {plugin.__name__} lacks {', '.join(lacking)}", where=str(path),
                        expected=f"class attributes, which prior_bench's {base.__name__} describes")
    name = str(plugin.name)  # type: ignore[attr-defined]
    if not re.fullmatch(r"[\w.-]+", name):
        raise UserError(f"{name!r} cannot be the name of a {kind.removesuffix('s')}", where=str(path),
                        expected="letters, digits, '-', '_' and '.'")
    if name in _entry_points(kind):
        raise UserError(f"the name {name!r} is that of an installed {kind.removesuffix('s')}, whose results would mix "
                        "with those of this one", where=str(path), expected=f"another name of {plugin.__name__}")


def _message(error: Exception) -> str:
    return error.msg if isinstance(error, SyntaxError) else str(error)


def _place(path: Path, error: Exception) -> str:
    """The line of a syntax error, wherever it is, or the last line of the file itself that was reached."""
    if isinstance(error, SyntaxError) and error.lineno:
        return f"{error.filename}, line {error.lineno}"
    reached = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in reached if Path(frame.filename) == path.absolute()]
    return f"{path}, line {lines[-1]}" if lines else str(path)

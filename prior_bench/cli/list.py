"""`prior-bench list`: methods with their recipes, tasks, datasets; one kind alone is listed with what it can do.

The whole list imports no plug-in, so that it is quick.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from prior_bench.cli.common import PluginOption, add_plugins, verb
from prior_bench.errors import UserError, unknown_name


@verb
def list_names(
    kind: Annotated[str | None, typer.Argument(
        help="methods, tasks or datasets, for more on each. [default: all]", show_default=False)] = None,
    plugin: PluginOption = None,
) -> None:
    """List methods, tasks and datasets, built-in and third-party."""
    from prior_bench import plugins

    if kind is not None and kind not in plugins.KINDS:
        raise unknown_name("kind", kind, plugins.KINDS)
    add_plugins(plugin)
    for each in [kind] if kind else plugins.KINDS:
        typer.echo(f"{each}:")
        for name in plugins.names(each):
            more = _described(DESCRIBE[each], name) if kind or each == "methods" else ""
            typer.echo(f"  {name:16} {more}".rstrip())
    if kind is None:
        typer.echo("modes and metrics: prior-bench list tasks; targets: prior-bench list datasets")


def _described(describe: Callable[[str], str], name: str) -> str:
    try:
        return describe(name)
    except UserError as error:  # a plug-in that cannot be read must not hide the others
        return f"unusable: {error.what}"


def _method(name: str) -> str:
    from prior_bench import recipe_files

    file = recipe_files.recipe_file(name)
    note = recipe_files.note(file)
    return f"recipes: {', '.join(recipe_files.read(file))}" + (f"; {note}" if note else "")


def _task(name: str) -> str:
    from prior_bench import plugins

    task = plugins.load("tasks", name)
    parts = {"modes": task.modes, "profiles": task.profiles, "evaluates": [task.evaluates()],
             "main metric": [task.main_metric], "protocol version": [str(task.version)]}
    return "; ".join(filter(None, [task.title, *(f"{name}: {', '.join(values)}" for name, values in parts.items())]))


def _dataset(name: str) -> str:
    from prior_bench import plugins

    kind = plugins.load("datasets", name)
    shown = []
    for target in kind.targets.values():
        no_prompts = ", no prompts" if target.kind in {"multilabel", "exclusive"} and not target.prompts else ""
        on_request = "" if target.default and not target.sanity else ", on request"
        shown.append(f"{target.name} ({target.kind}{no_prompts}{on_request})")
    return "; ".join(filter(None, [kind.title, f"targets: {', '.join(shown)}", kind.citation]))


DESCRIBE: dict[str, Callable[[str], str]] = {"methods": _method, "tasks": _task, "datasets": _dataset}

"""`prior-bench list`: the methods with their recipes, the tasks with their modes, the datasets with their targets."""

from __future__ import annotations

from typing import Annotated

import typer

from prior_bench.cli.common import PluginOption, add_plugins, verb
from prior_bench.errors import UserError, unknown_name


@verb
def list_names(
    kind: Annotated[str | None, typer.Argument(
        help="methods, tasks or datasets. [default: all]", show_default=False)] = None,
    plugin: PluginOption = None,
) -> None:
    """List methods, tasks and datasets, built-in and third-party."""
    from prior_bench import plugins

    if kind is not None and kind not in plugins.KINDS:
        raise unknown_name("kind", kind, plugins.KINDS)
    add_plugins(plugin)
    describe = {"methods": _method, "tasks": _task, "datasets": _dataset}
    for each in [kind] if kind else plugins.KINDS:
        typer.echo(f"{each}:")
        for name in plugins.names(each):
            try:
                typer.echo(f"  {name:16} {describe[each](name)}".rstrip())
            except UserError as error:  # a plug-in that cannot be read must not hide the others
                typer.echo(f"  {name:16} unusable: {error.what}")


def _method(name: str) -> str:
    from prior_bench import recipe_files

    return f"recipes: {', '.join(recipe_files.read(recipe_files.recipe_file(name)))}"


def _task(name: str) -> str:
    from prior_bench import plugins

    task = plugins.load("tasks", name)
    return f"modes: {', '.join(task.modes)}; evaluates {', '.join(sorted(task.kinds))}; main metric {task.main_metric}"


def _dataset(name: str) -> str:
    from prior_bench import plugins

    shown = []
    for target in plugins.load("datasets", name).targets.values():
        on_request = "" if target.default and not target.sanity else ", on request"
        shown.append(f"{target.name} ({target.kind}{on_request})")
    return f"targets: {', '.join(shown)}"

"""`prior-bench check`: the regression gate. Exit code 0: fine; 1: a regression; 2: it cannot be compared."""

from __future__ import annotations

import os
from enum import StrEnum
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prior_bench.cli.common import CacheOption, PluginOption, add_plugins, cache_folder, comma, seeds, verb
from prior_bench.errors import UserError

if TYPE_CHECKING:
    from prior_bench.leaderboard.gate.report import Report


class Gate(StrEnum):
    EXACT = "exact"
    STATISTICAL = "statistical"


@verb
def check(
    gate: Annotated[Gate, typer.Option(
        help="exact: trained checkpoints give the same numbers; statistical: pre-training anew gives numbers like "
             "those of the baseline's seeds.")] = Gate.EXACT,
    method: Annotated[str | None, typer.Option(
        help="Methods, by comma. [default: all of the baseline]", show_default=False)] = None,
    task: Annotated[str | None, typer.Option(help="Tasks, by comma. [default: all]", show_default=False)] = None,
    seed: Annotated[str | None, typer.Option(
        help="Seeds of pre-training in the statistical gate, by comma. [default: the next after the baseline's]",
        show_default=False)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[str, typer.Option(help="fp32, bf16 or auto: bf16 where it is quick.")] = "fp32",
    baseline: Annotated[Path | None, typer.Option(
        help="Folder of the gate's baseline. [default: the one of this version]", show_default=False)] = None,
    update: Annotated[bool, typer.Option("--update", help="Write a new baseline; needs --reason.")] = False,
    reason: Annotated[str | None, typer.Option(
        help="Why the baseline changes; kept in it.", show_default=False)] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML to this file.", show_default=False)] = None,
    json_: Annotated[Path | None, typer.Option("--json", help="Also write JSON to this file.",
                                               show_default=False)] = None,
    cache: CacheOption = None,
    plugin: PluginOption = None,
) -> None:
    """Compare this version's numbers with a baseline: exit code 0 fine, 1 regression, 2 not comparable."""
    if update == (not (reason or "").strip()):
        raise UserError("an update needs a reason" if update else "a reason belongs to an update",
                        where="--update" if update else "--reason", fix='give both: --update --reason "..."')
    if seed is not None and gate is Gate.EXACT:
        raise UserError("the exact gate trains nothing that a seed belongs to", where="--seed", fix="leave it out")
    wanted = tuple(seeds(seed, "--seed")) if seed else ()
    add_plugins(plugin)
    from prior_bench.engine.precision import choose
    from prior_bench.files import check_writable
    from prior_bench.leaderboard.gate.options import Options
    from prior_bench.leaderboard.gate.report import as_json, as_junit, as_text

    home = cache_folder(cache)
    check_writable(home, 1 << 20, "--cache")
    module = import_module(f"prior_bench.leaderboard.gate.{gate.value}")
    options = Options(choose(device, precision), home, tuple(comma(method)), tuple(comma(task)), wanted,
                      baseline, lambda line: typer.echo(line, err=True))
    report: Report = module.update(options, reason) if update else module.check(options)
    if update:
        typer.echo("the new baseline, compared with the old one:\n" if report.findings else "there was no old baseline")
    typer.echo(as_text(report))
    for file, text in ((junit, as_junit), (json_, as_json)):
        if file is not None:
            _write(file, text(report))
    if update:
        return
    if os.environ.get("GITHUB_ACTIONS"):
        _tell_github(report)
    if report.exit_code:
        raise typer.Exit(report.exit_code)


def _write(file: Path, text: str, mode: str = "w") -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(file, mode, encoding="utf-8") as out:
            out.write(text)
    except OSError as error:
        raise UserError(f"cannot write: {error.strerror or error}", where=str(file)) from error


def _tell_github(report: Report) -> None:
    """Annotations on the standard output, and the step's summary in the file that GitHub names."""
    from prior_bench.leaderboard.gate.report import as_annotations, as_markdown

    for line in as_annotations(report):
        typer.echo(line)
    if os.environ.get("GITHUB_STEP_SUMMARY"):
        _write(Path(os.environ["GITHUB_STEP_SUMMARY"]), as_markdown(report), mode="a")

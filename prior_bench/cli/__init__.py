"""The command line: `prior-bench VERB`. One file a verb; heavy imports stand inside the verbs to keep help quick."""

from __future__ import annotations

import typer

from prior_bench import __version__
from prior_bench.cli import (
    check,
    check_method,
    compare,
    data,
    diagnose,
    doctor,
    leaderboard,
    list,
    pretrain,
    run,
    score,
    show,
    submit,
    weights,
)

app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False, no_args_is_help=True,
                  help="Compare vision-language pre-training methods on chest X-rays under one protocol.")
app.command()(run.run)
app.command()(pretrain.pretrain)
app.command()(leaderboard.leaderboard)
app.command()(compare.compare)
app.command()(show.show)
app.command()(score.score)
app.command()(submit.submit)
app.command("list")(list.list_names)
app.command()(diagnose.diagnose)
app.command()(doctor.doctor)
app.command()(check.check)
app.command("check-method")(check_method.check)
app.add_typer(data.app, name="data")
app.add_typer(weights.app, name="weights")


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the `prior-bench` script."""
    app(prog_name="prior-bench")

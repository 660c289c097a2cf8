"""`prior-bench data show` and `prior-bench data verify`: look at a dataset, and check its files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prior_bench.cli.common import CacheOption, DataRootOption, PluginOption, add_plugins, cache_folder, verb
from prior_bench.errors import UserError

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset

PICTURES = (".png", ".jpg", ".jpeg", ".webp")
app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Look at a dataset, and check its files.")


@app.command()
@verb
def show(
    dataset: Annotated[str, typer.Argument(help="A dataset, as in `prior-bench list datasets`.")],
    output: Annotated[Path | None, typer.Option(
        help="The picture to write. [default: DATASET.png]", show_default=False)] = None,
    studies: Annotated[int, typer.Option(help="How many studies.", min=1, max=1000)] = 12,
    seed: Annotated[int, typer.Option(help="Which ones.", min=0)] = 0,
    cache: CacheOption = None,
    data_root: DataRootOption = None,
    plugin: PluginOption = None,
) -> None:
    """Write a contact sheet: images with masks, boxes and report text."""
    add_plugins(plugin)
    path = output or Path(f"{dataset}.png")
    if path.suffix.lower() not in PICTURES or path.is_dir():
        raise UserError("this is no name of a picture", where=str(path),
                        expected=f"a file that ends in {', '.join(PICTURES)}", fix="leave it out, or give such a name")
    opened = _open(dataset, cache, data_root)
    from prior_bench.data.contact_sheet import contact_sheet
    from prior_bench.files import check_writable

    check_writable(path.parent, 1 << 24, "--output")
    contact_sheet(opened, studies, seed).save(path)
    typer.echo(f"wrote {path}")


@app.command()
@verb
def verify(
    dataset: Annotated[str, typer.Argument(help="A dataset, as in `prior-bench list datasets`.")],
    cache: CacheOption = None,
    data_root: DataRootOption = None,
    plugin: PluginOption = None,
) -> None:
    """Open every file, account for every row, look for leaks between splits. Exit code 2 if there are errors."""
    add_plugins(plugin)
    opened = _open(dataset, cache, data_root)
    from prior_bench.data.verify import verify as find

    findings = find(opened)
    for finding in findings:
        where = f" ({finding.where})" if finding.where else ""
        typer.echo(f"{finding.severity}: {finding.what}{where}")
    studies = opened.studies
    images = sum(len(study.images) for study in studies)
    groups = len({study.group for study in studies})
    typer.echo(f"{dataset}: {len(studies)} studies, {images} images, {groups} leak groups, {len(findings)} remarks")
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(2)


def _open(name: str, cache: Path | None, data_root: Path | None) -> Dataset:
    from prior_bench import plugins

    kind = plugins.load("datasets", name)
    opened: Dataset = kind(root=kind.find_root(data_root), cache=cache_folder(cache))
    return opened

"""`prior-bench weights inspect FILE`: which layout a weights file has, what it holds, and what would be loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prior_bench.cli.common import verb

if TYPE_CHECKING:
    from torch import Tensor

UNKNOWN = "architecture not known"
app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Look into weights files.")


@app.callback()
def _weights() -> None:
    """Look into weights files."""


@app.command()
@verb
def inspect(file: Annotated[Path, typer.Argument(help="A file by the authors of a method, or of ours.")]) -> None:
    """Say which layout a weights file has, what it holds, and how it is used."""
    from prior_bench.layouts import image_state, recognise, text_state
    from prior_bench.weights import read_state

    state = read_state(file)
    layout = recognise(state)
    numbers = sum(value.numel() for value in state.values())
    typer.echo(f"{file.name}: {len(state)} tensors, {numbers / 1e6:.1f} million numbers")
    for prefix, count in sorted(Counter(_group(key) for key in state).items()):
        typer.echo(f"  {prefix:40} {count} tensors")
    if layout is None:
        typer.echo("layout: not known; rename the image encoder's keys to torchvision's or timm's")
        return
    image, text = image_state(state, layout), text_state(state, layout)
    typer.echo(f"layout: {layout.name} ({layout.title})" + (f"; {layout.note}" if layout.note else ""))
    typer.echo(f"image encoder: {len(image)} tensors, {_architecture(image)}")
    typer.echo(f"text encoder: {f'{len(text)} tensors' if text else 'none'}")
    typer.echo(f"use: {_use(layout.name, image)}")


def _group(key: str) -> str:
    return ".".join(key.split(".")[:2]) if "." in key else key


def _architecture(image: Mapping[str, Tensor]) -> str:
    """What the names say: a ResNet of torchvision's, a transformer of timm's, or neither."""
    for kernel, blocks, parts, kind in (("conv1.weight", "layer", 2, "ResNet"),
                                        ("patch_embed.proj.weight", "blocks.", 2, "vision transformer")):
        found = {".".join(key.split(".")[:parts]) for key in image if key.startswith(blocks)}
        if kernel in image and found:
            return f"a {kind} with {image[kernel].shape[1]} input channels, {len(found)} blocks"
    return UNKNOWN


def _use(layout: str, image: Mapping[str, Tensor]) -> str:
    if layout == "ours":
        return "prior-bench run --method NAME --weights FOLDER, the folder that holds the file"
    architecture = _architecture(image)
    if architecture == UNKNOWN or layout == "medklip":
        return "not possible here: there is no whole image encoder with known names in it"
    recipe = "resnet50" if "ResNet" in architecture else "vit-base"
    alone = f"prior-bench run --method encoder --recipe {recipe} --set image.weights=FILE"
    method = {"prior-full": "prior", "gloria": "gloria", "mgca": "mgca"}.get(layout)
    if method is None:
        return alone
    variant = "-vit" if method == "mgca" and recipe == "vit-base" else ""
    return f"prior-bench run --method {method} --recipe paper{variant} --weights FILE; the image encoder alone: {alone}"

"""`prior-bench weights inspect FILE`: which layout a weights file has, what it holds, and what would be loaded.

`prior-bench weights convert --trust FILE OUT.safetensors` takes the tensors out of a file that cannot be read safely.
"""

from __future__ import annotations

import os
import re
import shlex
from collections import Counter
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from prior_bench.cli.common import some, verb
from prior_bench.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

UNKNOWN = "architecture not known"
_ARCHITECTURES = (("conv1.weight", r"layer\d+\.\d+\.", "ResNet"),  # first kernel, names of blocks, what it is
                  ("patch_embed.proj.weight", r"blocks\.\d+\.", "vision transformer"),
                  ("patch_embed.proj.weight", r"layers\.\d+\.blocks\.\d+\.", "Swin transformer"),
                  ("conv1.weight", r"transformer\.resblocks\.\d+\.", "CLIP transformer"))
# ResNets by their blocks before layer4, and whether these are bottlenecks.
_RESNETS = {(6, False): "resnet18", (13, False): "resnet34", (13, True): "resnet50", (30, True): "resnet101",
            (47, True): "resnet152"}
_RECIPES = {  # of the reference `encoder`, by layout or else by architecture
    "medklip": "medklip", "ptunifier": "ptunifier", "ResNet": "resnet50", "vision transformer": "vit-base",
    "Swin transformer": "swin-tiny", "CLIP transformer": "clip"}
app = typer.Typer(rich_markup_mode=None, no_args_is_help=True, help="Look into weights files, and convert them.")


@app.callback()
def _weights() -> None:
    """Look into weights files, and convert them."""


@app.command()
@verb
def inspect(file: Annotated[Path, typer.Argument(help="A file by the authors of a method, or ours.")]) -> None:
    """Say which layout a weights file has, what it holds, and how it is used."""
    from prior_bench.weights_file import check_there
    from prior_bench.weights_folder import WEIGHTS

    file = file / WEIGHTS if (file / WEIGHTS).is_file() else file
    check_there(file)  # before torch, which takes seconds
    from prior_bench.state_files import read_state

    _describe(file, read_state(file))


@app.command()
@verb
def convert(
    file: Annotated[Path, typer.Argument(help="A PyTorch file by the authors of a method.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="The file to write; it must not exist.")],
    trust: Annotated[bool, typer.Option("--trust", help="Run whatever code is in the file.")] = False,
) -> None:
    """Unpickle a file that you trust, and write its tensors alone.

    Unpickling runs code that the file brings. Every other command refuses such files.
    """
    if not trust:
        raise UserError("reading this file whole runs any code that is in it", where=str(file),
                        fix="try `prior-bench weights inspect`, which runs nothing; give --trust only where you trust "
                            "whoever made the file")
    _check_place(out)
    from prior_bench.weights_file import check_there

    check_there(file)
    from prior_bench.files import check_writable
    from prior_bench.state_files import read_trusted, write_state

    check_writable(out.parent, file.stat().st_size, "OUT.safetensors")
    state = read_trusted(file)
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    write_state(state, temporary)
    os.replace(temporary, out)
    typer.echo(f"wrote {out}")
    _describe(out, state)


def _check_place(out: Path) -> None:
    """Refuse a place where the converted file cannot be."""
    if out.suffix != ".safetensors":
        raise UserError("the converted file's name does not end in .safetensors", where=str(out),
                        fix=f"give {out.with_suffix('.safetensors') if out.name else 'a name'}")
    if out.exists():
        raise UserError("there is a file of that name already", where=str(out), fix="give another name, or remove it")
    if not out.parent.is_dir():
        raise UserError("the folder for the converted file does not exist", where=str(out.parent),
                        fix=f"make it: mkdir -p {shlex.quote(str(out.parent))}")


def _describe(file: Path, state: Mapping[str, Tensor]) -> None:
    from prior_bench.layouts import image_state, recognise, text_state
    from prior_bench.state_files import check_finite, converting
    from prior_bench.weights import serving

    layout = recognise(state)
    numbers = sum(value.numel() for value in state.values())
    typer.echo(f"{file.name}: {len(state)} tensors, {numbers / 1e6:.1f} million numbers")
    for prefix, count in sorted(Counter(_group(key) for key in state).items()):
        typer.echo(f"  {prefix:40} {some(count, 'tensor')}")
    if layout is None:
        typer.echo("layout: not known; rename the image encoder's keys to torchvision's or timm's")
        return
    with converting(file):
        image, text = image_state(state, layout), text_state(state, layout)
        architecture = _architecture(image)
    typer.echo(f"layout: {layout.name} ({layout.title})" + (f"; {layout.note}" if layout.note else ""))
    typer.echo(f"image encoder: {len(image)} tensors, {architecture}")
    typer.echo(f"text encoder: {some(len(text), 'tensor') if text else 'none'}")
    check_finite(image | text, str(file))
    if layout.name == "ours":
        typer.echo(f"use: prior-bench run {_use_of_ours(file)}")
        return
    name = _resnet(image) if "ResNet" in architecture else None
    for method, theirs in serving(layout, state):
        typer.echo(f"use: prior-bench run --method {method} --recipe {theirs} --weights FILE loads the image "
                   f"encoder, {'the text encoder and the heads' if text else 'without text'}")
    recipe = _RECIPES.get(layout.name) or next((one for kind, one in _RECIPES.items() if kind in architecture), None)
    if recipe == "resnet50" and not any(key.startswith("layer4.") for key in image):
        recipe = "medklip"  # the recipe without it
    if recipe is None:
        typer.echo("use: the image encoder alone: not possible here, its names are not known")
    else:
        _image_alone(recipe, name, state, bool(text))


def _use_of_ours(file: Path) -> str:
    """The options of `run` for weights of ours, as far as their folder tells them."""
    from prior_bench import plugins, weights_folder
    from prior_bench.weights import made_by

    folder = weights_folder.find(file)
    if folder is None:
        return "--method NAME --weights FOLDER, the folder that held the file"
    recipe = made_by(folder.path, plugins.load("methods", folder.method))
    return (f"--method {folder.method} --recipe {recipe or 'NAME --set ... (as they were made)'}"
            f"{f' --seed {folder.seed}' if folder.seed else ''} --weights {folder.path}")


def _image_alone(recipe: str, name: str | None, state: Mapping[str, Tensor], text: bool) -> None:
    """What of the image encoder in a recipe of the reference `encoder`, of timm's `name` where it has another, the file
    fills."""
    from prior_bench.encoders.image import file_coverage
    from prior_bench.recipe_files import recipe_file
    from prior_bench.recipes import Recipe, load

    spec = load(recipe_file("encoder"), recipe, Recipe).image
    named = ""
    if name is not None and name != spec.name:
        spec, named = spec.model_copy(update={"name": name}), f" --set image.name={name}"
    typer.echo(f"use: prior-bench run --method encoder --recipe {recipe}{named} --set image.weights=FILE loads the "
               f"image encoder alone{'; the text encoder in the file is not loaded' if text else ''}")
    coverage = file_coverage(spec, state)
    typer.echo(f"would be {coverage}")
    if coverage.missing or coverage.unexpected:
        typer.echo("and so be refused: name its architecture, one of timm's, with --set image.name=NAME, or take it "
                   f"partly random by --set image.allow_partial=true; {coverage.first()}")


def _resnet(image: Mapping[str, Tensor]) -> str | None:
    """Which of timm's ResNets has as many blocks of that kind, if it is one of the common ones."""
    blocks = {found[0] for key in image if (found := re.match(r"layer[1-3]\.\d+\.", key))}
    return _RESNETS.get((len(blocks), "layer1.0.conv3.weight" in image))


def _group(key: str) -> str:
    """Up to two parts of a key before its tensor's own name, none of them a block's number."""
    parts = takewhile(lambda part: not part.isdigit(), key.split(".")[:-1][:2])
    return ".".join(parts) or key


def _architecture(image: Mapping[str, Tensor]) -> str:
    """What the names say; UNKNOWN where they are neither torchvision's, timm's nor CLIP's."""
    for kernel, name, kind in _ARCHITECTURES:
        blocks = {found[0] for key in image if (found := re.match(name, key))}
        if kernel in image and blocks:
            return f"a {kind} with {image[kernel].shape[1]} input channels, {len(blocks)} blocks"
    return UNKNOWN

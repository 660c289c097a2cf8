"""Weights: our own folders (safetensors, recipe, tokenizer), files by methods' authors, and how much they cover.

What may stand in a file of others, and how it is read, is in state_files.py.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from prior_bench import plugins, recipe_files, recipes
from prior_bench.digests import digest_array, digest_json
from prior_bench.errors import UserError
from prior_bench.files import replace_folder
from prior_bench.layouts import FIRST_KERNELS, Layout, image_state, recognise
from prior_bench.state_files import check_finite, converting, read_state, write_state
from prior_bench.weights_folder import META, RECIPE, TOKENIZER, WEIGHTS, read_json

if TYPE_CHECKING:
    from prior_bench.method import Method
    from prior_bench.recipes import Recipe

SCHEMA = 1
IMAGE, TEXT, HEADS = "image encoder", "text encoder", "heads"
PARTS = {"image_encoder": IMAGE, "text_encoder": TEXT}  # by first name of a key; the rest are heads


# ------------------------------------------------------------------------------------------ coverage


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a model a file fills, by part (image encoder, text encoder, heads), in keys.

    `missing` are the model's keys that the file lacks or has in another shape; `unexpected` are the file's keys without
    a place in the model.
    """

    loaded: Mapping[str, int]
    expected: Mapping[str, int]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def share(self, part: str) -> float:
        """Share of the part's keys that were loaded, 0..1; 1 for a part that the model does not have."""
        expected = self.expected.get(part, 0)
        return self.loaded.get(part, 0) / expected if expected else 1.0

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {self.loaded.get(part, 0)}/{n} keys ({_percent(self.share(part))} %)"
                          for part, n in self.expected.items())
        return f"loaded {parts}; {len(self.missing)} missing, {len(self.unexpected)} unexpected"

    def first(self) -> str:
        """The first keys on each side that have no counterpart."""
        return (f"first missing: {', '.join(self.missing[:3]) or 'none'}; "
                f"first unexpected: {', '.join(self.unexpected[:3]) or 'none'}")


def _percent(share: float) -> str:
    """100 for all alone, 0 for none alone."""
    shown = f"{100 * share:.0f}"
    return shown if share in (0, 1) or shown not in ("0", "100") else f"{min(max(100 * share, 0.1), 99.9):.1f}"


def _size(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "one number"


def part_of(key: str) -> str:
    return PARTS.get(key.partition(".")[0], HEADS)


def coverage_of(module: nn.Module, state: Mapping[str, Tensor], whole: str | None = None) -> Coverage:
    """What loading `state` into `module` would fill; `whole` names a module that is one part."""
    own = module.state_dict()
    loaded: dict[str, int] = {}
    expected: dict[str, int] = {}
    missing = []
    for key, value in own.items():
        part = whole or part_of(key)
        expected[part] = expected.get(part, 0) + 1
        if key in state and state[key].shape == value.shape:
            loaded[part] = loaded.get(part, 0) + 1
        else:
            has = f" (it is {_size(state[key])} there, {_size(value)} here)" if key in state else ""
            missing.append(key + has)
    return Coverage(loaded, expected, tuple(missing), tuple(key for key in state if key not in own))


def fit_state(module: nn.Module, state: Mapping[str, Tensor], whole: str | None = None) -> Coverage:
    """Load the keys that fit by name and shape; says which did not."""
    coverage = coverage_of(module, state, whole)
    own = module.state_dict()
    module.load_state_dict({k: v for k, v in state.items() if k in own and v.shape == own[k].shape}, strict=False)
    return coverage


def serving(layout: Layout | None, state: Mapping[str, Tensor]) -> list[tuple[str, str]]:
    """The methods, each with its recipe, that load whole files of a layout, of images with as many channels."""
    if layout is None:
        return []
    kernel = next((value for key, value in image_state(state, layout).items() if key in FIRST_KERNELS), None)
    found = []
    for name in plugins.names("methods"):
        file = recipe_files.recipe_file(name)
        recipe = recipe_files.released(file).get(layout.name)
        channels = recipe_files.resolve(file, recipe).get("image", {}).get("channels") if recipe else None
        if recipe and (kernel is None or channels == kernel.shape[1]):
            found.append((name, recipe))
    return found


def load_checkpoint(method: Method, file: Path, allow_partial: bool = False) -> Coverage:
    """Fill a method from a weights file of ours or, by `Method.adapt_checkpoint`, of its authors.

    Refuses a file that does not fill the whole image encoder, or fills a part of the text encoder only, unless
    `allow_partial`. A file without a text encoder makes the method vision-only (`has_text` False).
    """
    file = Path(file)
    state = read_state(file / WEIGHTS if file.is_dir() else file)
    layout, theirs = recognise(state), state
    with converting(file):
        state = method.adapt_checkpoint(state)
    coverage = coverage_of(method, state)
    image, text = coverage.share(IMAGE), coverage.share(TEXT)
    if not allow_partial and (image < 1 or 0 < text < 1):
        serves = [f"--method {name} --recipe {recipe}" for name, recipe in serving(layout, theirs)]
        recipe = (f"{' or '.join(serves)} serves files of {layout.title}" if layout and serves else
                  "choose the recipe that the file was made with")
        raise UserError(f"the file does not fit the {method.name} model: {coverage}", where=str(file),
                        expected="every weight of the image encoder, and of the text encoder if there is one",
                        fix=f"{recipe}; {coverage.first()}; or take it partly random by --allow-partial-weights")
    check_finite({key: value for key, value in state.items() if key not in coverage.unexpected}, str(file))
    fit_state(method, state)
    if text == 0 and method.has_text:
        method.has_text = False
    return coverage


# ----------------------------------------------------------------------------------------- our folders


def save_weights(folder: Path, method: Method, recipe: Recipe, provenance: Mapping[str, Any]) -> Path:
    """Write a method's weights folder in one step: it is there complete, or not at all."""
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_state(method.state_dict(), temporary / WEIGHTS)
    (temporary / RECIPE).write_text(json.dumps(recipe.model_dump(mode="json"), indent=2), encoding="utf-8")
    meta = {"schema": SCHEMA, "method": method.name, "has_text": method.has_text,
            "image_input": asdict(method.image_input), "parameters": sum(p.numel() for p in method.parameters()),
            "provenance": dict(provenance)}
    (temporary / META).write_text(json.dumps(meta, indent=2, default=str), encoding="utf-8")
    (temporary / TOKENIZER).mkdir()  # left empty by a method without a text encoder
    method.save_tokenizer(temporary / TOKENIZER)
    for path in temporary.rglob("*"):
        if path.is_file():
            with open(path, "rb") as f:
                os.fsync(f.fileno())
    replace_folder(temporary, folder)
    return folder


def load_method(folder: Path) -> Method:
    """The method in a weights folder of ours, in eval mode."""
    folder = Path(folder)
    meta = read_json(folder / META)
    cls = plugins.load("methods", meta["method"])
    recipe = read_recipe(folder, cls)
    recipe = recipe.model_copy(update={"image": recipe.image.model_copy(update={"weights": "random"})})
    method: Method = new_method(cls, recipe, seed=0, tokenizer=folder / TOKENIZER)
    method.has_text = meta["has_text"]
    state = read_state(folder / WEIGHTS)
    coverage = fit_state(method, state)
    if coverage.missing or coverage.unexpected:
        raise UserError(f"the weights do not fit this version of {method.name}: {coverage}", where=str(folder),
                        expected=f"keys as written by version {SCHEMA} of the format",
                        fix=f"pre-train again; first missing: {coverage.missing[:3]}")
    return method.eval()


def read_recipe(folder: Path, cls: type[Method]) -> Recipe:
    """The recipe that the weights in a folder of ours were made by."""
    try:
        return cls.recipe_class.model_validate(read_json(folder / RECIPE))
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, e["loc"])) for e in error.errors())
        raise UserError(f"the recipe of the weights is not one of this version of {cls.name}: {fields}",
                        where=str(folder / RECIPE), fix="pre-train again, or use the version that made the weights"
                        ) from error


def made_by(folder: Path, cls: type[Method]) -> str | None:
    """The name of the method's recipe that the weights in a folder of ours were made by, if one says the same."""
    theirs, file = read_recipe(folder, cls), recipe_files.recipe_file(cls.name)
    return next((name for name in recipes.names(file)
                 if not recipes.differences(theirs, recipes.load(file, name, cls.recipe_class))), None)


def new_method(cls: type[Method], recipe: Recipe, seed: int, texts: Iterable[str] | None = None,
               tokenizer: Path | None = None) -> Method:
    """A freshly initialised method; its random weights hang on `seed` alone, and the global random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls.from_recipe(recipe, texts, tokenizer).eval()


# ------------------------------------------------------------------------------------------- digests


def state_digest(method: nn.Module) -> str:
    """Digest of a method's weights in memory, for references that have no file."""

    def array(value: Tensor) -> Any:
        value = value.detach().cpu()
        return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()  # which numpy lacks

    return digest_json([[key, digest_array(array(value))] for key, value in method.state_dict().items()])

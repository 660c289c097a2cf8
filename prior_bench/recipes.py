"""Recipes: typed settings of a method's weights, read from the method's recipe.yaml. A recipe ends at the weights.

A recipe file holds several recipes by name (`paper`, `small`, ...); `extends:` takes another one's values first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prior_bench import recipe_files
from prior_bench.digests import digest_json
from prior_bench.errors import UserError, unknown_name


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def later(default: Any, **constraints: Any) -> Any:
    """The field of a setting that came later: at its default a recipe keeps the digest that it had without it."""
    return Field(default, exclude_if=lambda value: value == default, **constraints)


class ImageEncoderSpec(Strict):
    """A timm image encoder by name. `weights`: "random", "hub" (timm's pretrained weights) or a local file.

    `first_layers` keeps that many of timm's levels of features and leaves the later ones out: blocks of a transformer,
    stages of a convolutional network (of a ResNet the stem is the first). `allow_partial` takes a local file that
    leaves a part of the encoder random, or has more than it.
    """

    name: str = "resnet18"
    weights: str = "random"
    channels: Literal[1, 3] = 1
    size: int = Field(128, gt=0)
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)
    fit: Literal["squash", "letterbox", "crop"] = "squash"
    first_layers: int | None = later(None, gt=0)
    allow_partial: bool = later(False)


class TextEncoderSpec(Strict):
    """A transformers text encoder: `name` is a hub name or a local folder, or "small-bert", trained from scratch with a
    WordPiece vocabulary built from the training reports."""

    name: str = "small-bert"
    max_tokens: int = 128
    plain_words: bool = later(False)  # letters and digits alone, in lower case, as GLoRIA's authors read reports
    first_layers: int | None = None  # of a hub model, the later ones left out
    layers: int = 4  # small-bert only, as the following
    width: int = 256
    heads: int = 4
    vocabulary: int = 2000


class Stage(Strict):
    """One stage of a schedule: its share of all steps, its peak rate, and its own warm-up as a share of its steps."""

    share: float = Field(gt=0, le=1)
    lr: float = Field(gt=0)
    warmup: float = Field(0.05, ge=0, lt=1)


class Training(Strict):
    """How to optimise: everything that the weights depend on and that is not the method's own."""

    batch: int = Field(gt=1)  # images per step on one process; it holds the negatives, so it is never changed silently
    epochs: float = Field(gt=0)
    stages: tuple[Stage, ...]
    image_rate: float = later(1.0, gt=0)  # times the stages' rates, for the image encoder's parameters
    weight_decay: float = 1e-6
    betas: tuple[float, float] = later((0.9, 0.999))  # of AdamW
    clip: float | None = None  # gradient norm
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    workers: int = 0

    def stage_at(self, progress: float) -> int:
        """Index of the stage that runs at `progress`, the share of all steps that are done, in [0, 1)."""
        done, stage = 0.0, -1
        for index, entry in enumerate(self.stages):
            if progress >= done - 1e-9:
                stage = index
            done += entry.share
        return stage


class Recipe(Strict):
    """What every recipe states; a method's own recipe adds its objective's settings."""

    image: ImageEncoderSpec = ImageEncoderSpec()
    text: TextEncoderSpec | None = TextEncoderSpec()
    width: int = 256  # joint width
    training: Training | None = None  # None: nothing is trained (reference rows)

    def digest(self) -> str:
        return digest_json(self.model_dump(mode="json"))


R = TypeVar("R", bound=Recipe)


def names(file: Path) -> list[str]:
    """Names of the recipes in a recipe file."""
    return list(recipe_files.read(file))


def load(file: Path, name: str, model: type[R], overrides: Mapping[str, Any] | None = None) -> R:
    """One recipe of a file, validated; `overrides` maps dotted keys ("training.batch") to values."""
    try:
        return model.model_validate(recipe_files.resolve(file, name, overrides))
    except ValidationError as error:
        raise _not_valid(file, name, model, overrides or {}, error) from error


def differences(theirs: Recipe, ours: Recipe) -> list[str]:
    """In what two recipes differ, a text for each setting. (One at its default may be missing from a dump.)"""
    a, b = (dict(_flat(recipe.model_dump(mode="json"))) for recipe in (theirs, ours))
    return [f"{key} is {a.get(key, 'the default')} there and {b.get(key, 'the default')} here"
            for key in {**a, **b} if a.get(key) != b.get(key)]


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings under dotted names."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, value


def _not_valid(file: Path, name: str, model: type[Recipe], overrides: Mapping[str, Any],
               error: ValidationError) -> UserError:
    """What is wrong with a recipe, and who said it: `--set` or the file. A name that is not known comes first."""
    def where(key: str) -> str:
        said = any(f"{one}.".startswith(f"{key}.") or f"{key}.".startswith(f"{one}.") for one in overrides)
        return "--set" if said else str(file)

    found = {".".join(map(str, e["loc"])): e for e in error.errors()}
    for key, e in found.items():
        if e["type"] == "extra_forbidden":
            section, last = ".".join(part for part in e["loc"][:-1] if isinstance(part, str)), key.rpartition(".")[2]
            known = [one for one in settings(model) if one.rpartition(".")[0] == section or one.endswith(f".{last}")]
            return unknown_name("setting", key, known, where(key), see=f"the recipes in {file}")
    problems = "; ".join(f"{key}: {e['msg']}" for key, e in found.items())
    return UserError(f"the recipe {name!r} is not valid: {problems}", where=", ".join(dict.fromkeys(map(where, found))),
                     expected=f"the fields of {model.__name__}")


def settings(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """The dotted names of all settings of a recipe class, sections too."""
    for name, field in model.model_fields.items():
        yield above + name
        for part in _classes(field.annotation):
            yield from settings(part, f"{above}{name}.")


def _classes(annotation: Any) -> list[type[BaseModel]]:
    """The models inside an annotation, as in `tuple[Stage, ...]` or `Training | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in get_args(annotation) for found in _classes(part)]

"""Recipes: typed settings of a method's weights, read from the method's recipe.yaml. A recipe ends at the weights.

A recipe file holds several recipes by name (`paper`, `small`, ...); `extends:` takes another one's values first.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from prior_bench.digests import digest_json
from prior_bench.errors import UserError, unknown_name


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageEncoderSpec(Strict):
    """A timm image encoder by name. `weights`: "random", "hub" (timm's pretrained weights) or a local file."""

    name: str = "resnet18"
    weights: str = "random"
    channels: Literal[1, 3] = 1
    size: int = Field(128, multiple_of=8)
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)
    fit: Literal["squash", "letterbox", "crop"] = "squash"
    pooling: Literal["attention", "mean"] = "attention"


class TextEncoderSpec(Strict):
    """A transformers text encoder: `name` is a hub name or a local folder, or "small-bert", trained from scratch with a
    WordPiece vocabulary built from the training reports."""

    name: str = "small-bert"
    max_tokens: int = 128
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
    weight_decay: float = 1e-6
    clip: float | None = None  # gradient norm
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    workers: int = 0


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
    return list(_read(file))


def load(file: Path, name: str, model: type[R], overrides: Mapping[str, Any] | None = None) -> R:
    """One recipe of a file, validated; `overrides` maps dotted keys ("training.batch") to values."""
    known = _read(file)
    if name not in known:
        raise unknown_name("recipe", name, known, where=str(file))
    values = _extended(known, name, file)
    for key, value in (overrides or {}).items():
        _set(values, key.split("."), value)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"the recipe {name!r} is not valid: {problems}", where=str(file),
                        expected=f"the fields of {model.__name__}") from error


def _read(file: Path) -> dict[str, dict[str, Any]]:
    if not file.is_file():
        raise UserError("the recipe file does not exist", where=str(file))
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise UserError(f"the recipe file is not valid YAML: {error}", where=str(file)) from error
    if not isinstance(content, dict):
        raise UserError("the recipe file holds no recipes", where=str(file), expected="a mapping from name to recipe")
    return content


def _extended(known: dict[str, dict[str, Any]], name: str, file: Path) -> dict[str, Any]:
    values = dict(known[name])
    base = values.pop("extends", None)
    if base is None:
        return _merge({}, values)
    if base not in known:
        raise unknown_name("recipe", base, known, where=f"{file}, extends of {name}")
    return _merge(_extended(known, base, file), values)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        values = values.setdefault(part, {})
    values[path[-1]] = value

"""Reads recipe files as plain values: which recipes there are, `extends:`, overrides, and what stands beside them:
`note:` and `released:`.

Planning uses it without pydantic, and `recipes.load` validates what it returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prior_bench import plugins
from prior_bench.errors import UserError, unknown_name

_BESIDE = ("note", "released")  # names that no recipe can have


def recipe_file(method: str) -> Path:
    """The recipe.yaml of a method: in its folder, or beside its file."""
    source = plugins.sources("methods", method)
    return (source if source.is_dir() else source.parent) / "recipe.yaml"


def read(file: Path) -> dict[str, dict[str, Any]]:
    """All recipes of a file by name, as written."""
    content = {name: values for name, values in _content(file).items() if name not in _BESIDE}
    if not all(isinstance(values, dict) for values in content.values()):
        raise UserError("the recipe file holds no recipes", where=str(file), expected="a mapping from name to recipe")
    return content


def note(file: Path) -> str:
    """What a reader of the method's numbers must know, shown wherever they are; empty for most methods."""
    return str(_content(file).get("note", ""))


def released(file: Path) -> dict[str, str]:
    """Which of the method's recipes loads whole files of which layout: {name in `layouts.LAYOUTS`: recipe}."""
    return dict(_content(file).get("released", {}))


def serves_a_file(file: Path, name: str) -> bool:
    """Whether a recipe without training is for weights from a file: `released:` names it, or others of it train."""
    return name in released(file).values() or any(resolve(file, other).get("training") for other in read(file))


def _content(file: Path) -> dict[str, Any]:
    import yaml

    if not file.is_file():
        raise UserError("the recipe file does not exist", where=str(file))
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"the recipe file is not valid YAML: {error}", where=str(file)) from error
    if not isinstance(content, dict):
        raise UserError("the recipe file holds no recipes", where=str(file), expected="a mapping from name to recipe")
    return content


def resolve(file: Path, name: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """One recipe's values with `extends` followed; `overrides` maps dotted keys ("training.batch") to values."""
    values = _extended(read(file), name, file, ())
    for key, value in (overrides or {}).items():
        _set(values, key.split("."), value)
    return values


def _extended(known: dict[str, dict[str, Any]], name: str, file: Path, above: tuple[str, ...]) -> dict[str, Any]:
    where = f"{file}, extends of {above[-1]}" if above else str(file)
    if name not in known:
        raise unknown_name("recipe", name, known, where=where)
    if name in above:
        raise UserError(f"the recipe {name!r} extends itself", where=where)
    values = dict(known[name])
    base = values.pop("extends", None)
    return _merge({} if base is None else _extended(known, base, file, (*above, name)), values)


def _merge(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping):
            below = merged.get(key)
            merged[key] = _merge(below if isinstance(below, dict) else {}, value)
        else:
            merged[key] = value
    return merged


def _set(values: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        below = values.get(part)
        values[part] = below if isinstance(below, dict) else {}
        values = values[part]
    values[path[-1]] = value

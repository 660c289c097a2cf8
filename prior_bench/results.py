"""The result store: one JSON and one Parquet file a cell; a kill at any moment leaves all of it or nothing.

Predictions are written first and the JSON last, so the JSON is the commit point: where it lies, the cell is done. Each
file is written in one step (files.py). The schema is strict: unknown or missing fields, wrong types, NaN and infinities
are refused, on writing and on reading.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeVar, get_args, get_origin, get_type_hints

from prior_bench.digests import digest_file
from prior_bench.errors import UserError
from prior_bench.files import write_file
from prior_bench.types import Cell, Result

if TYPE_CHECKING:
    from filelock import BaseFileLock

    from prior_bench.task import Predictions

T = TypeVar("T")

SCHEMA = 1
RUN_AGAIN = "the `prior-bench run` that made it makes it anew; or delete the file"
LOCKS = ".locks"
LEADERBOARD_JSON = "leaderboard.json"  # may lie among the results, and is none
_CELL_NAME = re.compile("_[0-9a-f]{12}$")  # how the name of a cell ends, by its digest
_EXTRA = b"prior_bench_extra"
# What tables, remarks and plots read of a provenance; the rest of it is only shown.
_READ_BACK: dict[str, Any] = {"finished": str, "method": dict[str, str], "notes": tuple[str, ...],
                              "excluded_images": tuple[str, ...], "weights": dict[str, Any], "recipe": dict[str, Any]}


# ------------------------------------------------------------------------------------------ locations


def result_path(folder: Path, cell: Cell) -> Path:
    return folder / f"{cell.name}.json"


def predictions_path(folder: Path, cell: Cell) -> Path:
    return folder / f"{cell.name}.parquet"


def result_files(folder: Path) -> list[Path]:
    """The results' JSON files, sorted by name: those that are called as cells are."""
    if not folder.is_dir():
        raise UserError(f"the results folder {'is a file' if folder.exists() else 'does not exist'}", where=str(folder),
                        expected="a folder that `prior-bench run` wrote (its --output)",
                        fix="name it: RESULTS, or --results")
    return sorted(path for path in folder.glob("*.json") if _CELL_NAME.search(path.stem))


def ignored(folder: Path) -> list[str]:
    """What is to be said of JSON files among the results that are none by their names."""
    return [f"{path} is ignored: its name is not that of a cell" for path in sorted(folder.glob("*.json"))
            if path.name != LEADERBOARD_JSON and not _CELL_NAME.search(path.stem)]


def is_done(folder: Path, cell: Cell) -> bool:
    """Whether the cell's result is there and can be read, and its predictions are there where it has some."""
    path = result_path(folder, cell)
    try:
        return path.exists() and (read_result(path).status == "not_applicable" or
                                  predictions_path(folder, cell).exists())
    except UserError:  # a file that was cut or edited: the cell is computed anew
        return False


def cell_lock(folder: Path, cell: Cell) -> BaseFileLock:
    """The lock under which a cell is computed. The system releases it when its process dies, however it dies."""
    from filelock import FileLock

    (folder / LOCKS).mkdir(parents=True, exist_ok=True)
    return FileLock(folder / LOCKS / f"{cell.name}.lock")


# -------------------------------------------------------------------------------------------- writing


def write_result(folder: Path, result: Result, predictions: Predictions | None) -> Path:
    """Store a cell's predictions and then its result; returns the JSON's path.

    `provenance["predictions"]` becomes the digest of the Parquet file, so that a pair that does not belong together is
    found. A cell that is not applicable has no predictions.
    """
    if (predictions is None) != (result.status == "not_applicable"):
        raise ValueError("a result has predictions exactly when its status is 'done'")
    folder.mkdir(parents=True, exist_ok=True)
    result_path(folder, result.cell).unlink(missing_ok=True)  # of a cell whose predictions are gone
    provenance = dict(result.provenance)
    if predictions is not None:
        path = predictions_path(folder, result.cell)
        write_file(path, lambda file: _write_table(file, predictions), locked=True)
        provenance["predictions"] = digest_file(path)
    stored = replace(result, details=jsonable(result.details), provenance=jsonable(provenance))
    text = json.dumps(asdict(stored), indent=1, allow_nan=False, ensure_ascii=False) + "\n"
    _check_provenance(_parse(Result, json.loads(text), "result"))  # what could not be read back is never written
    path = result_path(folder, result.cell)
    write_file(path, lambda file: file.write(text.encode()), locked=True)
    return path


def jsonable(value: Any) -> Any:
    """The value in JSON's types: numpy to Python, tuples to lists, paths to strings, NaN and infinities to null."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return jsonable(asdict(value))
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return jsonable(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be stored in a result")


def _write_table(file: BinaryIO, predictions: Predictions) -> None:
    import pyarrow.parquet

    extra = json.dumps(jsonable(predictions.extra), allow_nan=False, sort_keys=True)
    table = predictions.table.replace_schema_metadata({_EXTRA: extra.encode()})
    pyarrow.parquet.write_table(table, file, compression="zstd")


# -------------------------------------------------------------------------------------------- reading


def read_results(folder: Path) -> Iterator[Result]:
    """All results of a folder, in the order of their names."""
    yield from map(read_result, result_files(folder))


def readable(folder: Path) -> tuple[list[Result], dict[Path, str]]:
    """The results of a folder that can be read, and what is wrong with the files of the others."""
    found, broken = [], {}
    for path in some_result_files(folder):
        try:
            found.append(read_result(path))
        except UserError as error:
            broken[path] = error.what
    return found, broken


def some_result_files(folder: Path) -> list[Path]:
    """The results' JSON files of a folder that has any."""
    found = result_files(folder)
    if not found:
        raise UserError("there are no results", where=str(folder), expected="a folder that `prior-bench run` wrote",
                        fix="name it: RESULTS, or --results")
    return found


def some_results(folder: Path) -> list[Result]:
    """All results of a folder that has any."""
    return list(map(read_result, some_result_files(folder)))


def read_result(path: Path) -> Result:
    """One result, strictly: a field that the schema does not know, lacks, or has in another type is a UserError."""
    try:
        result = parse_json(Result, path.read_text(encoding="utf-8"), SCHEMA)
        _check_provenance(result)
        name = result.cell.name
    except ValueError as error:
        raise UserError(f"not a result: {error}", where=str(path), expected=f"a result of schema version {SCHEMA}",
                        fix=RUN_AGAIN) from error
    if path.stem != name:
        raise UserError("the result's file name does not match its cell", where=str(path),
                        expected=f"{name}.json", fix=RUN_AGAIN)
    return result


def parse_json(kind: type[T], text: str, *versions: int) -> T:
    """A dataclass with a `schema` from JSON, as strictly as `read_result`; raises ValueError that names the field."""
    try:
        content = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_integer)
        if "\\u" in text:  # may write half a character, with which no table could be written
            json.dumps(content, ensure_ascii=False).encode()
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    found = content.get("schema") if isinstance(content, dict) else None
    if found not in versions:
        raise ValueError(f"schema: version {found!r}, this program reads version {' and '.join(map(str, versions))}")
    parsed: T = _parse(kind, content, "")
    return parsed


def finished(result: Result) -> datetime:
    """When a result was made, as its provenance says; long ago where it does not."""
    time = datetime.fromisoformat(result.provenance.get("finished", "0001-01-01"))
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _check_provenance(result: Result) -> None:
    for name, kind in _READ_BACK.items():
        if name in result.provenance:
            _parse(kind, result.provenance[name], f"provenance.{name}")
    try:
        finished(result)
    except ValueError as error:
        raise ValueError(f"provenance.finished: {result.provenance['finished']!r}, expected a time as in "
                         "2026-01-31T12:00:00+00:00") from error


def check_predictions(folder: Path, result: Result) -> Path:
    """The Parquet file of a result with status `done`, after a look at its digest."""
    path = predictions_path(folder, result.cell)
    fix = f"delete {result_path(folder, result.cell).name} and run the cell again"
    if not path.is_file():
        raise UserError("the predictions of a result are missing", where=str(path), fix=fix)
    if digest_file(path) != result.provenance.get("predictions"):
        raise UserError("the predictions are not those of the result (another digest)", where=str(path), fix=fix)
    return path


def read_predictions(folder: Path, result: Result) -> Predictions:
    """The predictions of a result with status `done`."""
    import pyarrow.parquet

    from prior_bench.task import Predictions

    table = pyarrow.parquet.read_table(check_predictions(folder, result))
    extra = json.loads((table.schema.metadata or {}).get(_EXTRA, b"{}"))
    return Predictions(table.replace_schema_metadata(None), extra)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text if len(text) < 20 else text[:20] + '...'} is not allowed")
    return value


def _integer(text: str) -> int:
    """Metrics and plots make floats of integers."""
    _finite(text)
    return int(text)


def _parse(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type `kind`; raises ValueError that names the field."""
    if is_dataclass(kind):
        return _parse_dataclass(kind, value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is UnionType:
        kinds = [NoneType] if value is None else [k for k in arguments if k is not NoneType]
        return _parse(kinds[0], value, where)
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{where}: {value!r}, expected one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        items = arguments[:1] * len(value) if isinstance(value, list) and arguments[-1] is ... else arguments
        _check(isinstance(value, list) and len(value) == len(items), "a list", value, where)
        return tuple(_parse(k, item, f"{where}[{i}]") for i, (k, item) in enumerate(zip(items, value, strict=True)))
    if origin is dict:
        _check(isinstance(value, dict), "an object", value, where)
        return {key: _parse(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is Any:
        return value
    if kind is float:
        _check(isinstance(value, (int, float)) and not isinstance(value, bool), "a number", value, where)
        return float(value)
    _check(type(value) is kind, kind.__name__, value, where)
    return value


def _parse_dataclass(kind: Any, value: Any, where: str) -> Any:
    _check(isinstance(value, dict), "an object", value, where or "file")
    hints, required = _fields(kind)
    if unknown := sorted(set(value) - hints.keys()):
        raise ValueError(f"unknown field {_join(where, unknown[0])!r}")
    if missing := sorted(required - set(value)):
        raise ValueError(f"missing field {_join(where, missing[0])!r}")
    return kind(**{name: _parse(hints[name], item, _join(where, name)) for name, item in value.items()})


@cache
def _fields(kind: Any) -> tuple[dict[str, Any], set[str]]:
    """The types of a dataclass's fields by name, and the names of those without a default. Kept, as resolving types
    takes longer than all else in reading a result."""
    hints = get_type_hints(kind)
    return ({f.name: hints[f.name] for f in fields(kind)},
            {f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING})


def _check(condition: bool, expected: str, value: Any, where: str) -> None:
    if not condition:
        raise ValueError(f"{where}: {value!r}, expected {expected}")


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name

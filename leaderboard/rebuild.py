"""Rebuilds what a result says from its predictions: the metrics, and their bootstrap replicates over shared draws.

The draws of a dataset are made from the union of the leak groups in all its results, so they are the same for all
methods, tasks, fractions and seeds in a folder. What was rebuilt is kept under a digest of predictions, sources, draws.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import prior_bench
from prior_bench import plugins
from prior_bench.digests import digest_json, digest_sources
from prior_bench.errors import UserError
from prior_bench.files import not_writable, write_file
from prior_bench.leaderboard import installed
from prior_bench.results import check_predictions, read_predictions
from prior_bench.statistics import group_draws
from prior_bench.task import Task
from prior_bench.types import Metric, Result

_PACKAGE = Path(prior_bench.__file__).parent
TOLERANCE = 1e-9

Tell = Callable[[int, int], None]  # how many results are rebuilt, and of how many


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A result with its metrics by name and their replicates {metric: (draws,) float64, NaN where undefined}."""

    result: Result
    metrics: dict[str, Metric]
    replicates: dict[str, np.ndarray]

    def differing(self) -> list[str]:
        """Names of metrics whose stored value, or a count beside it, is not the rebuilt one."""
        return [stored.name for stored in self.result.metrics if not _same(stored, self.metrics.get(stored.name))]


def rebuild(folder: Path, found: Sequence[Result], memo: Path, wanted: Sequence[Result] | None = None,
            tell: Tell = lambda done, whole: None) -> list[Rebuilt]:
    """Rebuild the results with status `done` of a folder, in their order.

    Args:
        found: the results whose groups make the draws.
        wanted: those of them to rebuild, if not all.
        tell: called after each result.
    """
    done = [result for result in found if result.status == "done"]
    groups: dict[str, set[str]] = defaultdict(set)
    for result in done:
        groups[result.cell.dataset].update(groups_of(folder, result))
    draws = {dataset: group_draws(sorted(names)) for dataset, names in groups.items()}
    keys = {dataset: digest_json(sorted(names)) for dataset, names in groups.items()}
    chosen = done if wanted is None else [result for result in wanted if result.status == "done"]
    rebuilt = []
    for result in chosen:
        dataset = result.cell.dataset
        rebuilt.append(_rebuild(folder, result, draws[dataset], keys[dataset], memo))
        tell(len(rebuilt), len(chosen))
    return rebuilt


def problems(folder: Path, result: Result) -> list[str]:
    """Why the stored numbers of a result cannot be believed; empty where its predictions give all of them."""
    if result.status == "not_applicable":
        return [f"{metric.name} is stored, though the cell is not applicable" for metric in result.metrics]
    try:
        again = {metric.name: metric for metric in _score(folder, result)}
    except UserError as error:
        return [error.what]
    return [f"{stored.name} is stored as {_shown(stored)}, the predictions give {_shown(again.get(stored.name))}"
            for stored in result.metrics if not _same(stored, again.get(stored.name))]


def remarks(result: Result, rebuilt: Rebuilt | None) -> Iterator[str]:
    """What a reader of a cell's numbers should be warned of. `rebuilt` is None where the cell is not applicable."""
    provenance = result.provenance
    for name in rebuilt.differing() if rebuilt else ():
        yield f"the stored {name} differs from what the predictions give, which is shown"
    if str(provenance.get("commit")).endswith("+changes"):
        yield "computed by a working tree with changes that are in no commit"
    if excluded := provenance.get("excluded_images"):
        yield f"{len(excluded)} images were left out because they could not be read"
    if note := provenance.get("method", {}).get("note"):
        yield note
    yield from provenance.get("notes", ())


def _score(folder: Path, result: Result) -> Sequence[Metric]:
    """The metrics, from the predictions and no memory; a UserError where they cannot be had."""
    task = _task(result)
    with _scoring(result):
        return tuple(task.score(read_predictions(folder, result)))


def check_installed(result: Result) -> None:
    if not installed.has_task(result.cell.task):
        raise UserError(f"it cannot be recomputed: the task {result.cell.task!r} is not installed",
                        where=result.cell.name, fix=installed.HOW_TO_INSTALL)


def _task(result: Result) -> Task:
    check_installed(result)
    task: Task = plugins.load("tasks", result.cell.task)()
    if task.version != result.cell.protocol_version:
        raise UserError(f"protocol version {result.cell.protocol_version} cannot be recomputed, this program has "
                        f"version {task.version}", where=result.cell.name, fix="use the program that made the result")
    return task


@contextmanager
def _scoring(result: Result) -> Iterator[None]:
    """A task reads its table without a look at it, and this one may come from anywhere."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the predictions cannot be scored: {type(error).__name__}: {error}",
                        where=f"{result.cell.name}.parquet", fix="run the cell again") from error


def _rebuild(folder: Path, result: Result, draws: Mapping[str, np.ndarray], draws_key: str, memo: Path) -> Rebuilt:
    key = digest_json([result.provenance["predictions"], _sources(result.cell.task), draws_key])
    file = memo / f"{key}.npz"
    if file.is_file():
        with np.load(file, allow_pickle=False) as stored:
            metrics = [_metric(values) for values in json.loads(str(stored["metrics"]))]
            replicates = {name.removeprefix("r:"): stored[name] for name in stored.files if name.startswith("r:")}
    else:
        task = _task(result)
        with _scoring(result):
            predictions = read_predictions(folder, result)
            metrics = list(task.score(predictions))
            replicates = {name: np.asarray(r, float) for name, r in task.replicates(predictions, draws).items()}
        _remember(file, metrics, replicates)
    return Rebuilt(result, {metric.name: metric for metric in metrics}, replicates)


def _remember(file: Path, metrics: Iterable[Metric], replicates: Mapping[str, np.ndarray]) -> None:
    arrays: dict[str, Any] = {f"r:{name}": values for name, values in replicates.items()}
    told = np.array(json.dumps([asdict(m) for m in metrics]))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise not_writable(file.parent, error, "--cache") from error
    write_file(file, lambda opened: np.savez_compressed(opened, metrics=told, **arrays), option="--cache")


def _metric(values: dict[str, Any]) -> Metric:
    return Metric(**values | {"range": tuple(values["range"])})


@cache
def _sources(task: str) -> str:
    """Digest of the code that turns predictions into numbers."""
    core = [_PACKAGE / name for name in ("metrics", "statistics.py", "label_scores.py", "task.py")]
    return digest_sources(*core, plugins.sources("tasks", task))


def groups_of(folder: Path, result: Result) -> set[str]:
    """The leak groups of the test images that a result predicted."""
    import pyarrow.parquet

    path = check_predictions(folder, result)
    with _scoring(result):
        return set(pyarrow.parquet.read_table(path, columns=["group"])["group"].to_pylist())


def _same(stored: Metric, again: Metric | None) -> bool:
    if again is None or stored.counts != again.counts or (stored.value is None) != (again.value is None):
        return False
    return stored.value is None or again.value is None or abs(stored.value - again.value) <= TOLERANCE


def _shown(metric: Metric | None) -> str:
    if metric is None:
        return "no such metric"
    counts = ", ".join(f"{name} {count}" for name, count in sorted(metric.counts.items()))
    value = f"undefined ({metric.reason})" if metric.value is None else f"{metric.value:.10g}"
    return f"{value} ({counts})" if counts else value

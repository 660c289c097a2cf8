"""Runs the cells of a grid that are missing: weights first, then the cells of one dataset after the other.

Cells of one (weights, dataset) share one Context, so features are computed once and dense cells stay in one process.
Each cell is stored as soon as it is done, under a lock that another process on the same folder respects.
"""

from __future__ import annotations

import errno
import traceback
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from prior_bench import plugins, provenance, recipe_files, results, weights_folder
from prior_bench.digests import digest_json
from prior_bench.errors import UserError
from prior_bench.files import check_writable, not_writable
from prior_bench.grid import NO_SOURCE, Grid, PlannedCell, Weights, write_note
from prior_bench.task import Context, NotApplicable, Task, evaluate
from prior_bench.types import Cell, Result

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset
    from prior_bench.engine.precision import Precision
    from prior_bench.method import Method
    from prior_bench.recipes import Recipe

CACHE_NEEDS = 1 << 30  # bytes: images, features, and a checkpoint
OUTPUT_NEEDS = 64 << 20


class Listener:
    """What a display is told while cells run; this one shows nothing. `share` is in 0..1."""

    def weights(self, weights: Weights, phase: str, share: float, text: str) -> None:
        """Weights are being made or read."""

    def loaded(self, weights: Weights, coverage: str) -> None:
        """Weights are there: where they lie, or how much of the model their file filled."""

    def progress(self, cell: PlannedCell, phase: str, share: float) -> None:
        """A cell is being evaluated."""

    def waiting(self, cell: PlannedCell) -> None:
        """Another process works on the cell."""

    def finished(self, cell: PlannedCell, result: Result, seconds: float | None) -> None:
        """`seconds` is None for a cell that was found stored."""

    def failed(self, cell: PlannedCell, error: str) -> None:
        """A bug cost the cell."""


@dataclass(slots=True)
class Summary:
    """What a run did: how many cells are new, were found stored once their weights were known (by an earlier run, or
    meanwhile by another process), and are lost to what failed, a cell or the weights of several (with tracebacks)."""

    new: int = 0
    found: int = 0
    lost: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def execute(grid: Grid, listener: Listener) -> Summary:
    """Run what is missing. A UserError ends the run at once; a bug ends its cell only, and is in the summary."""
    check_writable(grid.request.output, OUTPUT_NEEDS, "--output")
    check_writable(grid.request.cache, CACHE_NEEDS, "--cache")
    check_recipes(grid)  # all of them before the first one is trained
    from prior_bench.engine.precision import choose

    precision = choose(grid.request.device, grid.request.precision)
    summary = Summary()
    for weights, cells in groupby(grid.missing, key=lambda cell: cell.weights):
        _run_weights(grid, weights, list(cells), precision, listener, summary)
    return summary


def _run_weights(grid: Grid, weights: Weights, cells: list[PlannedCell], precision: Precision, listener: Listener,
                 summary: Summary) -> None:
    """Run the missing cells of one set of weights."""
    start = perf_counter()
    try:
        obtained = obtain(grid, weights, precision, listener)
    except UserError:
        raise
    except Exception as error:  # a bug in one method must not cost the others; it is shown with its traceback
        summary.failed[weights.title] = traceback.format_exc()
        summary.lost += len(cells)
        for cell in cells:
            listener.failed(cell, f"{type(error).__name__}: {error}")
        return
    if obtained.told:
        listener.loaded(weights, obtained.told)
    if obtained.digest != weights.digest:
        if weights.source != NO_SOURCE:
            write_note(grid.request.cache, weights.key, obtained.digest)
        cells = [replace(cell, weights=replace(weights, digest=obtained.digest)) for cell in cells]
    seconds = perf_counter() - start
    for dataset, group in groupby(cells, key=lambda cell: cell.dataset):
        runner = _Runner(grid, obtained, dataset, precision, seconds, listener, summary)
        runner.run(list(group))


# ------------------------------------------------------------------------------------------ weights


@dataclass(slots=True)
class Obtained:
    """A method with its weights, and where they came from."""

    method: Method
    digest: str
    recipe: dict[str, Any]
    notes: dict[str, Any]  # for the provenance
    told: str = ""  # to the user


def check_recipes(grid: Grid) -> None:
    """Refuse what a method does not know in its recipe, of all weights that are wanted."""
    for weights in dict.fromkeys(cell.weights for cell in grid.missing):
        _recipe(grid, weights)


def _recipe(grid: Grid, weights: Weights) -> Recipe:
    """The recipe that weights are made by, validated. It imports the method, and so torch."""
    from prior_bench import recipes

    kind: type[Method] = plugins.load("methods", weights.method)
    file, path = recipe_files.recipe_file(weights.method), grid.request.weights
    recipe = recipes.load(file, grid.request.recipe, kind.recipe_class, weights.overrides)
    ours = None if path is None else weights_folder.find(path)
    if ours is not None:
        _check_recipe(recipe, ours.path, kind)
    return recipe


def _check_recipe(asked: Recipe, folder: Path, kind: type[Method]) -> None:
    """Refuse to call weights of ours by another recipe than the one they were made by."""
    from prior_bench.recipes import differences
    from prior_bench.weights import made_by, read_recipe

    if other := differences(read_recipe(folder, kind), asked):
        name = made_by(folder, kind)
        raise UserError(f"the weights were made by another recipe: {'; '.join(other[:3])}", where=str(folder),
                        fix=f"give --recipe {name}" if name else "give the --recipe and --set that they were made by")


def obtain(grid: Grid, weights: Weights, precision: Precision, listener: Listener) -> Obtained:
    """The method with its weights: from a file, pre-trained (or found in the cache), or freshly initialised."""
    from prior_bench.weights import load_checkpoint, load_method, new_method

    request = grid.request
    kind = plugins.load("methods", weights.method)
    recipe = _recipe(grid, weights)
    values = recipe.model_dump(mode="json")
    source = grid.datasets[grid.source].dataset if grid.source else None
    texts = _training_reports(source) if source is not None and recipe.text is not None else None
    if request.weights is not None and (ours := weights_folder.find(request.weights)) is not None:
        assert weights.digest is not None
        return Obtained(load_method(ours.path), weights.digest, values, ours.history)
    if request.weights is not None:
        method = new_method(kind, recipe, weights.seed, texts)
        coverage = load_checkpoint(method, request.weights, request.allow_partial_weights)
        # the digest is that of the file's content, and of what is made of it
        return Obtained(method.eval(), weights.key, values, {"coverage": str(coverage)}, str(coverage))
    if weights.source == NO_SOURCE:
        assert weights.digest is not None
        method = new_method(kind, recipe, weights.seed, texts)
        filled = getattr(getattr(method, "image_encoder", None), "coverage", None)  # of a file in image.weights
        notes = {"coverage": str(filled)} if filled else {}
        return Obtained(method, weights.digest, values, notes, str(filled or ""))
    from prior_bench.engine.pretrain import pretrain

    assert source is not None
    folder = pretrain(weights.method, recipe, source, seed=weights.seed, precision=precision, cache=request.cache,
                      report=lambda phase, share, text: listener.weights(weights, phase, share, text),
                      command=provenance.command())
    made = weights_folder.find(folder)
    assert made is not None
    return Obtained(load_method(folder), made.digest(request.cache), values, made.history, f"weights: {folder}")


def _training_reports(dataset: Dataset) -> list[str]:
    return [study.report.text for study in dataset.studies if study.split == "train" and study.report is not None]


# -------------------------------------------------------------------------------------------- cells


class _Runner:
    """Runs the cells of one (weights, dataset)."""

    def __init__(self, grid: Grid, obtained: Obtained, dataset: str, precision: Precision, weights_seconds: float,
                 listener: Listener, summary: Summary):
        self.grid, self.obtained, self.precision = grid, obtained, precision
        self.dataset = grid.datasets[dataset].dataset
        self.weights_seconds = weights_seconds
        self.listener, self.summary = listener, summary
        self.output = grid.request.output

    def run(self, cells: list[PlannedCell]) -> None:
        """First what nobody else works on; then wait for what other processes had in flight."""
        busy = [cell for cell in cells if not self._try(cell, timeout=0)]
        for cell in busy:
            self.listener.waiting(cell)
            self._try(cell, timeout=-1)

    def _try(self, planned: PlannedCell, timeout: float) -> bool:
        """Run a cell under its lock; False where another process holds that."""
        from filelock import Timeout

        cell = planned.cell(self.obtained.digest)
        try:
            with results.cell_lock(self.output, cell).acquire(timeout=timeout):
                if results.is_done(self.output, cell):
                    self.summary.found += 1
                    self.listener.finished(planned, results.read_result(results.result_path(self.output, cell)), None)
                else:
                    self._guarded(planned, cell)
        except Timeout:
            return False
        return True

    def _guarded(self, planned: PlannedCell, cell: Cell) -> None:
        start = perf_counter()
        try:
            result = self._evaluate(planned, cell)
        except UserError:
            raise
        except Exception as error:  # a bug in one cell must not cost the others; it is shown with its traceback
            if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EROFS, errno.EDQUOT}:
                raise not_writable(Path(error.filename or self.grid.request.cache), error) from error
            self.summary.failed[cell.name] = traceback.format_exc()
            self.summary.lost += 1
            self.listener.failed(planned, f"{type(error).__name__}: {error}")
            return
        self.summary.new += 1
        self.listener.finished(planned, result, perf_counter() - start)

    def _evaluate(self, planned: PlannedCell, cell: Cell) -> Result:
        """Evaluate and store one cell."""
        task: Task = self.grid.tasks[planned.task]
        context = self.context
        context.report = lambda phase, share: self.listener.progress(planned, phase, share)
        context.report("fit", 0.0)
        try:
            if task.needs_text and not context.method.has_text:
                raise NotApplicable(f"{cell.method} has no text encoder")
            outcome = evaluate(task, context, cell)
        except NotApplicable as reason:
            result = Result(cell, "not_applicable", reason=str(reason), provenance=self._provenance(cell, {}))
            results.write_result(self.output, result, None)
        else:
            result = Result(cell, "done", tuple(outcome.metrics), details=outcome.details,
                            provenance=self._provenance(cell, outcome.seconds))
            results.write_result(self.output, result, outcome.predictions)
        return result

    @cached_property
    def context(self) -> Context:
        from prior_bench.features import FeatureCache

        method, digest, request = self.obtained.method, self.obtained.digest, self.grid.request
        self.precision.place(method)
        features = FeatureCache(request.cache / "features", method, digest, self.precision)
        return Context(method, self.dataset, digest, self.precision, features, request.cache, request.profile)

    def _provenance(self, cell: Cell, seconds: dict[str, float]) -> dict[str, Any]:
        name = cell.method
        kind = plugins.load("methods", name)
        return provenance.collect() | {
            "method": {"title": kind.title, "paper": kind.paper,
                       "note": recipe_files.note(recipe_files.recipe_file(name))},
            "recipe": self.obtained.recipe,
            "image_input": asdict(self.obtained.method.image_input),
            "weights": self.obtained.notes,
            "seeds": {"pretrain": cell.pretrain_seed, "subset": cell.subset_seed, "head": cell.head_seed},
            "digests": {"weights": cell.weights_digest, "data": cell.data_digest, "protocol": cell.settings_digest,
                        "split": self._split_digest},
            "device": device_name(self.precision),
            "precision": self.precision.name,
            "seconds": {"weights": self.weights_seconds, **seconds},
            "excluded_images": sorted(self.dataset.exclude),
            "notes": list(self.context.features.notes),
        }

    @cached_property
    def _split_digest(self) -> str:
        return digest_json(sorted([study.id, study.group, study.split] for study in self.dataset.studies))


def device_name(precision: Precision) -> str:
    """The processor's or the GPU's name, as its maker writes it."""
    import torch

    if precision.device.type == "cuda":
        return f"{precision.device}: {torch.cuda.get_device_name(precision.device)}"
    return f"cpu: {_cpu_name()}"


def _cpu_name() -> str:
    import platform

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()

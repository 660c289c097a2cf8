"""What the exact gate measures of a method with its checkpoint, by the same calls as `prior-bench run`.

First the method alone, on a few studies of the gate's dataset: features, pyramid, local scores and maps, and the loss
terms of one batch. Then every cell of the five tasks through `grid` and `execution`: what the result store holds of it,
predictions and metrics. Nothing is taken from a cache but the dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from prior_bench.digests import digest_json
from prior_bench.encoders.image import STRIDES
from prior_bench.engine.samples import Samples, training_studies
from prior_bench.errors import UserError
from prior_bench.execution import execute
from prior_bench.grid import Grid, Opened, Request, plan
from prior_bench.leaderboard.gate.baseline import DATASET, RECIPE, TARGETS
from prior_bench.leaderboard.gate.exact.fingerprint import Fingerprint, fingerprint
from prior_bench.leaderboard.gate.failures import Failures
from prior_bench.leaderboard.gate.options import Options
from prior_bench.method import Method
from prior_bench.results import read_predictions, read_results
from prior_bench.types import Result
from prior_bench.weights import load_method
from prior_bench.weights_folder import weights_digest

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset

HEAD_STEPS = 40  # of training a head: enough to find lungs, too few for rounding to grow into other answers
STUDIES = 8  # that the method's own outputs are taken of
MOMENTS = (0.0, 0.99)  # shares of the training at which loss terms are taken: its first stage and its last
LARGEST = 10  # of the scores of found boxes

Group = Literal["features", "losses", "answers", "answers of heads", "metrics", "metrics of heads"]


@dataclass(frozen=True, slots=True)
class Quantity:
    """A fingerprint, which tolerance it has, and the unit of differences (None: the root mean square)."""

    group: Group
    fingerprint: Fingerprint
    scale: float | None = None


@dataclass(slots=True)
class Measured:
    """One cell. `problem` says why it has no quantities, or not all; `broken` that this is the program's fault."""

    made_from: dict[str, str]
    quantities: dict[str, Quantity] = field(default_factory=dict)
    problem: str = ""
    broken: bool = False


def measure(name: str, weights: Path, options: Options, scratch: Path) -> dict[str, Measured]:
    """All cells of a method, "prior/images" and the like, with the weights in a folder of ours.

    Args: scratch: an empty folder for results and features.
    """
    request = Request(methods=(name,), tasks=options.tasks or ("all",), datasets=(DATASET,), targets=TARGETS,
                      fractions=(1.0,), recipe=RECIPE, weights=weights, device=str(options.precision.device),
                      precision=options.precision.name, output=scratch / "results", cache=options.cache)
    grid = plan(request)
    grid.request = replace(request, cache=scratch / "cache")  # the dataset alone comes from where it is kept
    opened = grid.datasets[DATASET] = _with_quick_heads(grid.datasets[DATASET], options.cache)
    with exactly():
        made_from = {"weights": weights_digest(weights), "data": opened.digest}
        inputs = _inputs(load_method(weights), opened.dataset, options, scratch)
        return _method_cells(name, inputs, options, made_from) | _task_cells(name, grid, made_from)


def _with_quick_heads(opened: Opened, cache: Path) -> Opened:
    """The same data with a budget of few steps for the heads of the dense tasks."""
    kind, budget = type(opened.dataset), opened.dataset.budget
    quick = replace(budget, segmentation=replace(budget.segmentation, steps=HEAD_STEPS, validations=1),
                    detection=replace(budget.detection, steps=HEAD_STEPS, validations=1))
    return Opened(type(kind.__name__, (kind,), {"budget": quick})(cache=cache), opened.digest)


@contextmanager
def exactly() -> Iterator[None]:
    """float32 that is float32 on a GPU too, and no choice of algorithms by speed."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        yield


# ------------------------------------------------------------------------------------ the method alone


@dataclass(frozen=True, slots=True)
class _Inputs:
    """The method on its device, normalised test images, their reports, and one collated training batch."""

    method: Method
    images: torch.Tensor
    reports: list[str]
    batch: dict[str, Any]


def _method_cells(name: str, inputs: _Inputs, options: Options, made_from: dict[str, str]) -> dict[str, Measured]:
    found = {}
    for part, quantities in PARTS.items():
        cell = Measured(dict(made_from))
        try:
            with torch.inference_mode(), options.precision.cast(), torch.random.fork_rng():
                torch.manual_seed(0)
                cell.quantities = quantities(inputs)
        except Exception as error:  # what the method can no longer do is what the gate is asked
            cell.problem, cell.broken = f"{type(error).__name__}: {error}", True
        if cell.quantities or cell.problem:
            found[f"{name}/{part}"] = cell
    return found


def _inputs(method: Method, dataset: Dataset, options: Options, scratch: Path) -> _Inputs:
    from prior_bench.data.images import ImageStore

    device, folder = options.precision.device, scratch / "cache" / "images"
    options.precision.place(method)
    shown = [s for s in dataset.studies if s.split == "test" and s.report is not None][:STUDIES]
    ids = [study.images[0].id for study in shown]
    pixels = ImageStore.open(dataset, ids, method.image_input, folder).get(ids)
    images = method.normalise(torch.from_numpy(pixels).unsqueeze(1).to(device))
    studies = training_studies(dataset)[:STUDIES]
    store = ImageStore.open(dataset, [i.id for s in studies for i in s.images], method.image_input, folder)
    samples = Samples(method, studies, store, seed=0)
    batch = method.collate([samples[0, row] for row in range(len(studies))])
    return _Inputs(method, images.contiguous(memory_format=torch.channels_last),
                   [study.report.text for study in shown if study.report is not None],
                   {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()})


def _feature(values: torch.Tensor) -> Quantity:
    return Quantity("features", fingerprint(values.float().cpu().numpy()))


def _images(inputs: _Inputs) -> dict[str, Quantity]:
    encoded = inputs.method.encode_image(inputs.images)
    found = {"input": inputs.images, "map": encoded.map, "pooled": encoded.pooled}
    if encoded.joint is not None:
        found["joint"] = encoded.joint
    found |= {f"pyramid {stride}": level
              for stride, level in zip(STRIDES, inputs.method.pyramid(inputs.images), strict=True)}
    return {name: _feature(values) for name, values in found.items()}


def _texts(inputs: _Inputs) -> dict[str, Quantity]:
    if not inputs.method.has_text:
        return {}
    text = inputs.method.encode_text(inputs.reports)
    found = {"joint": text.joint}
    parts = {"sentences": (text.sentences, text.sentence_mask), "words": (text.words, text.word_mask)}
    for name, (values, mask) in parts.items():
        if values is not None and mask is not None:
            found[name] = values[mask.bool()]
    return {name: _feature(values) for name, values in found.items()}


def _local(inputs: _Inputs) -> dict[str, Quantity]:
    method, images, reports = inputs.method, inputs.images, inputs.reports
    if not method.has_text:
        return {}
    scores = method.local_score(images, reports)
    found = {} if scores is None else {"scores": scores}
    found |= {f"map, {name}": values for name, values in (method.sentence_maps(images, reports) or {}).items()}
    found |= {f"prototypes, {name}": values for name, values in (method.prototype_use(images, reports) or {}).items()}
    return {name: _feature(values) for name, values in found.items()}


def _losses(inputs: _Inputs) -> dict[str, Quantity]:
    """Every term and its weight; in eval mode, so that dropout and noise are off."""
    found = {}
    for progress in MOMENTS:
        for name, (weight, value) in inputs.method(inputs.batch, progress).items():
            found[f"{name} at {progress:g}"] = Quantity("losses", fingerprint(float(value)))
            found[f"weight of {name} at {progress:g}"] = Quantity("losses", fingerprint(weight))
    return found


PARTS: Mapping[str, Callable[[_Inputs], dict[str, Quantity]]] = {
    "images": _images, "texts": _texts, "local": _local, "losses": _losses}


# ------------------------------------------------------------------------------------------- the tasks


def _task_cells(name: str, grid: Grid, made_from: dict[str, str]) -> dict[str, Measured]:
    listener = Failures()
    stopped = ""
    try:
        summary = execute(grid, listener)
        stopped = next(iter(summary.failed.values()), "").strip().rpartition("\n")[2]
    except UserError as error:  # of data and weights that are the project's own
        stopped = str(error).replace("\n", ";")
    results = {(r.cell.task, r.cell.target): r for r in read_results(grid.request.output)}
    found = {}
    for planned in grid.cells:
        protocol = digest_json([planned.protocol_version, planned.profile, planned.settings_digest, HEAD_STEPS])
        cell = Measured({**made_from, "protocol": protocol})
        result = results.get((planned.task, planned.plan.target))
        if result is None:
            cell.problem, cell.broken = listener.errors.get(planned, stopped), True
        elif result.status == "not_applicable":
            cell.problem = f"not applicable: {result.reason}"
        else:
            cell.quantities = _result(grid, result)
        found[f"{name}/{planned.task}/{planned.plan.target}"] = cell
    return found


def _result(grid: Grid, result: Result) -> dict[str, Quantity]:
    """Predictions and metrics of a cell; those of heads trained by gradient steps have tolerances of their own."""
    trained = result.cell.fraction is not None and result.cell.mode != "linear"
    answers: Group = "answers of heads" if trained else "answers"
    metrics: Group = "metrics of heads" if trained else "metrics"
    predictions = read_predictions(grid.request.output, result)
    found = {name: Quantity(answers, fingerprint(values)) for name, values in arrays(predictions.table).items()}
    for metric in result.metrics:
        value = np.nan if metric.value is None else metric.value
        found[metric.name] = Quantity(metrics, fingerprint(value), scale=metric.range[1] - metric.range[0])
    return found


def arrays(table: Any) -> dict[str, np.ndarray]:
    """The numbers in a table of predictions, by what kind its columns are of, so that any task's table will do.

    Columns of numbers with one prefix ("score_edema", "score_mass": "score") are one matrix, lists of numbers (vectors)
    are its rows. Where a table has lists of lists (boxes), a row holds a varying number of found things: of boxes their
    number and mean, of other lists the largest entries in order.
    """
    import pyarrow.types as kinds

    columns = {column.name: table.column(column.name).to_pylist() for column in table.schema}
    kind = {column.name: column.type for column in table.schema}
    lists = {name for name in columns if kinds.is_list(kind[name])}
    nested = {name for name in lists if kinds.is_list(kind[name].value_type)}
    found = {}
    numbers: dict[str, list[list[float]]] = {}
    for name, rows in columns.items():
        if kinds.is_integer(kind[name]) or kinds.is_floating(kind[name]):
            numbers.setdefault(name.partition("_")[0], []).append(rows)
        elif name in nested:
            width = max((len(box) for row in rows for box in row), default=0)
            found[name] = np.array([[len(row), *(np.mean(row, axis=0) if row else np.zeros(width))] for row in rows])
        elif name in lists and kinds.is_floating(kind[name].value_type):
            if nested:
                rows = [(sorted(row, reverse=True) + [0.0] * LARGEST)[:LARGEST] for row in rows]
            found[name] = np.array(rows, np.float64)
    return {name: np.array(parts, np.float64).T for name, parts in numbers.items()} | found

"""The suite of the statistical gate: every method's recipe `ci`, pre-trained and evaluated anew on phantom-ci.

All of it runs through `grid` and `execution`, as `prior-bench run` does, in a scratch folder: nothing but the dataset
is taken from a cache. Cells are the tasks' (the main metric of each), the pre-training (the last values of its loss
terms) and the cost of a training step. A seed is that of the pre-training and of the training subsets.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from prior_bench import grid, plugins, recipe_files, recipes
from prior_bench.data.images import ImageStore
from prior_bench.digests import digest_json
from prior_bench.engine.samples import Samples, training_studies
from prior_bench.engine.training import to_device
from prior_bench.errors import UserError
from prior_bench.execution import execute
from prior_bench.grid import Grid, PlannedCell, Request
from prior_bench.leaderboard.gate.baseline import DATASET, RECIPE, TARGETS
from prior_bench.leaderboard.gate.failures import Failures
from prior_bench.leaderboard.gate.options import Options
from prior_bench.leaderboard.gate.statistical.cost import cost
from prior_bench.leaderboard.gate.statistical.seeds import SuiteCell
from prior_bench.results import read_results
from prior_bench.types import Metric, Result
from prior_bench.weights import new_method

FRACTIONS = (0.1, 1.0)
TRAINING, COST = "pre-training", "cost"  # the cells beside the tasks'
_LAST = 0.1  # share of the loss curves, at their end, that is averaged


@dataclass(slots=True)
class Planned:
    """A method's cells before they run: `made_from` by title, and the title of each planned cell."""

    method: str
    made_from: dict[str, dict[str, str]]
    titles: dict[PlannedCell, str]
    grid: Grid


def plan(method: str, seed: int, options: Options) -> Planned:
    """What the suite makes of a method with a seed. Heads that are trained step by step get all training data."""
    request = Request(methods=(method,), tasks=options.tasks or ("all",), datasets=(DATASET,), targets=TARGETS,
                      recipe=RECIPE, fractions=FRACTIONS, seeds=(seed,), subset_seeds=(seed,),
                      device=str(options.precision.device), precision=options.precision.name, cache=options.cache)
    planned = grid.plan(request)
    planned.cells = [c for c in planned.cells if c.plan.mode == "linear" or c.plan.fraction in (None, 1.0)]
    kind = plugins.load("methods", method)
    recipe = recipes.load(recipe_files.recipe_file(method), RECIPE, kind.recipe_class).digest()
    common = {"data": planned.datasets[DATASET].digest, "recipe": recipe}
    made_from = {f"{method}/{TRAINING}": dict(common), f"{method}/{COST}": dict(common)}
    titles = {}
    for cell in planned.cells:
        p = cell.plan
        size = "" if p.fraction is None else f"/{p.fraction:g}"
        titles[cell] = f"{method}/{cell.task}/{p.target}{size}"
        protocol = digest_json([cell.protocol_version, cell.profile, cell.settings_digest])
        made_from[titles[cell]] = {**common, "protocol": protocol}
    return Planned(method, made_from, titles, planned)


def run(method: str, seeds: Iterable[int], options: Options) -> dict[str, SuiteCell]:
    """All cells of a method, with one value a seed."""
    found: dict[str, SuiteCell] = {}
    for seed in seeds:
        start = perf_counter()
        _run_one(plan(method, seed, options), seed, options, found)
        options.say(f"{method}, seed {seed}: {perf_counter() - start:.0f} s")
    return found


def _run_one(planned: Planned, seed: int, options: Options, found: dict[str, SuiteCell]) -> None:
    for title, made_from in planned.made_from.items():
        found.setdefault(title, SuiteCell(made_from))
    with tempfile.TemporaryDirectory(prefix="prior-bench-check-") as folder:
        scratch = Path(folder)
        listener = Failures()
        # from here on not the cache that the dataset was opened in
        planned.grid.request = replace(planned.grid.request, cache=scratch / "cache", output=scratch / "results")
        try:
            summary = execute(planned.grid, listener)
            stopped = next(iter(summary.failed.values()), "").strip().rpartition("\n")[2]
        except UserError as error:  # of data and recipes that are the project's own, as of a loss that is not finite
            stopped = str(error).replace("\n", "; ")
        results = {_place(r.cell.task, r.cell.target, r.cell.fraction): r for r in read_results(scratch / "results")}
        for cell, title in planned.titles.items():
            result = results.get(_place(cell.task, cell.plan.target, cell.plan.fraction))
            _take(found[title], result, listener.errors.get(cell, stopped))
        _take_losses(found[f"{planned.method}/{TRAINING}"], results.values(), stopped)
        _take_cost(found[f"{planned.method}/{COST}"], planned, seed, options, scratch / "cache" / "images")


def _place(task: str, target: str, fraction: float | None) -> tuple[str, str, float | None]:
    return task, target, fraction


def _take(cell: SuiteCell, result: Result | None, error: str) -> None:
    """The main metric of a cell; of two possible ones that which the result holds, as the tables do."""
    if result is None:
        cell.problem, cell.broken = error or "no result", True
    elif result.status == "not_applicable":
        cell.problem = f"not applicable: {result.reason}"
    else:
        metric = _main(result)
        cell.add(metric.name, "higher" if metric.higher_is_better else "lower", metric.value)
        if metric.value is None:
            cell.problem, cell.broken = f"{metric.name} is undefined: {metric.reason}", True


def _main(result: Result) -> Metric:
    name = plugins.load("tasks", result.cell.task).main_metric
    return next((metric for metric in result.metrics if metric.name == name), result.metrics[0])


def _take_losses(cell: SuiteCell, results: Iterable[Result], error: str) -> None:
    """The mean of each loss term over the end of its curve. Every result carries the curves of its weights."""
    curves: dict[str, Any] = next((r.provenance["weights"]["losses"] for r in results), {})
    if not curves:
        cell.problem, cell.broken = error or "no losses were logged", True
    for name, points in curves.items():
        if name != "lr":
            last = [value for _, value in points[-max(1, round(_LAST * len(points))) :]]
            cell.add(name, "neither", sum(last) / len(last))


def _take_cost(cell: SuiteCell, planned: Planned, seed: int, options: Options, images: Path) -> None:
    """Time and memory of the method's training step on one batch of the dataset, with initial weights."""
    try:
        kind = plugins.load("methods", planned.method)
        recipe = recipes.load(recipe_files.recipe_file(planned.method), RECIPE, kind.recipe_class)
        assert recipe.training is not None
        dataset = planned.grid.datasets[DATASET].dataset
        studies = training_studies(dataset)
        method = new_method(kind, recipe, seed, [s.report.text for s in studies if s.report is not None])
        options.precision.place(method)
        shown = studies[: recipe.training.batch]
        store = ImageStore.open(dataset, [i.id for s in shown for i in s.images], method.image_input, images)
        samples = Samples(method, shown, store, seed=seed)
        batch = method.collate([samples[0, row] for row in range(len(shown))])
        ratios = cost(method, to_device(batch, options.precision.device), options.precision)
    except Exception as error:  # what can no longer be done is what the gate is asked
        cell.problem, cell.broken = f"{type(error).__name__}: {error}", True
        return
    for name, ratio in ratios.items():
        cell.add(name, "lower", ratio)

"""Task: what an evaluation protocol is.

A task plans cells without importing torch, then runs each one in three steps: `fit` on training and validation data,
`predict` on test images whose labels it cannot see, `score` from predictions alone. The order is kept by `evaluate`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prior_bench.types import Metric, Target

if TYPE_CHECKING:
    import pyarrow as pa

    from prior_bench.data.dataset import Dataset
    from prior_bench.engine.precision import Precision
    from prior_bench.features import FeatureCache
    from prior_bench.method import Method
    from prior_bench.types import Cell


class NotApplicable(Exception):
    """Raised by a task where a cell cannot be evaluated for a reason that is no error; recorded in the result."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One cell as a task plans it, before the weights are known."""

    target: str
    mode: str
    fraction: float | None
    subset_seed: int = 0
    head_seed: int = 0


def plans(target: Target, mode: str, fractions: Sequence[float], subset_seeds: Sequence[int],
          head_seeds: Sequence[int]) -> Iterator[Plan]:
    """Cells of a task that trains on a target's images: at each fraction one for each subset and seed of the head, of
    which all images are the one subset. None where the target has no training images."""
    for fraction in fractions if target.train else ():
        subsets = (0,) if fraction == 1 else subset_seeds
        yield from (Plan(target.name, mode, fraction, subset, head) for subset in subsets for head in head_seeds)


@dataclass(slots=True)
class Context:
    """What a task may use to evaluate cells of one (method, dataset)."""

    method: Method
    dataset: Dataset
    weights_digest: str
    precision: Precision
    features: FeatureCache
    cache: Path
    profile: str = "standard"
    report: Callable[[str, float], None] = lambda phase, share: None  # progress of the cell in flight

    def note(self, text: str) -> None:
        """Have the results say this, once: they are stored with the notes of the features."""
        if text not in self.features.notes:
            self.features.notes.append(text)


@dataclass(slots=True)
class Predictions:
    """What a cell predicted on its test images, one row per image (or query, or box, by the task's schema), with labels
    joined after prediction. `extra` (JSON-able) holds what else the metrics need, e.g. validation thresholds.

    Saved as one Parquet file; `extra` in its schema metadata. Every metric is rebuilt from this and nothing else.
    """

    table: pa.Table
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Outcome:
    predictions: Predictions
    metrics: tuple[Metric, ...]
    details: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)  # by phase: fit, predict, score


class Task(ABC):
    """Base of every task."""

    name: ClassVar[str]
    title: ClassVar[str] = ""
    version: ClassVar[int] = 1  # of the protocol; results of two versions never share a column
    modes: ClassVar[tuple[str, ...]]  # the first is the default
    profiles: ClassVar[tuple[str, ...]] = ("standard",)
    needs_text: ClassVar[bool] = False
    kinds: ClassVar[frozenset[str]]  # target kinds it evaluates
    wants: ClassVar[str] = ""  # in words, what it needs of such a target beside its kind
    main_metric: ClassVar[str]  # the one shown in overviews
    more_metrics: ClassVar[tuple[str, ...]] = ()  # shown beside it in tables without fractions
    row: ClassVar[str] = "image"  # the column of the predictions that names a row
    attached: ClassVar[tuple[str, ...]] = ()  # columns that `attach` adds, as fnmatch patterns; none: archives of this
    # task are not held against the data set

    def accepts(self, target: Target) -> bool:
        return target.kind in self.kinds

    @classmethod
    def evaluates(cls) -> str:
        """What it accepts, in words."""
        return f"{' and '.join(sorted(cls.kinds))} targets {cls.wants}".rstrip()

    @abstractmethod
    def plan(self, dataset: type[Dataset], target: Target, mode: str, fractions: Sequence[float],
             seeds: Sequence[int] | None) -> Iterator[Plan]:
        """Cells of one target. `seeds` overrides the dataset's subset seeds. Imports no torch."""

    @abstractmethod
    def settings(self, dataset: type[Dataset], target: Target, mode: str, profile: str) -> dict[str, Any]:
        """Every setting of the protocol that the numbers depend on, JSON-able; its digest is part of the cell.

        Each value is read from where it is used: one that is written down again here would stay when that one changes.
        What is code rather than a value raises `version`. Imports no torch.
        """

    @abstractmethod
    def fit(self, context: Context, cell: Cell) -> Any:
        """Train and select on training and validation data; returns whatever `predict` needs. May raise NotApplicable.

        The returned object's `details` attribute, if there is one, is stored in the result (every value tried).
        """

    @abstractmethod
    def predict(self, context: Context, cell: Cell, fitted: Any) -> Predictions:
        """Predictions on the test images, without their labels."""

    @abstractmethod
    def attach(self, dataset: Dataset, cell: Cell, predictions: Predictions) -> Predictions:
        """Join the test labels (and groups) to the predictions; the only step that reads them."""

    def rows(self, dataset: Dataset, target: str) -> list[str]:
        """The names of all rows that predictions of a target have."""
        return dataset.ids(target, "test")

    @abstractmethod
    def score(self, predictions: Predictions) -> tuple[Metric, ...]:
        """All metrics from labelled predictions alone."""

    @abstractmethod
    def replicates(self, predictions: Predictions, draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Bootstrap replicates of the metrics: {metric: (n_draws,) float64, NaN where undefined}.

        `draws` gives the multiplicity of each leak group in each draw: {group: (n_draws,) int}. The same draws serve
        all methods, fractions and seeds of a dataset (see `statistics.group_draws`).
        """

    def p_values(self, a: Predictions, b: Predictions) -> dict[str, tuple[str, float]]:
        """Paired tests of two predictions of the same images that need no draws: {metric: (name of the test, p)}."""
        return {}


def evaluate(task: Task, context: Context, cell: Cell) -> Outcome:
    """Run one cell: fit, predict, attach, score."""
    from time import perf_counter

    seconds: dict[str, float] = {}
    start = perf_counter()
    fitted = task.fit(context, cell)
    seconds["fit"] = perf_counter() - start
    start = perf_counter()
    bare = task.predict(context, cell, fitted)
    seconds["predict"] = perf_counter() - start
    start = perf_counter()
    predictions = task.attach(context.dataset, cell, bare)
    metrics = task.score(predictions)
    seconds["score"] = perf_counter() - start
    return Outcome(predictions, metrics, dict(getattr(fitted, "details", {}) or {}), seconds)

"""Predictions of labels: one score per class and image. What classification and zero-shot share: table, metrics, draws.

    image | group | score_<class> ... | label_<class> ...

A score is null where the class could not be learnt, a label is null where it is missing. `extra` holds `classes`,
`exclusive` (one class an image, or any number), `probabilities` (or scores on another scale), and where there are any
`thresholds` for F1 and `macro_classes`, to which macro averages are restricted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prior_bench.metrics import ranking
from prior_bench.metrics.calibration import expected_calibration_error
from prior_bench.task import Predictions, Task
from prior_bench.types import Cell, Metric

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset

MIN_POSITIVE_GROUPS = 5  # a label with fewer in the test set is reported, and left out of macro averages


def predictions(ids: Sequence[str], classes: Sequence[str], scores: np.ndarray, *, exclusive: bool,
                probabilities: bool, **extra: Any) -> Predictions:
    """A table without labels. `scores` (N, C), NaN columns for classes without a score."""
    import pyarrow as pa

    columns = {"image": pa.array(ids, pa.string())}
    columns |= {f"score_{c}": pa.array(column, pa.float64(), from_pandas=True)
                for c, column in zip(classes, np.asarray(scores, np.float64).T, strict=True)}
    stated = {"classes": list(classes), "exclusive": exclusive, "probabilities": probabilities}
    return Predictions(pa.table(columns), stated | extra)


def macro_auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean AUROC over the classes (columns) with both labels; NaN without any. NaN labels are left out."""
    return _mean([_known(ranking.auroc, s, y) for s, y in zip(scores.T, labels.T, strict=True)])


class LabelTask(Task):
    """A task whose predictions are such tables: a subclass plans, fits and predicts."""

    kinds: ClassVar[frozenset[str]] = frozenset({"multilabel", "exclusive"})
    main_metric: ClassVar[str] = "auroc_macro"
    attached: ClassVar[tuple[str, ...]] = ("group", "label_*")

    def attach(self, dataset: Dataset, cell: Cell, predictions: Predictions) -> Predictions:
        """The predictions with the images' groups and labels."""
        import pyarrow as pa

        ids = predictions.table.column("image").to_pylist()
        values = dataset.labels(cell.target).rows(ids).astype(np.float64)
        table = predictions.table.append_column("group", pa.array([dataset.group_of(id) for id in ids], pa.string()))
        for name, column in zip(predictions.extra["classes"], values.T, strict=True):
            table = table.append_column(f"label_{name}", pa.array(column, pa.float64(), from_pandas=True))
        return Predictions(table, predictions.extra)

    def score(self, predictions: Predictions) -> tuple[Metric, ...]:
        """All metrics of labelled predictions, the macro AUROC first."""
        data = Labelled.read(predictions)
        metrics = [data.macro("auroc_macro", data.each(ranking.auroc)),
                   data.macro("auprc_macro", data.each(ranking.average_precision))]
        if data.predicted is not None:
            metrics.append(data.macro("f1_macro", data.each(ranking.f1, data.predicted)))
        if data.exclusive:
            rows, guess, truth = data.guesses()
            counts = {"images": len(rows), "classes": len(data.classes)}
            for name, metric in (("accuracy", ranking.accuracy), ("balanced_accuracy", ranking.balanced_accuracy)):
                metrics.append(_metric(name, metric(guess, truth), "no labelled images", counts))
        if data.probabilities:
            metrics.append(data.calibration())
        return (*metrics, *(data.label_metric(i) for i in range(len(data.classes))))

    def replicates(self, predictions: Predictions, draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Bootstrap replicates of `score`'s metrics, but the calibration error, whose bins would move with the draw."""
        from prior_bench.statistics import Bootstrap, quotient

        data = Labelled.read(predictions)
        bootstrap = Bootstrap(data.groups, draws)
        scored = [i for i, problem in enumerate(data.problems) if not problem]
        auroc = {i: bootstrap.auroc(data.scores[:, i], data.labels[:, i]) for i in scored}
        result = {f"auroc_{data.classes[i]}": values for i, values in auroc.items()}
        in_macro = np.flatnonzero(data.in_macro).tolist()
        if in_macro:
            result["auroc_macro"] = np.mean([auroc[i] for i in in_macro], axis=0)
            result["auprc_macro"] = np.mean([bootstrap.average_precision(data.scores[:, i], data.labels[:, i])
                                             for i in in_macro], axis=0)
        judged = [i for i in in_macro if data.predicted is not None and not np.isnan(data.predicted[:, i]).all()]
        if data.predicted is not None and judged:
            yes, known = data.predicted[:, judged] == 1, ~np.isnan(data.labels[:, judged])
            positive = data.labels[:, judged] == 1
            hits, said, are = (bootstrap.sums(part) for part in (yes & positive, yes & known, positive))
            per_label = quotient(2 * hits, np.where(are > 0, said + are, 0))
            result["f1_macro"] = per_label.mean(axis=1)
        if data.exclusive:
            rows, guess, truth = data.guesses()
            correct = np.full((len(data.labels), 1 + len(data.classes)), np.nan)  # of all rows, then of each class
            correct[rows, 0] = correct[rows, 1 + truth] = guess == truth
            result["accuracy"] = bootstrap.mean(correct[:, 0])
            result["balanced_accuracy"] = np.mean([bootstrap.mean(correct[:, 1 + c]) for c in np.unique(truth)], axis=0)
        return result

    def p_values(self, a: Predictions, b: Predictions) -> dict[str, tuple[str, float]]:
        """DeLong's test of each class's AUROC and, of exclusive classes, sign flips of accuracy; over leak groups."""
        from prior_bench.paired_tests import delong, sign_flip

        one, two = Labelled.read(a), Labelled.read(b)
        if a.table.column("image") != b.table.column("image"):
            raise ValueError("the predictions are not of the same images in the same order")
        result = {}
        for i, name in enumerate(one.classes):
            if not (one.problems[i] or two.problems[i]):
                tested = delong(one.scores[:, i], two.scores[:, i], one.labels[:, i], one.groups)
                if tested is not None:
                    result[f"auroc_{name}"] = ("DeLong, clustered", tested.p)
        if one.exclusive:
            (rows, guess, truth), (_, guess_two, _) = one.guesses(), two.guesses()
            result["accuracy"] = ("sign flip", sign_flip(guess == truth, guess_two == truth, one.groups[rows]))
        return result


@dataclass(frozen=True, slots=True)
class Labelled:
    """A labelled predictions table as arrays."""

    classes: list[str]
    exclusive: bool
    probabilities: bool
    scores: np.ndarray  # (N, C) NaN where there is none
    labels: np.ndarray  # (N, C) NaN where missing
    groups: np.ndarray  # (N,)
    predicted: np.ndarray | None  # (N, C) 0 or 1 for F1, NaN where there is no threshold
    problems: list[str]  # why a class has no AUROC; empty if it has one
    in_macro: np.ndarray  # (C,) bool

    @classmethod
    def read(cls, found: Predictions) -> Labelled:
        extra, table = found.extra, found.table
        classes = list(extra["classes"])
        scores = np.stack([_column(table, f"score_{c}") for c in classes], axis=1)
        labels = np.stack([_column(table, f"label_{c}") for c in classes], axis=1)
        groups = np.array(table.column("group").to_pylist(), str)
        problems = [_problem(s, y) for s, y in zip(scores.T, labels.T, strict=True)]
        positive_groups = [len(np.unique(groups[column == 1])) for column in labels.T]
        allowed = extra.get("macro_classes", classes)
        in_macro = [name in allowed and not problem and count >= MIN_POSITIVE_GROUPS
                    for name, problem, count in zip(classes, problems, positive_groups, strict=True)]
        return cls(classes, extra["exclusive"], extra["probabilities"], scores, labels, groups,
                   _predicted(scores, extra), problems, np.array(in_macro))

    def each(self, metric: Callable[[np.ndarray, np.ndarray], float], values: np.ndarray | None = None) -> np.ndarray:
        """A metric of each class's values (by default its scores) and known labels, (C,); NaN where undefined."""
        columns = (self.scores if values is None else values).T
        return np.array([np.nan if np.isnan(v).all() else _known(metric, v, y)
                         for v, y in zip(columns, self.labels.T, strict=True)])

    def macro(self, name: str, values: np.ndarray) -> Metric:
        used = self.in_macro & ~np.isnan(values)
        counts = {"images": len(self.labels), "labels": len(values), "labels_valid": int(used.sum())}
        why = f"no label has both classes in training and {MIN_POSITIVE_GROUPS} positive groups in the test set"
        return _metric(name, _mean(values[used]), why, counts)

    def label_metric(self, i: int) -> Metric:
        value = np.nan if self.problems[i] else _known(ranking.auroc, self.scores[:, i], self.labels[:, i])
        column = self.labels[:, i]
        counts = {"images": int((~np.isnan(column)).sum()), "positives": int((column == 1).sum()),
                  "positive_groups": len(np.unique(self.groups[column == 1])), "in_macro": int(self.in_macro[i])}
        return _metric(f"auroc_{self.classes[i]}", value, self.problems[i], counts)

    def guesses(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Exclusive classes: the labelled rows, the class with the highest score there, and the true one."""
        rows = np.flatnonzero(~np.isnan(self.labels).any(axis=1))
        return rows, _argmax(self.scores[rows]), self.labels[rows].argmax(axis=1)

    def calibration(self) -> Metric:
        """Of each label, averaged; of exclusive classes, of the probability of the class that was guessed."""
        if not self.exclusive:
            return _lower(self.macro("ece", self.each(expected_calibration_error)))
        rows, guess, truth = self.guesses()
        value = expected_calibration_error(self.scores[rows, guess], guess == truth)
        return _lower(_metric("ece", value, "no labelled images", {"images": len(rows)}))


def _problem(scores: np.ndarray, labels: np.ndarray) -> str:
    if np.isnan(scores).all():
        return "the training subset lacks one of its classes"
    for value, name in ((1, "positives"), (0, "negatives")):
        if not (labels == value).any():
            return f"no {name} in the test set"
    return ""


def _predicted(scores: np.ndarray, extra: Mapping[str, Any]) -> np.ndarray | None:
    """At thresholds where there are some, else the highest of exclusive classes; None for labels without thresholds."""
    if "thresholds" in extra:
        at = np.array([np.nan if t is None else t for t in extra["thresholds"]])
        return np.where(np.isnan(scores) | np.isnan(at), np.nan, scores >= at)
    return np.eye(scores.shape[1])[_argmax(scores)] if extra["exclusive"] else None


def _argmax(scores: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(scores), -np.inf, scores).argmax(axis=1)


def _column(table: Any, name: str) -> np.ndarray:
    return table.column(name).to_numpy(zero_copy_only=False).astype(np.float64)


def _known(metric: Callable[[np.ndarray, np.ndarray], float], values: np.ndarray, labels: np.ndarray) -> float:
    known = ~np.isnan(labels)
    return metric(values[known], labels[known])


def _mean(values: np.ndarray | Sequence[float]) -> float:
    """Mean of what is not NaN; NaN without any."""
    array = np.asarray(values, float)
    array = array[~np.isnan(array)]
    return float(array.mean()) if len(array) else float("nan")


def _metric(name: str, value: float, why: str, counts: dict[str, int]) -> Metric:
    if np.isnan(value):
        return Metric(name, None, reason=why, counts=counts)
    return Metric(name, float(value), counts=counts)


def _lower(metric: Metric) -> Metric:
    return replace(metric, higher_is_better=False)

"""Classification: what a linear probe, or fine-tuning, makes of a method's image features at a fraction of the labels.

`linear` solves L2-regularised logistic regressions on cached features for nine penalties and chooses by the macro AUROC
on validation. `finetune` trains the encoder with the head (engine/finetune.py); so does the supervised reference, from
scratch, in both modes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prior_bench import label_scores
from prior_bench.engine.protocol import FINETUNING
from prior_bench.label_scores import MIN_POSITIVE_GROUPS, LabelTask, macro_auroc
from prior_bench.metrics.ranking import best_f1_threshold
from prior_bench.task import Context, NotApplicable, Plan, Predictions, plans
from prior_bench.types import Cell, Target

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset

PENALTIES = tuple(10.0**k for k in range(-6, 3))
MAX_ITERATIONS = 1000

Probabilities = Callable[[Sequence[str]], np.ndarray]  # image ids -> (N, C), NaN for classes that were not learnt


@dataclass(slots=True)
class Fitted:
    """A trained classifier."""

    probabilities: Probabilities
    thresholds: list[float | None]  # for F1, from the validation
    macro_classes: list[str]
    details: dict[str, Any] = field(default_factory=dict)


class Classification(LabelTask):
    name: ClassVar[str] = "classification"
    title: ClassVar[str] = "Classification"
    modes: ClassVar[tuple[str, ...]] = ("linear", "finetune")
    wants: ClassVar[str] = "with training images"

    def accepts(self, target: Target) -> bool:
        return super().accepts(target) and target.train

    def plan(self, dataset: type[Dataset], target: Target, mode: str, fractions: Sequence[float],
             seeds: Sequence[int] | None) -> Iterator[Plan]:
        heads = dataset.budget.finetune.head_seeds if mode == "finetune" else (0,)
        return plans(target, mode, fractions, seeds or _subset_seeds(dataset, mode), heads)

    def settings(self, dataset: type[Dataset], target: Target, mode: str, profile: str) -> dict[str, Any]:
        finetune = asdict(dataset.budget.finetune)  # in both modes: the supervised reference is trained with it
        common = {"subset_seeds": _subset_seeds(dataset, mode), "selection": "validation auroc_macro",
                  "min_positive_groups": MIN_POSITIVE_GROUPS, "finetune": finetune}
        if mode == "finetune":
            return common | {"optimiser": "AdamW", "schedule": "cosine", "training": asdict(FINETUNING)}
        # Not `training` here too, though it is the supervised reference's: it would part stored results from new ones.
        return common | {"features": "pooled, standardised on the subset", "penalties": PENALTIES,
                         "max_iterations": MAX_ITERATIONS, "ties": "larger penalty"}

    def fit(self, context: Context, cell: Cell) -> Fitted:
        data = _Data(context.dataset, cell)
        if cell.mode == "finetune" or context.method.trains_on_target:
            probabilities, details = _finetuned(context, cell, data)
        else:
            probabilities, details = _linear(context, data)
        found = probabilities(data.validation)
        thresholds = [_threshold(p, y) for p, y in zip(found.T, data.validation_labels.T, strict=True)]
        return Fitted(probabilities, thresholds, data.macro_classes, data.counts | details)

    def predict(self, context: Context, cell: Cell, fitted: Fitted) -> Predictions:
        target, ids = context.dataset.target(cell.target), context.dataset.ids(cell.target, "test")
        if not ids:
            raise NotApplicable("the target has no test images")
        return label_scores.predictions(
            ids, target.classes, fitted.probabilities(ids), exclusive=target.kind == "exclusive", probabilities=True,
            thresholds=fitted.thresholds, macro_classes=fitted.macro_classes)


class _Data:
    """The training subset and the validation of a cell, and which classes can be learnt from it."""

    def __init__(self, dataset: Dataset, cell: Cell):
        from prior_bench.data.splits import training_subset

        target = dataset.target(cell.target)
        self.classes, self.exclusive = target.classes, target.kind == "exclusive"
        fraction = cell.fraction if cell.fraction is not None else 1.0
        self.train = training_subset(dataset, cell.target, fraction, cell.subset_seed)
        self.validation = dataset.ids(cell.target, "validation")
        table = dataset.labels(cell.target)
        self.train_labels, self.validation_labels = table.rows(self.train), table.rows(self.validation)
        self.valid = _both_classes(self.train_labels)  # (C,) bool
        if not self.valid.any():
            raise NotApplicable("too small: no label has both classes in the training subset")
        if not _both_classes(self.validation_labels[:, self.valid]).any():
            raise NotApplicable("no label that can be learnt has both classes in the validation set")
        seeds = {cell.subset_seed, *_subset_seeds(type(dataset), cell.mode)} if fraction < 1 else {cell.subset_seed}
        everywhere = self.valid.copy()
        for seed in seeds - {cell.subset_seed}:
            everywhere &= _both_classes(table.rows(training_subset(dataset, cell.target, fraction, seed)))
        self.macro_classes = [c for c, ok in zip(self.classes, everywhere, strict=True) if ok]
        self.counts = {"train": _counts(dataset, self.train, self.classes, self.train_labels),
                       "validation": _counts(dataset, self.validation, self.classes, self.validation_labels),
                       "classes_learnt": [c for c, ok in zip(self.classes, self.valid, strict=True) if ok],
                       "macro_classes": self.macro_classes}

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Columns of the valid classes (N, V) among all (N, C), the others NaN."""
        full = np.full((len(values), len(self.classes)), np.nan)
        full[:, self.valid] = values
        return full


def _linear(context: Context, data: _Data) -> tuple[Probabilities, dict[str, Any]]:
    from prior_bench.probes import fit_path

    def pooled(ids: Sequence[str]) -> np.ndarray:
        return context.features.images(context.dataset, ids, context.report).pooled

    path = fit_path(pooled(data.train), data.train_labels[:, data.valid], data.exclusive, PENALTIES, MAX_ITERATIONS)
    logits, labels = path.logits(pooled(data.validation)), data.validation_labels[:, data.valid]
    tried = [{"penalty": penalty, "validation_auroc_macro": macro_auroc(_probability(one, data.exclusive), labels),
              "iterations": int(path.iterations[p].max()), "converged": bool(path.converged[p].all())}
             for p, (penalty, one) in enumerate(zip(PENALTIES, logits, strict=True))]
    chosen = max(range(len(tried)), key=lambda p: (tried[p]["validation_auroc_macro"], PENALTIES[p]))

    def probabilities(ids: Sequence[str]) -> np.ndarray:
        return data.spread(_probability(path.logits(pooled(ids))[chosen], data.exclusive))

    return probabilities, {"penalty": PENALTIES[chosen], "tried": tried,
                           "features": len(path.standardiser.kept), "features_kept": int(path.standardiser.kept.sum())}


def _finetuned(context: Context, cell: Cell, data: _Data) -> tuple[Probabilities, dict[str, Any]]:
    from prior_bench.engine.finetune import finetune

    labels, validation_labels = data.train_labels[:, data.valid], data.validation_labels[:, data.valid]

    def select(logits: np.ndarray) -> float:
        return macro_auroc(_probability(logits, data.exclusive), validation_labels)

    logits, details = finetune(context, cell.head_seed, data.train, labels, data.exclusive, data.validation, select)

    def probabilities(ids: Sequence[str]) -> np.ndarray:
        return data.spread(_probability(logits(ids), data.exclusive))

    return probabilities, details


def _subset_seeds(dataset: type[Dataset], mode: str) -> tuple[int, ...]:
    return dataset.budget.finetune.subset_seeds if mode == "finetune" else dataset.budget.subset_seeds


def _both_classes(labels: np.ndarray) -> np.ndarray:
    return (labels == 1).any(axis=0) & (labels == 0).any(axis=0)


def _probability(logits: np.ndarray, exclusive: bool) -> np.ndarray:
    """Sigmoid or softmax of (N, C) logits, in float64."""
    from scipy.special import expit, softmax

    logits = np.asarray(logits, np.float64)
    return softmax(logits, axis=1) if exclusive else expit(logits)


def _threshold(probabilities: np.ndarray, labels: np.ndarray) -> float | None:
    known = ~np.isnan(labels) & ~np.isnan(probabilities)
    found = best_f1_threshold(probabilities[known], labels[known])
    return None if np.isnan(found) else found


def _counts(dataset: Dataset, ids: Sequence[str], classes: Sequence[str], labels: np.ndarray) -> dict[str, Any]:
    return {"images": len(ids), "groups": len({dataset.group_of(id) for id in ids}),
            "positives": dict(zip(classes, (labels == 1).sum(axis=0).tolist(), strict=True))}

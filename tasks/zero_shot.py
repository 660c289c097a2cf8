"""Zero-shot classification: images are compared with the dataset's prompts, nothing is trained.

A class vector is the mean of its prompts' unit-length joint vectors, made unit length. Labels: cosine with the positive
prompts minus cosine with the negative ones. Exclusive classes: the cosine with each. The answer for one image does not
depend on the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prior_bench import label_scores
from prior_bench.label_scores import MIN_POSITIVE_GROUPS
from prior_bench.task import Context, NotApplicable, Plan, Predictions, Task
from prior_bench.types import Cell, Metric, Target

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Fitted:
    """Class vectors (C, D); of labels the difference of the positive and the negative vector. And the prompts used."""

    vectors: np.ndarray
    details: dict[str, Any]


class ZeroShot(Task):
    name: ClassVar[str] = "zero-shot"
    title: ClassVar[str] = "Zero-shot classification"
    modes: ClassVar[tuple[str, ...]] = ("zero-shot",)
    needs_text: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = frozenset({"multilabel", "exclusive"})
    main_metric: ClassVar[str] = "auroc_macro"
    more_metrics: ClassVar[tuple[str, ...]] = ("auprc_macro", "accuracy", "f1_macro")

    def accepts(self, target: Target) -> bool:
        return super().accepts(target) and target.prompts

    def plan(self, dataset: type[Dataset], target: Target, mode: str, fractions: Sequence[float],
             seeds: Sequence[int] | None) -> Iterator[Plan]:
        yield Plan(target.name, mode, None)

    def settings(self, dataset: type[Dataset], target: Target, mode: str, profile: str) -> dict[str, Any]:
        prompts = dataset().prompts(target.name)  # written beside the dataset's code: they need no data root
        return {"score": "joint cosine, of labels positive minus negative", "class_vector": "mean, made unit length",
                "prompts": {name: asdict(one) for name, one in prompts.items()},
                "min_positive_groups": MIN_POSITIVE_GROUPS}

    def fit(self, context: Context, cell: Cell) -> Fitted:
        if context.profile != "standard":
            raise NotApplicable(f"zero-shot has no profile {context.profile!r}")
        target = context.dataset.target(cell.target)
        prompts = context.dataset.prompts(cell.target)

        def vector(sentences: Sequence[str]) -> np.ndarray:
            mean = context.features.texts(sentences).mean(axis=0)
            return mean / max(float(np.linalg.norm(mean)), 1e-12)

        positive = np.stack([vector(prompts[name].positive) for name in target.classes])
        details = {"prompts": {name: asdict(one) for name, one in prompts.items()}}
        if target.kind == "exclusive":
            return Fitted(positive, details)
        return Fitted(positive - np.stack([vector(prompts[name].negative) for name in target.classes]), details)

    def predict(self, context: Context, cell: Cell, fitted: Fitted) -> Predictions:
        target, ids = context.dataset.target(cell.target), context.dataset.ids(cell.target, "test")
        if not ids:
            raise NotApplicable("the target has no test images")
        joint = context.features.images(context.dataset, ids, context.report).joint
        if joint is None:
            raise NotApplicable(f"{cell.method} has no joint image vectors")
        scores = joint.astype(np.float64) @ fitted.vectors.astype(np.float64).T
        return label_scores.predictions(ids, target.classes, scores, exclusive=target.kind == "exclusive",
                                        probabilities=False)

    def attach(self, dataset: Dataset, cell: Cell, predictions: Predictions) -> Predictions:
        return label_scores.attach(dataset, cell.target, predictions)

    def score(self, predictions: Predictions) -> tuple[Metric, ...]:
        return label_scores.score(predictions)

    def replicates(self, predictions: Predictions, draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return label_scores.replicates(predictions, draws)

"""Zero-shot classification: images are compared with the dataset's prompts, nothing is trained.

A class vector is the mean of its prompts' unit-length joint vectors, made unit length. Labels: cosine with the positive
prompts minus cosine with the negative ones. Exclusive classes: the cosine with each. The answer for one image does not
depend on the others. Profiles beside `standard`:

- `standard-local` adds the method's local score: w x mean over a class's prompts, labels positive minus negative.
- `paper` is what the method's authors computed, with their prompts, for exclusive classes and at most 2,000 images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prior_bench import label_scores
from prior_bench.label_scores import MIN_POSITIVE_GROUPS, LabelTask
from prior_bench.task import Context, NotApplicable, Plan, Predictions
from prior_bench.types import Cell, Target

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset


PAPER_IMAGES = 2000


@dataclass(frozen=True, slots=True)
class Fitted:
    """Class vectors (C, D); of labels the difference of the positive and the negative vector. And the prompts used."""

    vectors: np.ndarray
    details: dict[str, Any]


class ZeroShot(LabelTask):
    name: ClassVar[str] = "zero-shot"
    title: ClassVar[str] = "Zero-shot classification"
    modes: ClassVar[tuple[str, ...]] = ("zero-shot",)
    profiles: ClassVar[tuple[str, ...]] = ("standard", "standard-local", "paper")
    needs_text: ClassVar[bool] = True
    wants: ClassVar[str] = "with prompts"
    more_metrics: ClassVar[tuple[str, ...]] = ("auprc_macro", "accuracy", "f1_macro")

    def accepts(self, target: Target) -> bool:
        return super().accepts(target) and target.prompts

    def plan(self, dataset: type[Dataset], target: Target, mode: str, fractions: Sequence[float],
             seeds: Sequence[int] | None) -> Iterator[Plan]:
        yield Plan(target.name, mode, None)

    def settings(self, dataset: type[Dataset], target: Target, mode: str, profile: str) -> dict[str, Any]:
        if profile == "paper":
            return {"score": "the method's own", "images": PAPER_IMAGES, "min_positive_groups": MIN_POSITIVE_GROUPS}
        prompts = dataset().prompts(target.name)  # written beside the dataset's code: they need no data root
        found = {"score": "joint cosine, of labels positive minus negative", "class_vector": "mean, made unit length",
                 "prompts": {name: asdict(one) for name, one in prompts.items()},
                 "min_positive_groups": MIN_POSITIVE_GROUPS}
        return found if profile == "standard" else found | {"local": "mean over prompts, by the method's weight"}

    def fit(self, context: Context, cell: Cell) -> Fitted | None:
        target = context.dataset.target(cell.target)
        if context.profile == "paper":
            if target.kind != "exclusive":
                raise NotApplicable("the papers' zero-shot protocols choose one of several exclusive classes")
            return None
        prompts = context.dataset.prompts(cell.target)

        def vector(sentences: Sequence[str]) -> np.ndarray:
            mean = context.features.texts(sentences).mean(axis=0)
            return mean / max(float(np.linalg.norm(mean)), 1e-12)

        positive = np.stack([vector(prompts[name].positive) for name in target.classes])
        details = {"prompts": {name: asdict(one) for name, one in prompts.items()}}
        if target.kind == "exclusive":
            return Fitted(positive, details)
        return Fitted(positive - np.stack([vector(prompts[name].negative) for name in target.classes]), details)

    def predict(self, context: Context, cell: Cell, fitted: Fitted | None) -> Predictions:
        target, ids = context.dataset.target(cell.target), context.dataset.ids(cell.target, "test")
        if not ids:
            raise NotApplicable("the target has no test images")
        if fitted is None:
            scores = _paper_scores(context, target, ids)
        else:
            joint = context.features.images(context.dataset, ids, context.report).joint
            if joint is None:
                raise NotApplicable(f"{cell.method} has no joint image vectors")
            scores = joint.astype(np.float64) @ fitted.vectors.astype(np.float64).T
            if context.profile == "standard-local":
                scores += context.method.local_weight * _local_scores(context, target, ids)
        return label_scores.predictions(ids, target.classes, scores, exclusive=target.kind == "exclusive",
                                        probabilities=False)


def _local_scores(context: Context, target: Target, ids: Sequence[str]) -> np.ndarray:
    """(I, C) mean local score of each class's positive prompts, of labels minus that of the negative ones."""
    prompts = context.dataset.prompts(target.name)
    signed = [(column, sentence, sign / len(sentences))
              for column, name in enumerate(target.classes)
              for sentences, sign in ((prompts[name].positive, 1), (prompts[name].negative, -1))
              if sign > 0 or target.kind != "exclusive"
              for sentence in sentences]
    texts = list(dict.fromkeys(sentence for _, sentence, _ in signed))
    local = context.features.local_scores(context.dataset, ids, texts, report=context.report)
    if local is None:
        raise NotApplicable(f"{context.method.name} has no local score")
    share = np.zeros((len(texts), len(target.classes)))
    for column, sentence, weight in signed:
        share[texts.index(sentence), column] += weight
    return np.stack(local).astype(np.float64) @ share


def _paper_scores(context: Context, target: Target, ids: Sequence[str]) -> np.ndarray:
    if len(ids) > PAPER_IMAGES:
        raise NotApplicable(f"the papers' zero-shot sets have at most {PAPER_IMAGES} images, this one {len(ids)}")
    scores = context.features.paper_zero_shot(context.dataset, ids, target.classes, context.report)
    if scores is None:
        raise NotApplicable(f"the authors of {context.method.name} have no zero-shot protocol")
    return scores

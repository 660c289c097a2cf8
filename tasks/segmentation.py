"""Segmentation: a UPerHead of MMSegmentation trained on the pyramid of a method, for one binary target.

Protocol version 1, profile `standard`: cross-entropy + Dice, AdamW 5e-4 with weight decay 0.05, 5 % warm-up, then
polynomial decay of power 0.9; size, width, batch and steps by the dataset's budget; the encoder `frozen` (default) or
`finetune`. Scale, rotation, brightness and contrast are augmented. Of the validations, the weights with the best
`dice_foreground_image_mean` are kept. Metrics are taken at 0.5 in source pixels, without ignored ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prior_bench.data.dataset import Dataset
from prior_bench.data.geometry import IGNORE
from prior_bench.engine.protocol import AUGMENTATION, ENCODER_RATE, LAST_STD, PRIOR, THRESHOLD
from prior_bench.metrics.overlap import METRICS, encode_mask, overlap_metrics, pixel_counts, terms
from prior_bench.task import Context, NotApplicable, Plan, Predictions, Task, plans
from prior_bench.types import Cell, Metric, Target

if TYPE_CHECKING:
    from prior_bench.engine.dense import TrainedHead

LR, WEIGHT_DECAY, WARMUP, POWER = 5e-4, 0.05, 0.05, 0.9


class Segmentation(Task):
    name: ClassVar[str] = "segmentation"
    title: ClassVar[str] = "Segmentation (UPerNet)"
    modes: ClassVar[tuple[str, ...]] = ("frozen", "finetune")
    kinds: ClassVar[frozenset[str]] = frozenset({"mask"})
    wants: ClassVar[str] = "with training images"
    main_metric: ClassVar[str] = "dice_foreground_image_mean"
    attached: ClassVar[tuple[str, ...]] = ("group", "truth", "ignore", "tp", "fp", "fn")

    def plan(self, dataset: type[Dataset], target: Target, mode: str, fractions: Sequence[float],
             seeds: Sequence[int] | None) -> Iterator[Plan]:
        budget = dataset.budget.segmentation
        return plans(target, mode, fractions, seeds or budget.subset_seeds, budget.head_seeds)

    def settings(self, dataset: type[Dataset], target: Target, mode: str, profile: str) -> dict[str, Any]:
        return {
            "budget": asdict(dataset.budget.segmentation), "head": "UPerHead, pools 1 2 3 6, dropout 0.1, batch norm",
            "start": f"foreground probability {PRIOR}, deviation {LAST_STD}",
            "loss": "cross-entropy + Dice", "optimiser": "AdamW", "lr": LR, "weight_decay": WEIGHT_DECAY,
            "warmup": WARMUP, "schedule": f"poly {POWER}",
            "encoder_rate": {"frozen": 0, "finetune": ENCODER_RATE}[mode], "augmentation": asdict(AUGMENTATION),
            "selection": self.main_metric, "threshold": THRESHOLD,
        }

    def fit(self, context: Context, cell: Cell) -> TrainedHead:
        from prior_bench.data.splits import training_subset
        from prior_bench.engine import openmmlab

        dataset, budget = context.dataset, context.dataset.budget.segmentation
        ids = training_subset(dataset, cell.target, cell.fraction or 1.0, cell.subset_seed)
        validation = dataset.ids(cell.target, "validation")
        if not validation:
            raise NotApplicable("the target has no validation images to select on")

        def mask(image_id: str) -> np.ndarray:
            return dataset.load_mask(cell.target, image_id)

        with openmmlab.scope("mmseg"):
            from prior_bench.engine import dense, segmentor
            from prior_bench.engine.runner import warmup_poly

            training = dense.training_of(context.method, cell.mode)
            images = dense.DenseImages(context, [*ids, *validation], budget.size)
            trained = dense.train(
                context, cell, budget,
                build=lambda: segmentor.build_segmentor(context.method, training, images.spec, budget.channels),
                data=segmentor.MaskDataset(images, ids, mask, np.random.default_rng([cell.head_seed, 1])),
                validation=segmentor.MaskDataset(images, validation),
                metric=segmentor.OverlapMetric(images, mask), select=self.main_metric,
                optimisation=dense.Optimisation(lambda step, steps: warmup_poly(step, steps, WARMUP, POWER),
                                                WEIGHT_DECAY, LR),
                augmented=True)
        trained.details["train_positives"] = sum(bool((mask(i) == 1).any()) for i in ids)
        return trained

    def predict(self, context: Context, cell: Cell, fitted: TrainedHead) -> Predictions:
        import pyarrow as pa

        from prior_bench.engine import dense, segmentor

        ids = context.dataset.ids(cell.target, "test")
        images = dense.DenseImages(context, ids, fitted.budget.size)
        rows = []
        for id, sample in zip(ids, dense.predict(fitted, segmentor.MaskDataset(images, ids)), strict=True):
            geometry = images.geometry(id)
            found = geometry.mask_back(segmentor.probability(sample)) > THRESHOLD
            rows.append({"image": id, "height": geometry.source[0], "width": geometry.source[1],
                         "prediction": encode_mask(found)})
        return Predictions(pa.Table.from_pylist(rows, schema=pa.schema([
            ("image", pa.string()), ("height", pa.int32()), ("width", pa.int32()), ("prediction", pa.string())])))

    def attach(self, dataset: Dataset, cell: Cell, predictions: Predictions) -> Predictions:
        import pyarrow as pa

        from prior_bench.metrics.overlap import decode_mask

        groups, truths, ignored, counts = [], [], [], []
        for row in predictions.table.to_pylist():
            mask = dataset.load_mask(cell.target, row["image"])
            if mask.shape != (size := (row["height"], row["width"])):
                raise ValueError(f"{row['image']}: the prediction is {size}, the mask {mask.shape}")
            lesion, ignore = mask == 1, mask == IGNORE
            found = decode_mask(row["prediction"], row["height"], row["width"])
            counts.append(pixel_counts(found, lesion, ignore))
            groups.append(dataset.group_of(row["image"]))
            truths.append(encode_mask(lesion))
            ignored.append(encode_mask(ignore))
        table = predictions.table.append_column("group", pa.array(groups, pa.string()))
        table = table.append_column("truth", pa.array(truths, pa.string()))
        table = table.append_column("ignore", pa.array(ignored, pa.string()))
        for name, column in zip(("tp", "fp", "fn"), np.array(counts, np.int64).reshape(-1, 3).T, strict=True):
            table = table.append_column(name, pa.array(column))
        return Predictions(table, predictions.extra)

    def score(self, predictions: Predictions) -> tuple[Metric, ...]:
        counts = _counts(predictions)
        groups = predictions.table.column("group").to_pylist()
        shown = {"images": len(counts), "positives": int((counts[:, 0] + counts[:, 2] > 0).sum()),
                 "groups": len(set(groups))}
        values = overlap_metrics(counts)
        return tuple(
            Metric(name, None, reason="no image of the test set has foreground", counts=shown) if np.isnan(values[name])
            else Metric(name, values[name], counts=shown) for name in METRICS)

    def replicates(self, predictions: Predictions, draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        from prior_bench.statistics import Bootstrap, quotient

        parts = terms(_counts(predictions))
        bootstrap = Bootstrap(predictions.table.column("group").to_pylist(), draws)
        sums = bootstrap.sums(np.stack([term for pair in parts.values() for term in pair], axis=1))
        return dict(zip(parts, quotient(sums[:, ::2], sums[:, 1::2]).T, strict=True))


def _counts(predictions: Predictions) -> np.ndarray:
    """(N, 3) true positives, false positives and false negatives of each image."""
    return np.stack([predictions.table.column(name).to_numpy() for name in ("tp", "fp", "fn")], axis=1)

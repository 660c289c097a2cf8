"""Detection: a YOLOv3 of MMDetection trained on the pyramid of a method.

Protocol version 1, profile `standard`: YOLOv3 head on strides 8, 16 and 32, AdamW 5e-4 with weight decay 1e-6, 5 %
warm-up, then cosine; size, width, batch and steps by the dataset's budget; the encoder `frozen` (default) or
`finetune`; no augmentation. No score threshold, NMS at IoU 0.5, at most 100 boxes an image; images without boxes stay.
Of the validations, the weights with the best `map_50_95` are kept. Metrics are taken in source pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prior_bench.data.dataset import Boxes, Dataset
from prior_bench.engine.protocol import ENCODER_RATE
from prior_bench.metrics.boxes import METRICS, ImageBoxes, Matches, box_metrics, match
from prior_bench.task import Context, NotApplicable, Plan, Predictions, Task, plans
from prior_bench.types import Cell, Metric, Target

if TYPE_CHECKING:
    from prior_bench.engine.dense import TrainedHead

LR, WEIGHT_DECAY, WARMUP = 5e-4, 1e-6, 0.05
NMS_IOU, CANDIDATES, MAX_BOXES = 0.5, 1000, 100


class Detection(Task):
    name: ClassVar[str] = "detection"
    title: ClassVar[str] = "Detection (YOLOv3)"
    modes: ClassVar[tuple[str, ...]] = ("frozen", "finetune")
    kinds: ClassVar[frozenset[str]] = frozenset({"boxes"})
    wants: ClassVar[str] = "with training images"
    main_metric: ClassVar[str] = "map_50_95"
    attached: ClassVar[tuple[str, ...]] = ("group", "gt_boxes", "gt_labels")

    def plan(self, dataset: type[Dataset], target: Target, mode: str, fractions: Sequence[float],
             seeds: Sequence[int] | None) -> Iterator[Plan]:
        budget = dataset.budget.detection
        return plans(target, mode, fractions, seeds or budget.subset_seeds, budget.head_seeds)

    def settings(self, dataset: type[Dataset], target: Target, mode: str, profile: str) -> dict[str, Any]:
        return {
            "budget": asdict(dataset.budget.detection), "head": "YOLOv3, neck c, c/2, c/4, anchors x size / 416",
            "optimiser": "AdamW", "lr": LR, "weight_decay": WEIGHT_DECAY, "warmup": WARMUP, "schedule": "cosine",
            "encoder_rate": {"frozen": 0, "finetune": ENCODER_RATE}[mode], "augmentation": None,
            "selection": self.main_metric,
            "score_threshold": 0, "candidates": CANDIDATES, "nms_iou": NMS_IOU, "max_boxes": MAX_BOXES,
        }

    def fit(self, context: Context, cell: Cell) -> TrainedHead:
        from prior_bench.data.splits import training_subset
        from prior_bench.engine import openmmlab

        dataset, budget = context.dataset, context.dataset.budget.detection
        ids = training_subset(dataset, cell.target, cell.fraction or 1.0, cell.subset_seed)
        validation = dataset.ids(cell.target, "validation")
        if not validation:
            raise NotApplicable("the target has no validation images to select on")
        classes = dataset.target(cell.target).classes

        def boxes(image_id: str) -> Boxes:
            return dataset.load_boxes(cell.target, image_id)

        with openmmlab.scope("mmdet"):
            from prior_bench.engine import dense, detector
            from prior_bench.engine.runner import warmup_cosine

            training = dense.training_of(context.method, cell.mode)
            images = dense.DenseImages(context, [*ids, *validation], budget.size)
            suppression = detector.Suppression(CANDIDATES, NMS_IOU, MAX_BOXES)
            trained = dense.train(
                context, cell, budget,
                build=lambda: detector.build_detector(context.method, training, images.spec, budget.channels,
                                                      len(classes), suppression),
                data=detector.BoxDataset(images, ids, classes, boxes),
                validation=detector.BoxDataset(images, validation, classes),
                metric=detector.BoxMetric(images, classes, boxes), select=self.main_metric,
                optimisation=dense.Optimisation(lambda step, steps: warmup_cosine(step, steps, WARMUP),
                                                WEIGHT_DECAY, LR),
                augmented=False)
        labels = np.concatenate([boxes(i).labels for i in ids])
        trained.details["train_boxes"] = {c: int((labels == n).sum()) for n, c in enumerate(classes)}
        return trained

    def predict(self, context: Context, cell: Cell, fitted: TrainedHead) -> Predictions:
        import pyarrow as pa

        from prior_bench.engine import dense, detector

        ids = context.dataset.ids(cell.target, "test")
        classes = context.dataset.target(cell.target).classes
        images = dense.DenseImages(context, ids, fitted.budget.size)
        rows = []
        data = detector.BoxDataset(images, ids, classes)
        for id, sample in zip(ids, dense.predict(fitted, data), strict=True):
            found, scores, labels = detector.found_boxes(sample)
            boxes = images.geometry(id).boxes_back(found)
            rows.append({"image": id, "boxes": boxes.tolist(), "scores": scores.tolist(), "labels": labels.tolist()})
        table = pa.Table.from_pylist(rows, schema=pa.schema([
            ("image", pa.string()), ("boxes", pa.list_(pa.list_(pa.float32()))), ("scores", pa.list_(pa.float32())),
            ("labels", pa.list_(pa.int16()))]))
        return Predictions(table, {"classes": list(classes)})

    def attach(self, dataset: Dataset, cell: Cell, predictions: Predictions) -> Predictions:
        import pyarrow as pa

        ids = predictions.table.column("image").to_pylist()
        truth = [dataset.load_boxes(cell.target, id) for id in ids]
        table = predictions.table.append_column("group", pa.array([dataset.group_of(id) for id in ids], pa.string()))
        table = table.append_column("gt_boxes", pa.array([np.asarray(t.xyxy).tolist() for t in truth],
                                                         pa.list_(pa.list_(pa.float32()))))
        table = table.append_column("gt_labels", pa.array([np.asarray(t.labels).tolist() for t in truth],
                                                          pa.list_(pa.int16())))
        return Predictions(table, predictions.extra)

    def score(self, predictions: Predictions) -> tuple[Metric, ...]:
        classes = predictions.extra["classes"]
        matches = _matches(predictions)
        images = len(predictions.table)
        boxes = {c: int(m.truths.sum()) for c, m in zip(classes, matches, strict=True)}
        means = {"images": images, "boxes": sum(boxes.values()), "classes": sum(n > 0 for n in boxes.values()),
                 "classes_left_out": sum(n == 0 for n in boxes.values())}
        each = {f"{name}_{c}": {"images": images, "boxes": n} for name in METRICS for c, n in boxes.items()}
        metrics = []
        for name, (value,) in box_metrics(matches, classes).items():
            counts = each.get(name, means)
            metrics.append(Metric(name, None, reason="no box in the test set", counts=counts) if np.isnan(value)
                           else Metric(name, float(value), counts=counts))
        return tuple(metrics)

    def replicates(self, predictions: Predictions, draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        groups = predictions.table.column("group").to_pylist()
        weights = np.stack([draws[group] for group in groups], axis=1)
        return box_metrics(_matches(predictions), predictions.extra["classes"], weights)


def _matches(predictions: Predictions) -> list[Matches]:
    columns = [predictions.table.column(name).to_pylist()
               for name in ("boxes", "scores", "labels", "gt_boxes", "gt_labels")]
    images = [ImageBoxes(np.array(boxes, float).reshape(-1, 4), np.array(scores, float), np.array(labels, int),
                         np.array(truth, float).reshape(-1, 4), np.array(truth_labels, int))
              for boxes, scores, labels, truth, truth_labels in zip(*columns, strict=True)]
    return match(images, len(predictions.extra["classes"]))

"""The detection task on the toy dataset: it learns, and every number can be rebuilt from its predictions."""

from dataclasses import replace
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from prior_bench.engine.precision import Precision
from prior_bench.method import ImageFeatures, Method
from prior_bench.metrics.boxes import ImageBoxes, box_metrics, match
from prior_bench.task import Context, Predictions, evaluate
from prior_bench.tasks.detection import Detection
from prior_bench.types import Cell, DenseBudget, ImageInput

BUDGET = DenseBudget(size=64, channels=32, batch=8, steps=150, validations=3)


class Pixels(Method):
    """Every pixel's grey value, laid into channels: an encoder from which a head can learn everything."""

    name: ClassVar[str] = "pixels"
    pyramid_channels = (16, 16, 16, 16)

    def __init__(self):
        super().__init__()
        self.image_input = ImageInput(size=64, mean=(0.3,), std=(0.15,))

    @classmethod
    def from_recipe(cls, recipe, texts=None, tokenizer=None):
        return cls()

    def encode_image(self, images):
        return ImageFeatures(None, self.pyramid(images)[-1])

    def pyramid(self, images):
        return tuple(nn.functional.pixel_unshuffle(nn.functional.avg_pool2d(images, s), 4) for s in (1, 2, 4, 8))


@pytest.fixture(scope="module")
def outcome(toy_class, tmp_path_factory):
    class Toy(toy_class):
        budget = replace(toy_class.budget, detection=BUDGET)

    precision = Precision(torch.device("cpu"), None)
    context = Context(Pixels(), Toy(), "w", precision, None, tmp_path_factory.mktemp("cache"))
    cell = Cell("pixels", "r", "none", 0, "w", "detection", 1, "standard", "frozen", "s", "toy", "d", "shapes", 1.0)
    return evaluate(Detection(), context, cell), context, cell


def test_it_learns(outcome):
    metrics = {m.name: m.value for m in outcome[0].metrics}
    assert metrics["ap_50"] > 0.3
    assert sum(outcome[0].details["train_boxes"].values()) > 0


def test_metrics_are_rebuilt_from_the_table(outcome):
    result, context, _ = outcome
    images = []
    for row in result.predictions.table.to_pylist():
        truth = context.dataset.load_boxes("shapes", row["image"])
        np.testing.assert_allclose(np.reshape(row["gt_boxes"], (-1, 4)), truth.xyxy)
        assert row["gt_labels"] == truth.labels.tolist()
        assert len(row["boxes"]) <= 100
        assert sorted(row["scores"], reverse=True) == row["scores"]
        boxes = np.reshape(row["boxes"], (-1, 4))
        assert ((boxes >= 0) & (boxes <= 64)).all()
        images.append(ImageBoxes(boxes, np.array(row["scores"]), np.array(row["labels"]), truth.xyxy, truth.labels))
    expected = box_metrics(match(images, 3), ("disc", "bar", "cross"))
    for metric in result.metrics:
        assert metric.value == pytest.approx(expected[metric.name][0], abs=1e-9)
    assert len(images) == len(context.dataset.ids("shapes", "test"))  # those without boxes too


def test_replicates_of_whole_draws_are_the_metrics(outcome):
    result, _, _ = outcome
    groups = set(result.predictions.table.column("group").to_pylist())
    found = Detection().replicates(result.predictions, {g: np.array([1, 2]) for g in groups})
    for metric in result.metrics:
        np.testing.assert_allclose(found[metric.name], metric.value, atol=1e-12)


def predictions(boxes, labels, gt_boxes, gt_labels):
    lists = pa.list_(pa.list_(pa.float32()))
    table = pa.table({
        "image": ["a", "b"], "group": ["1", "2"], "boxes": pa.array(boxes, lists),
        "scores": pa.array([[0.5] * len(b) for b in boxes], pa.list_(pa.float32())),
        "labels": pa.array(labels, pa.list_(pa.int16())), "gt_boxes": pa.array(gt_boxes, lists),
        "gt_labels": pa.array(gt_labels, pa.list_(pa.int16()))})
    return Predictions(table, {"classes": ["nodule", "mass"]})


def test_no_detection_is_zero_not_missing():
    box = [0.0, 0.0, 9.0, 9.0]
    metrics = {m.name: m for m in Detection().score(predictions([[], []], [[], []], [[box], [box]], [[0], [1]]))}
    assert all(metrics[name].value == 0 for name in ("map_50_95", "ap_50", "map_40_75", "froc"))
    assert metrics["map_50_95"].counts == {"images": 2, "boxes": 2, "classes": 2, "classes_left_out": 0}


def test_a_class_without_boxes_is_null_and_left_out():
    box = [0.0, 0.0, 9.0, 9.0]
    metrics = {m.name: m for m in Detection().score(predictions([[box], [box]], [[0], [1]], [[box], []], [[0], []]))}
    assert metrics["ap_50"].value == 1
    assert metrics["ap_50"].counts["classes_left_out"] == 1
    assert metrics["ap_50_mass"].value is None
    assert "no box" in metrics["ap_50_mass"].reason


def test_plan(toy_class):
    plans = list(Detection().plan(toy_class, toy_class.targets["shapes"], "frozen", (0.1, 1.0), None))
    assert [(p.fraction, p.subset_seed, p.head_seed) for p in plans] == [(0.1, 0, 0), (1.0, 0, 0)]

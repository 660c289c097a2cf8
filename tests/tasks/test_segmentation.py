"""The segmentation task on the toy dataset: it learns, and every number can be rebuilt from its predictions."""

import subprocess
import sys
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from torch import nn

from prior_bench.engine.precision import Precision
from prior_bench.method import ImageFeatures, Method
from prior_bench.task import Context, NotApplicable, evaluate
from prior_bench.tasks.segmentation import Segmentation
from prior_bench.types import Cell, DenseBudget, ImageInput

BUDGET = DenseBudget(size=64, channels=32, batch=8, steps=80, validations=3)


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
        budget = replace(toy_class.budget, segmentation=BUDGET)

    precision = Precision(torch.device("cpu"), None)
    context = Context(Pixels(), Toy(), "w", precision, None, tmp_path_factory.mktemp("cache"))
    cell = Cell("pixels", "r", "none", 0, "w", "segmentation", 1, "standard", "frozen", "s", "toy", "d", "disc", 1.0)
    return evaluate(Segmentation(), context, cell), context, cell


def test_it_learns(outcome):
    metrics = {m.name: m.value for m in outcome[0].metrics}
    assert metrics["dice_foreground_image_mean"] > 0.6
    assert len(outcome[0].details["validation"]) == 3
    assert outcome[0].details["train_positives"] > 0


def test_metrics_are_rebuilt_from_the_run_length_codes(outcome):
    def decoded(row, name):
        return rle.decode({"size": [row["height"], row["width"]], "counts": row[name].encode()}).astype(bool)

    result, context, _ = outcome
    dice = []
    for row in result.predictions.table.to_pylist():
        found, truth, ignore = (decoded(row, name) for name in ("prediction", "truth", "ignore"))
        mask = context.dataset.load_mask("disc", row["image"])
        assert (truth == (mask == 1)).all()
        assert (ignore == (mask == 255)).all()
        found &= ~ignore
        counts = (found & truth).sum(), (found & ~truth).sum(), (~found & truth).sum()
        assert (row["tp"], row["fp"], row["fn"]) == counts
        if truth.any():
            dice.append(2 * (found & truth).sum() / (found.sum() + truth.sum()))
    metric = {m.name: m for m in result.metrics}["dice_foreground_image_mean"]
    assert metric.value == pytest.approx(np.mean(dice))
    assert metric.counts["positives"] == len(dice)


def test_replicates_of_whole_draws_are_the_metrics(outcome):
    result, _, _ = outcome
    groups = set(result.predictions.table.column("group").to_pylist())
    found = Segmentation().replicates(result.predictions, {g: np.array([1, 2]) for g in groups})
    for metric in result.metrics:
        np.testing.assert_allclose(found[metric.name], metric.value)


def test_draws_without_a_lesion_are_undefined(outcome):
    result, _, _ = outcome
    rows = result.predictions.table.to_pylist()
    empty = {r["group"] for r in rows} - {r["group"] for r in rows if r["tp"] + r["fn"]}
    draws = {r["group"]: np.array([int(r["group"] in empty)]) for r in rows}
    found = Segmentation().replicates(result.predictions, draws)
    assert np.isnan(found["dice_foreground_image_mean"]).all()
    assert not np.isnan(found["dice_foreground_image_mean_empty_is_one"]).any()


def test_no_foreground_is_null_with_a_reason(outcome):
    result, _, _ = outcome
    table = result.predictions.table
    empty = table.filter((table["tp"].to_numpy() + table["fn"].to_numpy()) == 0)
    metrics = {m.name: m for m in Segmentation().score(replace(result.predictions, table=empty))}
    assert metrics["dice_foreground_image_mean"].value is None
    assert metrics["dice_foreground_image_mean"].reason
    assert metrics["dice_foreground_image_mean_empty_is_one"].value is not None


def test_too_few_training_groups_are_not_applicable(outcome):
    _, context, cell = outcome
    with pytest.raises(NotApplicable, match="too small"):
        Segmentation().fit(context, replace(cell, fraction=0.01))


def test_plan(toy_class):
    target = toy_class.targets["disc"]
    plans = list(Segmentation().plan(toy_class, target, "frozen", (0.1, 1.0), (3, 4)))
    assert [(p.fraction, p.subset_seed) for p in plans] == [(0.1, 3), (0.1, 4), (1.0, 0)]
    assert not list(Segmentation().plan(toy_class, replace(target, train=False), "frozen", (1.0,), None))


def test_planning_imports_no_torch():
    code = ("import sys, prior_bench.tasks.segmentation, prior_bench.tasks.detection\n"
            "print([m for m in ('torch', 'pyarrow', 'pydantic', 'scipy') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

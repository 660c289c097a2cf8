"""A toy dataset, two toy methods and two toy tasks, for `--plugin`: what the harness is tested on, without training.

Environment variables steer it, because it runs in other processes: TOY_SLEEP (seconds a cell takes), TOY_FAIL (the
fraction at which it has a bug), TOY_USER_ERROR (the fraction at which the user made a mistake), TOY_BAD (image ids).
"""

from __future__ import annotations

import os
import time
from typing import ClassVar

import numpy as np

from prior_bench.data.dataset import Dataset, LabelTable
from prior_bench.errors import UserError
from prior_bench.method import ImageFeatures, Method
from prior_bench.recipes import Recipe
from prior_bench.task import NotApplicable, Plan, Predictions, Task
from prior_bench.types import Budget, DenseBudget, ImageInput, ImageRecord, Metric, Study, Target

SPLITS = ("train", "train", "validation", "test")


class ToyData(Dataset):
    name = "toy-data"
    title = "Forty patients"
    needs_root = False
    targets: ClassVar = {"findings": Target("findings", "multilabel", ("a", "b")),
                         "extra": Target("extra", "multilabel", ("a", "b"), default=False)}
    budget = Budget(DenseBudget(32, 8, 2, 2), DenseBudget(32, 8, 2, 2), subset_seeds=(0, 1))

    def load_studies(self):
        return [Study(f"s{i}", f"g{i // 2}", SPLITS[i // 2 % 4], (ImageRecord(f"i{i}"),)) for i in range(80)]

    def fingerprint(self):
        return "toy"

    def load_labels(self, target):
        values = np.random.default_rng(0).integers(0, 2, (80, 2)).astype(np.float32)
        return LabelTable(tuple(f"i{i}" for i in range(80)), ("a", "b"), values)

    def read_image(self, record):
        from PIL import Image

        if record.id in os.environ.get("TOY_BAD", "").split(","):
            raise UserError("the image cannot be used: the file is empty", where=record.id)
        noise = np.random.default_rng(int(record.id[1:])).integers(0, 256, (24, 24), np.uint8)
        return Image.fromarray(noise).resize((96, 96))


class ToyMethod(Method):
    name = "toy-method"
    has_text = False
    pretrains = False
    recipe_class = Recipe
    image_input = ImageInput(32)

    @classmethod
    def from_recipe(cls, recipe, texts=None, tokenizer=None):
        return cls()

    def encode_image(self, images):
        return ImageFeatures(None, images)

    def pyramid(self, images):
        return images, images, images, images

    @property
    def pyramid_channels(self):
        return 1, 1, 1, 1


class ToyOther(ToyMethod):
    name = "toy-other"


class ToyTask(Task):
    """Predicts noise that depends on method, fraction and seed; the metric is the mean error on the test images."""

    name = "toy-task"
    title = "Toy"
    modes = ("linear", "finetune")
    profiles = ("standard", "paper")
    kinds = frozenset({"multilabel"})
    main_metric = "error"

    def plan(self, dataset, target, mode, fractions, seeds):
        for fraction in fractions:
            for seed in [0] if fraction == 1 else seeds if seeds is not None else dataset.budget.subset_seeds:
                yield Plan(target.name, mode, fraction, seed)

    def settings(self, dataset, target, mode, profile):
        return {"profile": profile}

    def fit(self, context, cell):
        context.report("fit", 0.5)
        fraction = f"{cell.fraction:g}"
        if os.environ.get("TOY_FAIL") == fraction:
            raise ZeroDivisionError("a bug in the toy task")
        if os.environ.get("TOY_USER_ERROR") == fraction:
            raise UserError("the toy file is broken", where="toy.csv", fix="mend it")
        time.sleep(float(os.environ.get("TOY_SLEEP", "0")))

    def predict(self, context, cell, fitted):
        import pyarrow as pa

        ids = context.dataset.ids(cell.target, "test")
        seed = [len(cell.method), round(cell.fraction * 100), cell.subset_seed]
        return Predictions(pa.table({"image": ids, "value": np.random.default_rng(seed).random(len(ids))}))

    def attach(self, dataset, cell, predictions):
        groups = [dataset.group_of(id) for id in predictions.table["image"].to_pylist()]
        return Predictions(predictions.table.append_column("group", [groups]), {"unit": "none"})

    def score(self, predictions):
        value = float(np.mean(predictions.table["value"].to_numpy()))
        return (Metric("error", value, higher_is_better=False, counts={"images": len(predictions.table)}),
                Metric("never", None, reason="no positives"))

    def replicates(self, predictions, draws):
        counts = np.stack([draws[g] for g in predictions.table["group"].to_pylist()]).astype(float)
        values = predictions.table["value"].to_numpy()
        return {"error": values @ counts / counts.sum(0)}


class ToyText(ToyTask):
    """A task that needs text, which the toy methods lack."""

    name = "toy-text"
    modes = ("zero-shot",)
    needs_text = True

    def plan(self, dataset, target, mode, fractions, seeds):
        yield Plan(target.name, mode, None)

    def fit(self, context, cell):
        raise NotApplicable("never reached")

"""Pairing: how often an image is nearer to its own report than to the next image's."""

import numpy as np
import pyarrow as pa

from prior_bench.task import Plan, Predictions, Task
from prior_bench.types import Metric


class Pairing(Task):
    name, title, modes, kinds = "pairing", "Pairing", ("pairing",), frozenset({"report"})
    needs_text, main_metric = True, "accuracy"

    def plan(self, dataset, target, mode, fractions, seeds):
        yield Plan(target.name, mode, None)

    def settings(self, dataset, target, mode, profile):
        return {"against": "the next image's report"}

    def fit(self, context, cell):
        return None

    def predict(self, context, cell, fitted):
        ids = context.dataset.ids(cell.target, "test")
        images = context.features.images(context.dataset, ids).joint
        texts = context.features.texts([context.dataset.study_of[i].report.text for i in ids])
        own, other = (images * texts).sum(1), (images * np.roll(texts, 1, axis=0)).sum(1)
        return Predictions(pa.table({"image": ids, "margin": own - other}))

    def attach(self, dataset, cell, predictions):
        groups = [dataset.group_of(i) for i in predictions.table["image"].to_pylist()]
        return Predictions(predictions.table.append_column("group", [groups]))

    def score(self, predictions):
        correct = predictions.table["margin"].to_numpy() > 0
        return (Metric("accuracy", float(correct.mean()), counts={"images": len(correct)}),)

    def replicates(self, predictions, draws):
        counts = np.stack([draws[g] for g in predictions.table["group"].to_pylist()]).astype(float)
        correct = predictions.table["margin"].to_numpy() > 0
        return {"accuracy": correct @ counts / counts.sum(axis=0)}

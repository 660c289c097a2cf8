"""Results made by hand: label scores of several methods, seeds and fractions, stored as `run` stores them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from prior_bench import label_scores, plugins, results
from prior_bench.leaderboard.tables import known
from prior_bench.task import Predictions
from prior_bench.types import Cell, Result

LABELS = ("a", "b", "c")


def score_table(rng, skill, n=60, exclusive=False, probabilities=True, missing=0.1):
    """Predictions of n images in n/2 groups; `skill` is how far scores of positives lie above the others."""
    if exclusive:
        labels = np.eye(len(LABELS))[np.arange(n) % len(LABELS)]
    else:
        labels = (np.random.default_rng(7).random((n, len(LABELS))) < 0.4).astype(float)
        labels[np.random.default_rng(8).random(labels.shape) < missing] = np.nan
    scores = rng.normal(size=labels.shape).round(1) + skill * np.nan_to_num(labels)
    if probabilities:
        scores = 1 / (1 + np.exp(-scores))
    if exclusive and probabilities:
        scores /= scores.sum(axis=1, keepdims=True)
    bare = label_scores.predictions([f"i{k:02d}" for k in range(n)], LABELS, scores, exclusive=exclusive,
                                    probabilities=probabilities)
    table = bare.table.append_column("group", pa.array([f"g{k // 2}" for k in range(n)]))
    for name, column in zip(LABELS, labels.T, strict=True):
        table = table.append_column(f"label_{name}", pa.array(column, pa.float64(), from_pandas=True))
    return Predictions(table, bare.extra)


@pytest.fixture
def labelled(tmp_path):
    """Stores a result with label scores; `labelled.known()` has the tables of all of them."""
    folder = tmp_path / "results"

    def store(method, skill=1.0, *, task="classification", fraction=1.0, subset=0, pretrain=0, source="phantom",
              recipe="small", details=None, weights=None, target="findings", **made):
        cell = Cell(method, recipe, source, pretrain, f"w{method}{recipe}{pretrain}{source}", task, 1, "standard",
                    plugins.load("tasks", task).modes[0], "s", "phantom", "d", target, fraction, subset)
        seed = [len(method), ord(method[0]), subset, pretrain, int(100 * (fraction or 0))]
        predictions = score_table(np.random.default_rng(seed), skill, **made)
        metrics = plugins.load("tasks", task)().score(predictions)
        provenance = {"finished": "2026-01-01", "weights": weights or {}}
        results.write_result(folder, Result(cell, "done", tuple(metrics), details=details or {}, provenance=provenance),
                             predictions)
        return predictions

    store.folder = folder
    store.known = lambda: known(folder, tmp_path / "memo")
    return store

"""What every table waits for: the probes of a training subset, and the bootstrap of each kind of metric."""

from __future__ import annotations

import numpy as np
import pytest

from prior_bench.metrics.boxes import IOUS, Matches, box_metrics
from prior_bench.metrics.overlap import terms
from prior_bench.metrics.retrieval import recall_at
from prior_bench.probes import fit_path
from prior_bench.statistics import Bootstrap, group_draws
from prior_bench.tasks.classification import PENALTIES


def test_probes_of_2000_images(benchmark):
    """2,000 images, 512 correlated features, 8 labels, all penalties."""
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(512, 512)) / np.arange(1, 513)
    features = np.maximum(rng.normal(size=(2000, 512)) @ mix.T + 0.5, 0).astype(np.float32)
    signal = (features - features.mean(0)) @ rng.normal(size=(512, 8)) / 16
    labels = (signal + rng.normal(size=(2000, 8)) > 1).astype(float)
    path = benchmark.pedantic(lambda: fit_path(features, labels, False, PENALTIES), rounds=3, warmup_rounds=1)
    assert path.converged.all()


IMAGES = 25_000
GROUPS = [f"patient-{i}" for i in range(IMAGES)]


@pytest.mark.parametrize("metric", ["auroc", "average_precision"])
def test_bootstrap_of_25000_images(benchmark, metric):
    """1,000 draws (and the spare ones) of the AUROC or AP of 14 labels on 25,000 images, each its own group."""
    rng = np.random.default_rng(0)
    labels = (rng.random((IMAGES, 14)) < np.linspace(0.01, 0.3, 14)).astype(float)
    scores = rng.normal(size=labels.shape) + labels
    draws = group_draws(GROUPS)

    def macro():
        replicates = getattr(Bootstrap(GROUPS, draws), metric)
        return np.mean([replicates(scores[:, i], labels[:, i]) for i in range(14)], axis=0)

    assert np.isfinite(benchmark.pedantic(macro, rounds=3, warmup_rounds=1)).all()


def test_bootstrap_of_dice(benchmark):
    """The four overlap metrics from the pixel counts of 25,000 images."""
    draws = group_draws(GROUPS)
    counts = np.random.default_rng(0).integers(0, 400, (IMAGES, 3))

    def replicates():
        parts = np.stack([term for pair in terms(counts).values() for term in pair], axis=1)
        return Bootstrap(GROUPS, draws).sums(parts)

    assert np.isfinite(benchmark.pedantic(replicates, rounds=3, warmup_rounds=1)).all()


def test_bootstrap_of_recall(benchmark):
    """recall@1, @5, @10 from the ranks of 25,000 queries (the means of precision@k are the same sums)."""
    draws = group_draws(GROUPS)
    rank = np.random.default_rng(0).integers(1, 100, IMAGES)

    def replicates():
        bootstrap = Bootstrap(GROUPS, draws)
        return [bootstrap.mean(recall_at(rank, k)) for k in (1, 5, 10)]

    assert np.isfinite(benchmark.pedantic(replicates, rounds=3, warmup_rounds=1)).all()


def test_bootstrap_of_map(benchmark):
    """All box metrics of 2,000 images with 20 detections and one box each of 4 classes, from matches made before."""
    rng, images, classes = np.random.default_rng(0), 2000, 4
    draws = group_draws(GROUPS[:images])
    weights = np.stack([draws[group] for group in GROUPS[:images]], axis=1)
    matches = []
    for _ in range(classes):
        scores = np.sort(rng.random(20 * images))[::-1]
        best = np.zeros(len(scores))  # IoU with a box; each box is found once, mostly by a high score
        best[(len(scores) * rng.beta(1, 5, images)).astype(int)] = rng.uniform(0.3, 1, images)
        hit = best >= IOUS[:, None]
        matches.append(Matches(scores, rng.integers(images, size=len(scores)), hit, np.ones(images, int)))
    names = [str(c) for c in range(classes)]
    found = benchmark.pedantic(lambda: box_metrics(matches, names, weights), rounds=1, warmup_rounds=0)
    assert np.isfinite(found["map_50_95"]).all()

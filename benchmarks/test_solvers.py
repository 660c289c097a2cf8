"""What every table waits for: the probes of a training subset, and the bootstrap of a macro AUROC."""

from __future__ import annotations

import numpy as np

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


def test_bootstrap_of_25000_images(benchmark):
    """1,000 draws (and the spare ones) of the AUROC of 14 labels on 25,000 images, each its own group."""
    rng = np.random.default_rng(0)
    labels = (rng.random((25_000, 14)) < np.linspace(0.01, 0.3, 14)).astype(float)
    scores = rng.normal(size=labels.shape) + labels
    groups = [f"patient-{i}" for i in range(len(labels))]
    draws = group_draws(groups)

    def macro():
        bootstrap = Bootstrap(groups, draws)
        return np.mean([bootstrap.auroc(scores[:, i], labels[:, i]) for i in range(14)], axis=0)

    assert np.isfinite(benchmark.pedantic(macro, rounds=3, warmup_rounds=1)).all()

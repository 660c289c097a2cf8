"""What intervals and tests promise, by simulation: coverage of 95 % and errors of 5 %, patients having 1 to 5 images.

Each repetition draws patients anew from a model whose true value is known; images of one patient share an effect. Two
methods of equal worth share the patients, so that every rejection is an error.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.special import expit, ndtr
from scipy.stats import norm

from prior_bench.metrics.overlap import terms
from prior_bench.metrics.retrieval import ranks, recall_at
from prior_bench.paired_tests import delong, sign_flip
from prior_bench.statistics import Bootstrap, group_draws, interval, paired, quotient

REPETITIONS = 2000
LARGEST = 5  # images of a patient
GALLERY = np.random.default_rng(0).normal(size=(40, 6))  # of retrieval


@dataclass
class Images:
    """The test images of some patients."""

    groups: np.ndarray  # (N,)
    rng: np.random.Generator

    @classmethod
    def drawn(cls, repetition, patients):
        rng = np.random.default_rng(repetition)
        return cls(np.repeat(np.arange(patients), rng.integers(1, LARGEST + 1, patients)), rng)

    def noise(self, *columns):
        """Standard normal (N, *columns), of which half of the variance belongs to the patient."""
        of_patients = self.rng.normal(size=(self.groups[-1] + 1, *columns))[self.groups]
        return (of_patients + self.rng.normal(size=of_patients.shape)) / np.sqrt(2)

    def two(self, *columns):
        """Such noise for each of two methods, half of it shared by them."""
        shared = self.noise(*columns)
        return [(shared + self.noise(*columns)) / np.sqrt(2) for _ in range(2)]


def auroc(images, bootstrap):
    """Binormal scores a standard deviation apart; a fifth of the images is positive."""
    labels = (images.noise() > 0.8).astype(float)
    scores = [labels + noise for noise in images.two()]
    p = delong(*scores, labels, images.groups).p
    return [bootstrap.auroc(s, labels) for s in scores], {"DeLong": p}


def dice(images, bootstrap):
    """Half of the images have a lesion of 400 pixels; a logistic-normal share is found, the rest falls beside it."""
    lesion, replicates = images.noise() > 0, []
    for noise in images.two():
        found = np.rint(400 * expit(0.5 + noise)) * lesion
        counts = np.stack([found, 400 * lesion - found, 400 * lesion - found], axis=1)
        top, bottom = bootstrap.sums(np.stack(terms(counts)["dice_foreground_image_mean"], axis=1)).T
        replicates.append(quotient(top, bottom))
    return replicates, {}


def recall_at_5(images, bootstrap):
    """A query is an item of the gallery with noise; the gallery is fixed."""
    item = images.rng.integers(len(GALLERY), size=len(images.groups))
    hits = [_hits(item, noise) for noise in images.two(GALLERY.shape[1])]
    return [bootstrap.mean(h) for h in hits], {"sign flip": sign_flip(*hits, images.groups)}


def _hits(item, noise):
    return recall_at(ranks(GALLERY[item] + noise, GALLERY, [(item, np.arange(len(GALLERY)))])[0], 5)


def true_recall():
    rng = np.random.default_rng(1)
    item = rng.integers(len(GALLERY), size=100_000)
    return _hits(item, rng.normal(size=(len(item), GALLERY.shape[1]))).mean()


TRUTH = {
    auroc: lambda: ndtr(1 / np.sqrt(2)),
    dice: lambda: np.rint(400 * expit(0.5 + norm.ppf((np.arange(20_000) + 0.5) / 20_000))).mean() / 400,
    recall_at_5: true_recall,
}


@pytest.mark.parametrize("patients", [30, 50, 200])
@pytest.mark.parametrize("metric", [auroc, dice, recall_at_5])
def test_intervals_cover_and_tests_keep_their_level(metric, patients):
    draws, truth = group_draws([str(g) for g in range(patients)]), TRUTH[metric]()
    covered, rejected = [], defaultdict(list)
    for repetition in range(REPETITIONS):
        images = Images.drawn(repetition, patients)
        (a, b), others = metric(images, Bootstrap(images.groups, draws))
        low, high = interval(a)
        covered.append(low <= truth <= high)
        for name, p in {"bootstrap": paired(a, b).p, **others}.items():
            rejected[name].append(p < 0.05)
    assert 0.93 <= np.mean(covered) <= 0.97
    for name, found in rejected.items():
        assert 0.035 <= np.mean(found) <= 0.065, name

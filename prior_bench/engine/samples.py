"""Pre-training samples by position: what a step sees is a pure function of (seed, epoch, index), so any step can be
made again, by any worker, in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch.utils.data import Sampler

from prior_bench.errors import UserError
from prior_bench.method import Method, Sample, StudyView
from prior_bench.types import ImageRecord, Study

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset
    from prior_bench.data.images import ImageStore


def is_frontal(image: ImageRecord) -> bool:
    """Whether an image is a frontal view (PA, AP and their kinds), or does not state its view."""
    return image.view is None or image.view.upper().startswith(("PA", "AP"))


def training_studies(dataset: Dataset) -> list[Study]:
    """Studies of the training split with a report, each with its frontal images only."""
    held_out = {study.group for study in dataset.studies if study.split == "test"}
    found = []
    for study in dataset.studies:
        images = tuple(image for image in study.images if is_frontal(image))
        if study.split != "train" or study.report is None or not study.report.sentences or not images:
            continue
        if study.group in held_out:
            raise UserError(f"the group {study.group!r} is in training and in test", where=f"dataset {dataset.name}",
                            fix=f"see `prior-bench data verify {dataset.name}`")
        found.append(replace(study, images=images))
    return found


class Samples:
    """Training samples by position: item (epoch, index) is a study's view, drawn by (seed, epoch, index) alone."""

    def __init__(self, method: Method, studies: Sequence[Study], store: ImageStore, seed: int):
        self.method, self.studies, self.store, self.seed = method, studies, store, seed

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, position: tuple[int, int]) -> Sample:
        epoch, index = position
        study = self.studies[index]
        assert study.report is not None
        images = tuple(self.store.get([image.id for image in study.images]))
        return self.method.view(StudyView(images, study.report), np.random.default_rng((self.seed, epoch, index)))


class Positions(Sampler[list[tuple[int, int]]]):
    """One batch of (epoch, index) for each step from `start` on: this rank's part of the epoch's permutation.

    An epoch has n // (batch x world) steps; what is left over after the last full batch sits out until the next epoch.
    """

    def __init__(self, n: int, batch: int, steps: int, seed: int, rank: int = 0, world: int = 1):
        self.n, self.batch, self.steps, self.seed, self.rank, self.world = n, batch, steps, seed, rank, world
        self.per_epoch = n // (batch * world)
        self.start = 0

    def __len__(self) -> int:
        return self.steps - self.start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        # n is no sample's index, so that the order shares its random numbers with no sample.
        last, order = -1, np.empty(0, np.int64)
        for step in range(self.start, self.steps):
            epoch, place = divmod(step, self.per_epoch)
            if epoch != last:
                last, order = epoch, np.random.default_rng((self.seed, epoch, self.n)).permutation(self.n)
            first = (place * self.world + self.rank) * self.batch
            yield [(epoch, int(index)) for index in order[first: first + self.batch]]

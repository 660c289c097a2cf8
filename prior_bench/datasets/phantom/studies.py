"""Studies of the phantom: the roster of patients, each patient's history, and one study as image, masks and record.

Everything follows from (version, seed, patient, examination), so that any process can make any patient on its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from prior_bench.datasets.phantom import findings as finding_module
from prior_bench.datasets.phantom.anatomy import Thorax, draw_exam, draw_patient
from prior_bench.datasets.phantom.findings import KINDS, Finding
from prior_bench.datasets.phantom.reports import write
from prior_bench.types import Split

VERSION = 1  # raise it when the same seed gives other studies
MASKS = {"opacity": ("consolidation", "atelectasis", "nodule"), "pneumothorax": ("pneumothorax",), "lungs": ()}
BOXES = ("nodule", "consolidation", "effusion", "cardiomegaly")
EXCLUSIVE = ("atelectasis", "cardiomegaly", "consolidation", "edema", "effusion")  # as in CheXpert 5x200


@dataclass(frozen=True, slots=True)
class Size:
    """How large a phantom is: image side in pixels, studies by split, single-finding studies per class, seed."""

    pixels: int
    train: int
    validation: int
    test: int
    per_class: int
    seed: int

    @property
    def total(self) -> int:
        return self.train + self.validation + self.test + self.per_class * len(EXCLUSIVE)


@dataclass(frozen=True, slots=True)
class Case:
    """One patient of the roster: how many studies, in which split; `only` names the class of a 5x40 patient."""

    number: int
    studies: int
    split: Split
    only: str = ""


def stream(size: Size, person: int = 0, words: int = 0) -> np.random.Generator:
    """An independent random stream: of the roster, of a person (from 1), or of the words of a person's report (from 1).

    Numbers start at 1 because numpy pads seeds with zeros.
    """
    return np.random.default_rng([VERSION, size.seed, person, words])


def roster(size: Size) -> Iterator[Case]:
    """The patients in order: one to three studies each, split by split, then the single-finding ones."""
    rng, number = stream(size), 0
    splits: dict[Split, int] = {"train": size.train, "validation": size.validation, "test": size.test}
    for split, wanted in splits.items():
        while wanted:
            n = min(int(rng.choice([1, 2, 3], p=[0.5, 0.3, 0.2])), wanted)
            yield Case(number, n, split)
            wanted, number = wanted - n, number + 1
    for only in EXCLUSIVE:
        for _ in range(size.per_class):
            yield Case(number, 1, "test", only)
            number += 1


@dataclass(frozen=True, slots=True)
class Made:
    """A finished study: image (S, S) uint8, masks (len(MASKS), S, S) bool, record (JSON-able)."""

    image: np.ndarray
    masks: np.ndarray
    record: dict[str, Any]


def make(size: Size, case: Case) -> Iterator[Made]:
    """All studies of one patient, in order of time."""
    rng = stream(size, case.number + 1)
    patient = draw_patient(rng)
    ill: list[Finding] = []
    gone: list[Finding] = []
    for visit in range(case.studies):
        if case.only:
            ill = finding_module.draw_kind(case.only, rng)
        elif visit == 0:
            ill = finding_module.draw_findings(rng)
        else:
            ill, gone = finding_module.evolve(ill, rng)
        seen = finding_module.visible(ill)
        exam = draw_exam(rng)
        thorax = Thorax(size.pixels, patient, exam, finding_module.shape(seen))
        drawn = [finding_module.draw(thorax, f) for f in seen]
        masks = np.zeros((len(MASKS), size.pixels, size.pixels), bool)
        for i, kinds in enumerate(MASKS.values()):
            for f, mask in zip(seen, drawn, strict=True):
                masks[i] |= mask if f.kind in kinds else False
        masks[list(MASKS).index("lungs")] = thorax.lungs >= 0.5
        report = write(patient, exam, seen, gone, visit > 0, stream(size, case.number + 1, visit + 1))
        yield Made(
            thorax.develop(),
            masks,
            {
                "id": f"p{case.number:05d}-s{visit + 1}",
                "patient": f"p{case.number:05d}",
                "split": case.split,
                "only": case.only,
                "view": exam.view,
                "report": report,
                "labels": sorted({f.kind for f in seen}, key=KINDS.index),
                "findings": [
                    {
                        "kind": f.kind,
                        "side": f.side,
                        "place": f.place,
                        "extent": round(f.extent, 3),
                        "faint": f.faint,
                        "change": f.change,
                    }
                    for f in seen
                ],
                "boxes": [[f.kind, *_box(mask)] for f, mask in zip(seen, drawn, strict=True) if f.kind in BOXES],
            },
        )


def _box(mask: np.ndarray) -> list[int]:
    """The tight box x1, y1, x2, y2 of a mask, in pixel edges."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1]

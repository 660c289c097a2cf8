"""The phantom: procedural chest X-rays with reports, labels, masks and boxes. The embedded default dataset.

No file of it is distributed: it is made on first use and cached. See README.md for what is in it and how hard it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prior_bench.data.dataset import Boxes, Dataset, LabelTable, Phrase
from prior_bench.datasets.phantom.findings import KINDS
from prior_bench.datasets.phantom.phrases import phrases
from prior_bench.datasets.phantom.store import FORMAT, Store, open_store
from prior_bench.datasets.phantom.studies import BOXES, EXCLUSIVE, MASKS, VERSION, Size, roster
from prior_bench.digests import digest_json, digest_sources
from prior_bench.files import default_cache
from prior_bench.types import Budget, DenseBudget, FinetuneBudget, ImageRecord, Report, Split, Study, Target

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

_HERE = Path(__file__).parent
_GENERATOR = ("canvas.py", "anatomy.py", "findings.py", "reports.py", "studies.py")  # what the content follows from
_SINGLE = "phantom-5x40"


class Phantom(Dataset):
    """2,000 training, 200 validation and 600 test studies at 128 px, and 200 single-finding test studies."""

    name: ClassVar[str] = "phantom"
    version: ClassVar[int] = VERSION
    title: ClassVar[str] = "Phantom: procedural chest X-rays with reports"
    needs_root: ClassVar[bool] = False
    prompt_file: ClassVar[Path | None] = _HERE / "prompts.yaml"
    size: ClassVar[Size] = Size(pixels=128, train=2000, validation=200, test=600, per_class=40, seed=0)
    targets: ClassVar[Mapping[str, Target]] = {
        t.name: t
        for t in (
            Target("findings", "multilabel", KINDS, prompts=True),
            Target(_SINGLE, "exclusive", EXCLUSIVE, train=False, prompts=True),
            Target("opacity", "mask", ("opacity",)),
            Target("pneumothorax", "mask", ("pneumothorax",)),
            Target("lungs", "mask", ("lungs",), sanity=True, default=False),
            Target("lesions", "boxes", BOXES),
            Target("reports", "report"),
        )
    }
    budget: ClassVar[Budget] = Budget(
        segmentation=DenseBudget(size=128, channels=128, batch=8, steps=120),
        detection=DenseBudget(size=128, channels=64, batch=16, steps=120),
        finetune=FinetuneBudget(min_steps=200, epochs=12, validations=6, subset_seeds=(0,)),
    )

    def fingerprint(self) -> object:
        """Version, size with its seed, and the generator's sources; nothing has to be made for it."""
        return [VERSION, _size(self.size), digest_sources(*(_HERE / name for name in _GENERATOR))]

    @cached_property
    def store(self) -> Store:
        """The made studies; the first use makes them."""
        key = digest_json([self.fingerprint(), FORMAT])
        return open_store(self.size, (self.cache or default_cache()) / self.name / key)

    def load_studies(self) -> Sequence[Study]:
        return [_study(record) for record in self.store.records]

    def load_labels(self, target: str) -> LabelTable:
        if target not in {"findings", _SINGLE}:
            raise self._has_no("labels", target)
        records = [r for r in self.store.records if bool(r["only"]) == (target == _SINGLE)]
        classes = self.target(target).classes
        values = np.array([[kind in r["labels"] for kind in classes] for r in records], np.float32)
        return LabelTable(tuple(r["id"] for r in records), classes, values)

    def load_ids(self, target: str) -> Sequence[str]:
        """All regular images (a mask or a list of boxes may be empty there), without the single-finding studies."""
        if self.target(target).kind not in {"mask", "boxes", "report"}:
            raise self._has_no("images", target)
        return [r["id"] for r in self._regular]

    def load_mask(self, target: str, image_id: str) -> np.ndarray:
        if target not in MASKS:
            raise self._has_no("masks", target)
        return self.store.mask(self._rows[image_id], target)

    def load_boxes(self, target: str, image_id: str) -> Boxes:
        if target != "lesions":
            raise self._has_no("boxes", target)
        boxes = self.store.records[self._rows[image_id]]["boxes"]
        return Boxes(
            np.array([b[1:] for b in boxes], np.float32).reshape(-1, 4),
            np.array([BOXES.index(b[0]) for b in boxes], np.int64),
        )

    def load_phrases(self, split: Split) -> Iterator[Phrase]:
        """The statements of findings, in order of patients; drawn again, which takes as long as making the images."""
        for case in roster(self.size):
            if case.split == split:
                yield from phrases(self.size, case)

    def read_image(self, record: ImageRecord) -> PILImage:
        from PIL import Image

        return Image.fromarray(self.store.images[self._rows[record.id]])

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {r["id"]: i for i, r in enumerate(self.store.records)}

    @property
    def _regular(self) -> list[dict[str, Any]]:
        return [r for r in self.store.records if not r["only"]]


class PhantomLarge(Phantom):
    """20,000 training, 1,000 validation and 2,000 test studies at 256 px, of other patients than `phantom`'s."""

    name: ClassVar[str] = "phantom-large"
    title: ClassVar[str] = "Phantom, large: procedural chest X-rays with reports"
    size: ClassVar[Size] = Size(pixels=256, train=20_000, validation=1000, test=2000, per_class=40, seed=1)
    budget: ClassVar[Budget] = Budget(
        segmentation=DenseBudget(size=256, channels=128, batch=8, steps=2000),
        detection=DenseBudget(size=256, channels=128, batch=16, steps=2000),
        finetune=FinetuneBudget(min_steps=1000, epochs=5, subset_seeds=(0,)),
    )


class PhantomCi(Phantom):
    """800 training, 100 validation and 400 test studies at 64 px, of other patients: what the regression gate runs on.

    Its budgets are for seconds, so its numbers say whether the program changed, and nothing about methods.
    """

    name: ClassVar[str] = "phantom-ci"
    title: ClassVar[str] = "Phantom, small: for the regression gate"
    size: ClassVar[Size] = Size(pixels=64, train=800, validation=100, test=400, per_class=40, seed=2)
    budget: ClassVar[Budget] = Budget(
        segmentation=DenseBudget(size=64, channels=64, batch=4, steps=100, validations=1),
        detection=DenseBudget(size=64, channels=64, batch=8, steps=160, validations=1),
        finetune=FinetuneBudget(min_steps=60, epochs=2, validations=1, subset_seeds=(0,)),
        subset_seeds=(0,),
    )


def _size(size: Size) -> list[int]:
    return [size.pixels, size.train, size.validation, size.test, size.per_class, size.seed]


def _study(record: dict[str, Any]) -> Study:
    """A study from its record; impression first among the sentences."""
    sections = {name: tuple(sentences) for name, sentences in record["report"].items()}
    report = Report(
        {name: " ".join(sentences) for name, sentences in sections.items()},
        sections["impression"] + sections["findings"],
    )
    return Study(
        record["id"], record["patient"], record["split"], (ImageRecord(record["id"], view=record["view"]),), report
    )

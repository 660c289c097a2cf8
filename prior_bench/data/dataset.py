"""Dataset: studies with images, reports and targets, read the way their owners distribute them.

A dataset answers four questions: which studies are there, in which split and leak group; what is the target's value on
an image (missing is not negative); how may it be spent on (budget) and asked about (prompts); and what is the digest of
all that. It decodes nothing that nobody asks for.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from prior_bench.digests import digest_json
from prior_bench.errors import UserError, unknown_name
from prior_bench.types import Budget, ImageRecord, Split, Study, Target

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

DATA_ROOT_VARIABLE = "PRIOR_BENCH_DATA"


def chosen_root(given: Path | None) -> Path | None:
    """The folder of the real data sets: as given, or in $PRIOR_BENCH_DATA."""
    return given or (Path(os.environ[DATA_ROOT_VARIABLE]) if os.environ.get(DATA_ROOT_VARIABLE) else None)


@dataclass(frozen=True, slots=True)
class LabelTable:
    """Label values of one target: `values` (N, C) float32 in {0, 1, NaN = missing}, rows in the order of `ids`.

    Exclusive classes are one-hot rows.
    """

    ids: tuple[str, ...]
    classes: tuple[str, ...]
    values: np.ndarray

    def rows(self, ids: Sequence[str]) -> np.ndarray:
        """Values (len(ids), C) of these images, in this order."""
        where = {id: i for i, id in enumerate(self.ids)}
        return self.values[[where[id] for id in ids]]


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes of one image in source pixels: `xyxy` (n, 4) float32, `labels` (n,) int64 into the target's classes."""

    xyxy: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, slots=True)
class Phrase:
    """A sentence of an image's report that says there is a finding, and where that finding is: `mask` (H, W) uint8 in
    source pixels, 0 background, 1 foreground."""

    image: str
    finding: str
    sentence: str
    mask: np.ndarray


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of one label or class. Multi-label targets have negatives; exclusive classes have none."""

    positive: tuple[str, ...]
    negative: tuple[str, ...] = ()


class Dataset(ABC):
    """Base of every dataset. Subclasses set the class variables and fill the abstract methods."""

    name: ClassVar[str]
    version: ClassVar[int] = 1  # raise it when the code makes other values from the same files
    title: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    needs_root: ClassVar[bool] = True
    folder: ClassVar[str] = ""  # folder name under the data root, as the owners distribute it
    targets: ClassVar[Mapping[str, Target]]
    prompt_file: ClassVar[Path | None] = None  # YAML, see `readers.read_prompts`; of the targets that have prompts
    budget: ClassVar[Budget]

    def __init__(self, root: Path | None = None, cache: Path | None = None, exclude: frozenset[str] = frozenset()):
        """Args: root: the folder that holds this dataset's files (see `find_root`); cache: where derived files may lie;
        exclude: ids of images that could not be read and were allowed to be left out."""
        self.root = root
        self.cache = cache
        self.exclude = exclude

    # ------------------------------------------------------------------------------------ to fill in

    @abstractmethod
    def load_studies(self) -> Sequence[Study]:
        """All studies with split and group; patients' order is irrelevant, ids are unique."""

    @abstractmethod
    def fingerprint(self) -> object:
        """JSON-able description of the content that the digest stands for (versions, file digests)."""

    def load_labels(self, target: str) -> LabelTable:
        raise self._has_no("labels", target)

    def load_mask(self, target: str, image_id: str) -> np.ndarray:
        """Mask (H, W) uint8 in source pixels: 0 background, 1 foreground, 255 ignore."""
        raise self._has_no("masks", target)

    def load_boxes(self, target: str, image_id: str) -> Boxes:
        raise self._has_no("boxes", target)

    def load_phrases(self, split: Split) -> Iterable[Phrase]:
        """The sentences of a split's reports whose place on the image is known; none in most datasets."""
        return ()

    def load_ids(self, target: str) -> Sequence[str]:
        """Ids of the images on which a target of kind mask, boxes or report is defined."""
        raise self._has_no("images", target)

    def prompts(self, target: str) -> Mapping[str, Prompts]:
        """Prompts by class name, in the order of the target's classes, from `prompt_file`."""
        from prior_bench.data.readers import read_prompts

        known = {} if self.prompt_file is None else read_prompts(self.prompt_file)
        if target not in known:
            raise self._has_no("prompts", target)
        return {name: known[target][name] for name in self.target(target).classes}

    def left_out(self) -> Sequence[tuple[str, str]]:
        """Rows and files that were left out on purpose, as (where, why); `data verify` lists them."""
        return ()

    def read_image(self, record: ImageRecord) -> PILImage:
        """The image as 8-bit grey PIL image, at source size. Override where images are not files."""
        from prior_bench.data.images import decode

        assert record.path is not None
        return decode(record.path)

    # ------------------------------------------------------------------------------------ what users call

    @cached_property
    def studies(self) -> tuple[Study, ...]:
        """The studies without the excluded images; a study whose images are all excluded is gone."""
        kept = []
        for study in self.load_studies():
            images = tuple(i for i in study.images if i.id not in self.exclude)
            if images:
                same = len(images) == len(study.images)
                kept.append(study if same else Study(study.id, study.group, study.split, images, study.report))
        return tuple(kept)

    @cached_property
    def records(self) -> dict[str, ImageRecord]:
        """Image records by image id."""
        return {image.id: image for study in self.studies for image in study.images}

    @cached_property
    def study_of(self) -> dict[str, Study]:
        """The study of each image id."""
        return {image.id: study for study in self.studies for image in study.images}

    def target(self, name: str) -> Target:
        if name not in self.targets:
            raise unknown_name("target", name, self.targets, where=f"dataset {self.name}")
        return self.targets[name]

    def labels(self, target: str) -> LabelTable:
        """Label table of a target of kind multilabel or exclusive, without the excluded images."""
        table = self.load_labels(self.target(target).name)
        keep = [i for i, id in enumerate(table.ids) if id in self.records]
        return LabelTable(tuple(table.ids[i] for i in keep), table.classes, table.values[keep])

    def ids(self, target: str, split: Split) -> list[str]:
        """Ids of the target's images in one split, sorted."""
        kind = self.target(target).kind
        found = self.labels(target).ids if kind in {"multilabel", "exclusive"} else self.load_ids(target)
        return sorted(i for i in found if i in self.records and self.study_of[i].split == split)

    def group_of(self, image_id: str) -> str:
        return self.study_of[image_id].group

    def digest(self) -> str:
        """Digest of everything a number on this dataset depends on."""
        return digest_json([self.name, self.version, self.fingerprint(), sorted(self.exclude)])

    @classmethod
    def find_root(cls, data_root: Path | None = None) -> Path | None:
        """`<data root>/<folder>`; the data root is given or in $PRIOR_BENCH_DATA. None if it needs no files."""
        if not cls.needs_root:
            return None
        base = chosen_root(data_root)
        fix = f"put the files under a data root and give it as --data-root or in ${DATA_ROOT_VARIABLE}"
        if base is None:
            raise UserError(f"no data root is set, and {cls.name} needs files", expected=f"a folder {cls.folder}/",
                            fix=fix)
        if not (base / cls.folder).is_dir():
            raise UserError(f"the files of {cls.name} were not found", where=str(base / cls.folder),
                            expected=f"a folder {cls.folder}/ in the data root, as its owners distribute it", fix=fix)
        return base / cls.folder

    def _has_no(self, what: str, target: str) -> UserError:
        having = ", ".join(f"{t.name} ({t.kind})" for t in self.targets.values())
        return UserError(f"the target {target!r} of {self.name} has no {what}", expected=f"one of {having}")

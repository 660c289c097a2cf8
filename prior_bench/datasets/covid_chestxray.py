"""covid-chestxray: chest X-rays of COVID-19 and other pneumonias with clinical notes, as the public repository has it.

Reads metadata.csv and images/ of the repository, the lung masks that people at V7 Labs drew (masks_lungs_v7/<stem>.png:
0, 255, and 127 = ignore) and the lung boxes of General Blockchain (annotations/, COCO).

Decided on purpose:
- Lateral views and CT volumes are left out of every target: methods are pre-trained on frontal views, and a note says
  little about a lateral one. An image whose view is not stated is kept.
- A study is the images of one patient at one time (`offset`, in days) with one note. Several studies can share a note;
  retrieval counts all their images as right answers.
- The report is the whole note, split into sentences; an image without note has no report.
- `finding` is hierarchical: a label implies its parents (COVID-19 is a viral pneumonia is a pneumonia); "todo" and
  "Unknown" are missing, not negative. Nearly all images show pneumonia, so the target is not part of `--task all`.
- Splits: `index.csv` in the data root where it lists these images, else 70/10/20 by patient, stratified by finding.
- The budget is that of a few hundred images on two CPU cores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from os import DirEntry
from pathlib import Path
from typing import ClassVar

import numpy as np

from prior_bench.data import images, readers
from prior_bench.data.dataset import Boxes, Dataset, LabelTable
from prior_bench.data.geometry import IGNORE
from prior_bench.data.readers import Row
from prior_bench.data.reports import split_sentences
from prior_bench.data.splits import split_groups
from prior_bench.errors import UserError
from prior_bench.types import Budget, DenseBudget, ImageRecord, Report, Split, Study, Target

_COLUMNS = ("patientid", "offset", "finding", "view", "modality", "folder", "filename", "clinical_notes")
_BOXES = "annotations/lung_boxes_generalblockchain.coco.json"
_MASKS = "masks_lungs_v7"
_LUNGS = ("Right Lung", "Left Lung")
_UNLABELLED = {"", "todo", "Unknown"}

# Each finding that occurs, with what it implies.
_PARENT = {
    "No Finding": None, "ARDS": None, "Tuberculosis": None, "Pneumonia": None,
    "Viral Pneumonia": "Pneumonia", "Bacterial Pneumonia": "Pneumonia", "Fungal Pneumonia": "Pneumonia",
    "Lipoid": "Pneumonia", "Aspiration": "Pneumonia",
    "COVID-19": "Viral Pneumonia", "SARS": "Viral Pneumonia", "MERS-CoV": "Viral Pneumonia",
    "Herpes": "Viral Pneumonia", "Varicella": "Viral Pneumonia", "Influenza": "Viral Pneumonia", "H1N1": "Influenza",
    "Streptococcus": "Bacterial Pneumonia", "Staphylococcus": "Bacterial Pneumonia", "MRSA": "Staphylococcus",
    "Klebsiella": "Bacterial Pneumonia", "E.Coli": "Bacterial Pneumonia", "Legionella": "Bacterial Pneumonia",
    "Mycoplasma": "Bacterial Pneumonia", "Chlamydophila": "Bacterial Pneumonia", "Nocardia": "Bacterial Pneumonia",
    "Pneumocystis": "Fungal Pneumonia", "Aspergillosis": "Fungal Pneumonia",
}
_ALIASES = {"Viral": "Viral Pneumonia", "Bacterial": "Bacterial Pneumonia", "Fungal": "Fungal Pneumonia",
            "Mycoplasma Bacterial Pneumonia": "Mycoplasma"}
FINDINGS = ("No Finding", "Pneumonia", "Viral Pneumonia", "Bacterial Pneumonia", "Fungal Pneumonia", "COVID-19", "SARS",
            "Varicella", "Influenza", "Streptococcus", "Klebsiella", "E.Coli", "Legionella", "Mycoplasma",
            "Chlamydophila", "Pneumocystis", "Lipoid", "ARDS")


class CovidChestXray(Dataset):
    name = "covid-chestxray"
    title = "COVID-19 image data collection"
    citation = "Cohen et al. 2020, arXiv 2006.11988; masks by V7 Labs, boxes by General Blockchain"
    folder = "covid_chestxray"
    targets: ClassVar[Mapping[str, Target]] = {t.name: t for t in (
        Target("covid_notes", "report"),
        Target("lungs", "mask", ("lung",)),
        Target("lung_boxes", "boxes", _LUNGS),
        Target("covid", "multilabel", FINDINGS, default=False),
    )}
    budget = Budget(
        segmentation=DenseBudget(size=192, channels=128, batch=8, steps=80, validations=4),
        detection=DenseBudget(size=192, channels=128, batch=8, steps=100, validations=4),
    )

    def fingerprint(self) -> object:
        tables = (self._root / "metadata.csv", self._root / _BOXES, self._root.parent / "index.csv")
        files = {f"images/{n}": e for n, e in self._images.items()} | {f"masks/{n}": e for n, e in self._masks.items()}
        return readers.fingerprint(tables, files, self.cache)

    def load_studies(self) -> Sequence[Study]:
        together: dict[tuple[str, ...], list[Row]] = {}
        for row in self._rows:
            together.setdefault((row["patientid"], row["offset"], row["clinical_notes"]), []).append(row)
        return [self._study(rows) for rows in together.values()]

    def left_out(self) -> list[tuple[str, str]]:
        known = {row["filename"] for row in self._table}
        rows = [(f"{r.path}, line {r.line}: {r['filename']}", why) for r in self._table if (why := _why_not(r))]
        return rows + [(e.path, "metadata.csv has no row for it") for n, e in self._images.items() if n not in known]

    def load_labels(self, target: str) -> LabelTable:
        known = ~np.isnan(self._findings).all(axis=1)
        ids = tuple(r["filename"] for r, k in zip(self._rows, known, strict=True) if k)
        return LabelTable(ids, FINDINGS, self._findings[known])

    def load_ids(self, target: str) -> Sequence[str]:
        if target == "covid_notes":
            return [i.id for study in self.studies if study.report for i in study.images]
        if target == "lungs":
            if not self._masks:
                raise UserError("the lung masks of covid-chestxray are missing", where=str(self._root / _MASKS),
                                expected="<image stem>.png for each image that has a mask", fix="put them there")
            return [r["filename"] for r in self._rows if _mask_name(r["filename"]) in self._masks]
        return [r["filename"] for r in self._rows if r["filename"] in self._coco]

    def load_mask(self, target: str, image_id: str) -> np.ndarray:
        path = self._root / _MASKS / _mask_name(image_id)
        return readers.read_mask(path, self._size(image_id), {0: 0, 127: IGNORE, 255: 1})

    def load_boxes(self, target: str, image_id: str) -> Boxes:
        found = self._coco[image_id]
        where = f"{self._root / _BOXES}, {image_id}"
        return Boxes(readers.place_boxes(found.xywh, found.size, self._size(image_id), where), found.labels)

    # ------------------------------------------------------------------------------------- reading

    @property
    def _root(self) -> Path:
        if self.root is None:
            raise UserError("covid-chestxray needs the folder of its files", fix="give --data-root")
        return self.root

    @cached_property
    def _table(self) -> list[Row]:
        return readers.read_table(self._root / "metadata.csv", _COLUMNS, key="filename")

    @cached_property
    def _rows(self) -> list[Row]:
        """The rows of frontal X-rays, and of those that state no view."""
        return [row for row in self._table if not _why_not(row)]

    @cached_property
    def _images(self) -> dict[str, DirEntry[str]]:
        return readers.list_files(self._root / "images")

    @cached_property
    def _masks(self) -> dict[str, DirEntry[str]]:
        return readers.list_files(self._root / _MASKS)

    @cached_property
    def _coco(self) -> dict[str, readers.CocoImage]:
        return readers.read_coco(self._root / _BOXES, _LUNGS)

    @cached_property
    def _findings(self) -> np.ndarray:
        return np.array([_labels(row) for row in self._rows], np.float32).reshape(-1, len(FINDINGS))

    @cached_property
    def _placed(self) -> dict[str, tuple[Split, str]]:
        """Split and leak group by file name."""
        index = readers.read_index(self._root)
        if index is not None:
            unknown = next((r for r in self._rows if r["filename"] not in index), None)
            if unknown is not None:
                raise unknown.wrong("filename", f"a file that {self._root.parent / 'index.csv'} lists",
                                    "add it there, or remove index.csv to have splits drawn")
            return index
        patients = sorted({r["patientid"] for r in self._rows})
        row_of = {p: i for i, p in enumerate(patients)}
        positives = np.zeros((len(patients), len(FINDINGS)))
        for row, labels in zip(self._rows, self._findings, strict=True):
            positives[row_of[row["patientid"]]] += labels == 1
        split = split_groups(patients, positives > 0)
        return {r["filename"]: (split[r["patientid"]], r["patientid"]) for r in self._rows}

    def _study(self, rows: Sequence[Row]) -> Study:
        first, note = rows[0], rows[0]["clinical_notes"]
        split, group = self._placed[first["filename"]]
        for row in rows:
            if self._placed[row["filename"]] != (split, group):
                raise row.wrong("filename", f"the split and leak group of {first['filename']}, of the same study",
                                "mend index.csv")
        records = tuple(ImageRecord(r["filename"], self._root / "images" / r["filename"], _view(r)) for r in rows)
        sentences = split_sentences(note)
        report = Report({"note": note}, sentences) if sentences else None
        return Study(f"{first['patientid']}/{first['filename']}", group, split, records, report)

    def _size(self, image_id: str) -> tuple[int, int]:
        return images.size(self._root / "images" / image_id)


def _why_not(row: Row) -> str:
    """Why the row is left out; empty where it is not."""
    if row["modality"] != "X-ray" or row["folder"] != "images":
        return f"not an X-ray image ({row['modality']})"
    return "lateral view" if row["view"].startswith("L") else ""


def _view(row: Row) -> str | None:
    return None if row["view"] in {"", "?"} else row["view"]


def _mask_name(filename: str) -> str:
    return f"{Path(filename).stem}.png"


def _labels(row: Row) -> list[float]:
    """The row of the label table: 1 for what is named and what that implies, 0 for the rest, NaN if unknown."""
    if row["finding"] in _UNLABELLED:
        return [np.nan] * len(FINDINGS)
    present = set()
    for part in row["finding"].replace("/", ",").split(","):
        finding: str | None = _ALIASES.get(part.strip(), part.strip())
        if finding not in _PARENT:
            raise row.wrong("finding", f"findings among {', '.join(_PARENT)}, todo or Unknown")
        while finding is not None:
            present.add(finding)
            finding = _PARENT[finding]
    return [float(f in present) for f in FINDINGS]

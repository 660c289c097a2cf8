"""nih: ChestX-ray14 of the NIH Clinical Center, and the RSNA Pneumonia annotations of a part of it.

Reads, as their owners distribute them: Data_Entry_2017*.csv, BBox_List_2017.csv, train_val_list.txt and test_list.txt,
images/ (or images_001/images/ ...), and in rsna/ stage_2_train_labels.csv, stage_2_detailed_class_info.csv and
rsna_to_nih.csv, which says which NIH image each RSNA patientId is.

Decided on purpose:
- Labels are those of Data_Entry; a blank one is missing. `No Finding` is no class: it is the absence of all fourteen.
- `Infiltrate` in BBox_List is `Infiltration`.
- Boxes are given in pixels of the original 1024 x 1024 images and are scaled to the stored ones.
- RSNA's targets hold only the images that RSNA annotated; those without boxes are valid negatives. The class file has a
  row per box, so rows of one patient repeat and must agree.
- `nih_boxes` holds only the images that have a box, all of the official test split, so it is not in `--task all`.
- Splits: `index.csv` in the data root where it lists these images; else the official lists, with an eighth of train_val
  for validation; else 70/10/20; always by patient, stratified by label.
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
from prior_bench.data.readers import Row, check_value
from prior_bench.data.splits import split_groups
from prior_bench.errors import UserError
from prior_bench.types import Budget, DenseBudget, ImageRecord, Split, Study, Target

FINDINGS = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
            "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia")
RSNA_CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
BOXED = FINDINGS[:8]  # findings that BBox_List marks
FRAME = (1024, 1024)  # height and width of the images that were annotated
_ALIASES = {"Infiltrate": "Infiltration"}


class Nih(Dataset):
    name = "nih"
    title = "NIH ChestX-ray14 with RSNA Pneumonia"
    citation = "Wang et al., CVPR 2017 (NIH Clinical Center); Shih et al. 2019 (RSNA)"
    folder = "nih"
    prompt_file = Path(__file__).with_name("nih_prompts.yaml")
    targets: ClassVar[Mapping[str, Target]] = {t.name: t for t in (
        Target("nih14", "multilabel", FINDINGS, prompts=True),
        Target("rsna_3class", "exclusive", RSNA_CLASSES, prompts=True),
        Target("rsna_opacity", "boxes", ("Lung Opacity",)),
        Target("nih_boxes", "boxes", BOXED, default=False),
    )}
    budget = Budget(
        segmentation=DenseBudget(size=192, channels=128, batch=8, steps=80, validations=4),
        detection=DenseBudget(size=192, channels=128, batch=8, steps=100, validations=4),
    )

    def fingerprint(self) -> object:
        names = ("BBox_List_2017.csv", "train_val_list.txt", "test_list.txt", "rsna/stage_2_train_labels.csv",
                 "rsna/stage_2_detailed_class_info.csv", "rsna/rsna_to_nih.csv", "../index.csv")
        return readers.fingerprint([self._entry_file, *(self._root / n for n in names)], self._images, self.cache)

    def load_studies(self) -> Sequence[Study]:
        """A study per image: the set gives no examination times, and no reports that would tie images together."""
        studies = []
        for row in self._entries:
            name = row["Image Index"]
            split, group = self._placed[name]
            path = Path(self._images[name].path) if name in self._images else self._root / "images" / name
            studies.append(Study(name, group, split, (ImageRecord(name, path, row["View Position"] or None),)))
        return studies

    def load_labels(self, target: str) -> LabelTable:
        if target == "nih14":
            known = ~np.isnan(self._findings).all(axis=1)
            ids = tuple(r["Image Index"] for r, k in zip(self._entries, known, strict=True) if k)
            return LabelTable(ids, FINDINGS, self._findings[known])
        one_hot = np.eye(len(RSNA_CLASSES), dtype=np.float32)
        values = one_hot[[RSNA_CLASSES.index(c) for c in self._rsna_class.values()]]
        return LabelTable(tuple(self._rsna_class), RSNA_CLASSES, values)

    def load_ids(self, target: str) -> Sequence[str]:
        return list(self._rsna_boxes if target == "rsna_opacity" else self._nih_boxes)

    def load_boxes(self, target: str, image_id: str) -> Boxes:
        rows, columns = ((self._rsna_boxes[image_id], ("x", "y", "width", "height")) if target == "rsna_opacity" else
                         (self._nih_boxes[image_id], _BBOX))
        xywh = np.array([[row.number(c) for c in columns] for row in rows], float).reshape(-1, 4)
        where = f"{rows[0].path}, line {rows[0].line}: {image_id}" if rows else image_id
        labels = [0 if target == "rsna_opacity" else BOXED.index(_finding(row, "Finding Label", BOXED)) for row in rows]
        path = self.records[image_id].path
        assert path is not None
        return Boxes(readers.place_boxes(xywh, FRAME, images.size(path), where), np.array(labels, np.int64))

    # ------------------------------------------------------------------------------------- reading

    @property
    def _root(self) -> Path:
        if self.root is None:
            raise UserError("nih needs the folder of its files", fix="give --data-root")
        return self.root

    @property
    def _entry_file(self) -> Path:
        """Data_Entry_2017.csv or its later edition; the later one where both lie there."""
        editions = self._root.glob("Data_Entry_2017*.csv")
        return max(editions, key=lambda p: p.stem, default=self._root / "Data_Entry_2017.csv")

    @cached_property
    def _entries(self) -> list[Row]:
        columns = ("Image Index", "Finding Labels", "Patient ID", "View Position")
        return readers.read_table(self._entry_file, columns, key="Image Index")

    @cached_property
    def _findings(self) -> np.ndarray:
        return np.array([_labels(row) for row in self._entries], np.float32).reshape(-1, len(FINDINGS))

    @cached_property
    def _images(self) -> dict[str, DirEntry[str]]:
        return readers.list_files(self._root / "images", *sorted(self._root.glob("images_*/images")))

    @cached_property
    def _placed(self) -> dict[str, tuple[Split, str]]:
        """Split and leak group by image name."""
        index = readers.read_index(self._root)
        if index is not None:
            unknown = next((r for r in self._entries if r["Image Index"] not in index), None)
            if unknown is not None:
                raise unknown.wrong("Image Index", f"a file that {self._root.parent / 'index.csv'} lists",
                                    "add it there, or remove index.csv to use the official lists")
            return index
        patients = {row["Image Index"]: row["Patient ID"] for row in self._entries}
        train_val, test = (_names(self._root / f"{n}_list.txt") for n in ("train_val", "test"))
        if train_val is None or test is None:
            split = self._drawn(set(patients.values()), (0.7, 0.1, 0.2))
        else:
            split = self._official(patients, train_val, test)
        return {image: (split[patient], patient) for image, patient in patients.items()}

    def _official(self, patients: Mapping[str, str], train_val: set[str], test: set[str]) -> dict[str, Split]:
        """Split by patient from the official lists, which are by patient; an eighth of train_val is for validation."""
        tested = {patients[i] for i in test if i in patients}
        rest = {patients[i] for i in train_val if i in patients}
        both, neither = tested & rest, set(patients.values()) - tested - rest
        if both or neither:
            what = f"patient {min(both)} is in both" if both else f"patient {min(neither)} is in neither"
            raise UserError(f"train_val_list.txt and test_list.txt do not divide the patients: {what}",
                            where=str(self._root), expected="every patient in one of the lists",
                            fix="copy the official lists again")
        return self._drawn(rest, (0.875, 0.125, 0.0)) | dict.fromkeys(tested, "test")

    def _drawn(self, patients: set[str], ratios: tuple[float, float, float]) -> dict[str, Split]:
        names = sorted(patients)
        row_of = {p: i for i, p in enumerate(names)}
        positives = np.zeros((len(names), len(FINDINGS)))
        for row, labels in zip(self._entries, self._findings, strict=True):
            if row["Patient ID"] in row_of:
                positives[row_of[row["Patient ID"]]] += labels == 1
        return split_groups(names, positives > 0, ratios)

    # ---------------------------------------------------------------------------------- annotations

    @cached_property
    def _nih_of(self) -> dict[str, str]:
        """NIH image by RSNA patientId."""
        rows = readers.read_table(self._root / "rsna/rsna_to_nih.csv", ("patientId", "nih_image"), key="patientId")
        return {row["patientId"]: row["nih_image"] for row in rows}

    @cached_property
    def _rsna_class(self) -> dict[str, str]:
        """RSNA class by NIH image."""
        found: dict[str, str] = {}
        for row in readers.read_table(self._root / "rsna/stage_2_detailed_class_info.csv", ("patientId", "class")):
            image = self._nih_of.get(row["patientId"])
            value = check_value(row, "class", RSNA_CLASSES)
            if image is not None and found.setdefault(image, value) != value:
                raise row.wrong("class", f"{found[image]!r}, as in the patient's other rows")
        return found

    @cached_property
    def _rsna_boxes(self) -> dict[str, list[Row]]:
        """Rows with a box by NIH image; an empty list for a negative."""
        columns = ("patientId", "x", "y", "width", "height", "Target")
        found: dict[str, list[Row]] = {}
        for row in readers.read_table(self._root / "rsna/stage_2_train_labels.csv", columns):
            filled = sum(row[c] != "" for c in columns[1:5])
            if filled != 4 * int(check_value(row, "Target", ("0", "1"))):
                raise row.wrong("Target", "1 with x, y, width and height, or 0 without them")
            image = self._nih_of.get(row["patientId"])
            if image is not None:
                found.setdefault(image, []).extend([row] if filled else [])
        return found

    @cached_property
    def _nih_boxes(self) -> dict[str, list[Row]]:
        found: dict[str, list[Row]] = {}
        for row in readers.read_table(self._root / "BBox_List_2017.csv", ("Image Index", "Finding Label", *_BBOX)):
            found.setdefault(row["Image Index"], []).append(row)
        return found

    def left_out(self) -> list[tuple[str, str]]:
        """Images that Data_Entry does not list, their annotations, and rows of RSNA's tables without an NIH image."""
        known = {row["Image Index"] for row in self._entries}
        found = [(e.path, "Data_Entry has no row for it") for n, e in self._images.items() if n not in known]
        if (self._root / "rsna").is_dir():
            found += [(f"rsna_to_nih.csv: {patient}", f"its image {image} is not in Data_Entry")
                      for patient, image in self._nih_of.items() if image not in known]
            for name in ("stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"):
                for row in readers.read_table(self._root / "rsna" / name, ("patientId",)):
                    if row["patientId"] not in self._nih_of:
                        found.append((f"{row.path}, line {row.line}", "rsna_to_nih.csv gives no image for it"))
        if (self._root / "BBox_List_2017.csv").is_file():
            found += [(f"{rows[0].path}, line {rows[0].line}: {i}", "its image is not in Data_Entry")
                      for i, rows in self._nih_boxes.items() if i not in known]
        return found


_BBOX = ("Bbox [x", "y", "w", "h]")  # one header, "Bbox [x,y,w,h]", cut by its commas


def _finding(row: Row, column: str, allowed: Sequence[str]) -> str:
    name = _ALIASES.get(row[column], row[column])
    if name not in allowed:
        raise row.wrong(column, f"one of {', '.join(allowed)}")
    return name


def _labels(row: Row) -> list[float]:
    """The row of the label table; NaN where nothing is written."""
    text = row["Finding Labels"]
    if not text:
        return [np.nan] * len(FINDINGS)
    names = {_ALIASES.get(n.strip(), n.strip()) for n in text.split("|")}
    if not names <= {*FINDINGS, "No Finding"} or (len(names) > 1 and "No Finding" in names):
        raise row.wrong("Finding Labels", f"findings joined by |, among {', '.join(FINDINGS)}; or No Finding alone")
    return [float(f in names) for f in FINDINGS]


def _names(path: Path) -> set[str] | None:
    """Image names of an official list; None where it is not there."""
    return set(path.read_text(encoding="utf-8").split()) if path.is_file() else None

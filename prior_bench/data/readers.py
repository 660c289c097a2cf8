"""Tables, masks, boxes and prompts as owners distribute them, read so that an error names file, row, column and fix.

For dataset plug-ins. Column names are matched without regard to case, blanks, underscores and brackets, because the
same table goes round as `Image Index` and `Image_Index`, and `Bbox [x,y,w,h]` falls into four columns.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from prior_bench.data import images
from prior_bench.data.dataset import Prompts
from prior_bench.digests import digest_file
from prior_bench.errors import UserError
from prior_bench.types import Split

_SPLIT_NAMES: dict[str, Split] = {"train": "train", "val": "validation", "validation": "validation", "test": "test"}


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table: its values by column (stripped of white space) and where it stands."""

    values: Mapping[str, str]
    path: Path
    line: int  # the last line of the row in the file, from 1

    def __getitem__(self, column: str) -> str:
        return self.values[column]

    def number(self, column: str) -> float | None:
        """The value as a number; None where it is blank."""
        text = self.values[column]
        try:
            value = float(text) if text else None
        except ValueError:
            raise self.wrong(column, "a number or nothing") from None
        if value is not None and not np.isfinite(value):
            raise self.wrong(column, "a finite number or nothing")
        return value

    def wrong(self, column: str, expected: str, fix: str = "mend this row") -> UserError:
        """The error for a value that cannot be."""
        return UserError(f"the column {column!r} holds {self.values[column]!r}", where=f"{self.path}, line {self.line}",
                         expected=expected, fix=fix)


def read_table(path: Path, columns: Sequence[str], key: str | None = None) -> list[Row]:
    """The rows of a csv file with these columns, which must be there; values of `key` must be there and distinct."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            reader = csv.reader(f, strict=True)
            places = _places(path, next(reader, []), columns)
            rows = [Row({c: row[i].strip() for c, i in places.items()}, path, reader.line_num)
                    for row in reader if row and _complete(path, reader.line_num, row, places)]
    except FileNotFoundError:
        raise UserError("a table of the dataset is missing", where=str(path),
                        fix="copy it there under this name") from None
    except UnicodeDecodeError as error:
        raise UserError(f"the table is not UTF-8 text: byte {error.object[error.start]:#04x} at offset {error.start}",
                        where=str(path), expected="UTF-8",
                        fix=f"convert it: iconv -f latin1 -t utf-8 {path.name}") from error
    except csv.Error as error:
        raise UserError(f"the table is no valid csv: {error}", where=str(path),
                        fix="copy or export it again") from error
    if key is not None:
        _check_distinct(rows, key)
    return rows


def _places(path: Path, header: Sequence[str], columns: Sequence[str]) -> dict[str, int]:
    """Index of each wanted column in the file's header."""
    known = {_folded(name): i for i, name in reversed(list(enumerate(header)))}
    missing = [c for c in columns if _folded(c) not in known]
    if missing:
        raise UserError(f"the table lacks the column {' and '.join(map(repr, missing))}", where=str(path),
                        expected=f"columns {', '.join(columns)}; there are {', '.join(h for h in header if h)}",
                        fix="use the file as its owners distribute it, or rename the column")
    return {c: known[_folded(c)] for c in columns}


def _folded(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _complete(path: Path, line: int, row: Sequence[str], places: Mapping[str, int]) -> bool:
    if len(row) <= max(places.values(), default=0):
        raise UserError(f"the row has {len(row)} values", where=f"{path}, line {line}",
                        expected=f"at least {max(places.values()) + 1}", fix="copy the file again; it may be truncated")
    return True


def _check_distinct(rows: Iterable[Row], key: str) -> None:
    first: dict[str, int] = {}
    for row in rows:
        if not row[key]:
            raise row.wrong(key, "an id", "fill it in or remove the row")
        if row[key] in first:
            raise row.wrong(key, f"each id once; it stands in line {first[row[key]]} too", "remove one of the rows")
        first[row[key]] = row.line


def read_index(root: Path) -> dict[str, tuple[Split, str]] | None:
    """Split and leak group by image file name, from `index.csv` in the data root (columns dataset, path, split,
    leak_group), if it lists this dataset's folder; None otherwise."""
    path = root.parent / "index.csv"
    if not path.is_file():
        return None
    found: dict[str, tuple[Split, str]] = {}
    for row in read_table(path, ("dataset", "path", "split", "leak_group"), key="path"):
        if row["dataset"] != root.name:
            continue
        if row["split"] not in _SPLIT_NAMES:
            raise row.wrong("split", f"one of {', '.join(_SPLIT_NAMES)}")
        found[Path(row["path"]).name] = (_SPLIT_NAMES[row["split"]], row["leak_group"])
    return found or None


def list_files(*folders: Path) -> dict[str, os.DirEntry[str]]:
    """Files of some folders by name. Entries keep size and time: 100,000 files take about a second."""
    found: dict[str, os.DirEntry[str]] = {}
    for folder in folders:
        if folder.is_dir():
            with os.scandir(folder) as entries:
                found |= {e.name: e for e in entries if e.is_file() and not e.name.startswith(".")}
    return found


def fingerprint(tables: Iterable[Path], files: Mapping[str, os.DirEntry[str]], memo: Path | None) -> dict[str, Any]:
    """What a dataset's digest stands for: digests of its tables, names and sizes of its image and mask files."""
    return {"tables": {p.name: digest_file(p, memo) for p in tables if p.is_file()},
            "files": sorted([name, entry.stat().st_size] for name, entry in files.items())}


def read_mask(path: Path, image: tuple[int, int], values: Mapping[int, int]) -> np.ndarray:
    """A mask (H, W) uint8 with the file's grey values replaced: 0 background, 1 foreground, 255 ignore.

    Args: image: height and width of its image, which must be the mask's too; values: replacement by grey value.
    """
    raw = np.asarray(images.decode(path))
    if raw.shape != image:
        raise UserError(f"the mask has {raw.shape[0]} x {raw.shape[1]} pixels, its image {image[0]} x {image[1]}",
                        where=str(path), expected="a mask of its image's height and width",
                        fix="resize the mask, nearest neighbour")
    table = np.zeros(256, np.uint8)
    table[list(values)] = list(values.values())
    strange = sorted(set(np.unique(raw).tolist()) - set(values))
    if strange:
        raise UserError(f"the mask holds the grey values {strange[:8]}", where=str(path),
                        expected=f"only {', '.join(map(str, values))}", fix="save it without smoothing or JPEG")
    return table[raw]


def place_boxes(xywh: np.ndarray, frame: tuple[int, int], image: tuple[int, int], where: str) -> np.ndarray:
    """Boxes (n, 4) float32 xyxy in the stored image's pixels, from x, y, width, height in the pixels of a frame.

    A box that leaves the frame by more than a pixel, or has no area, is refused; up to a pixel is rounding, and cut.

    Args: frame, image: height and width of the picture that was annotated and of the file that is stored; where: named
    in errors.
    """
    xywh = np.asarray(xywh, np.float64).reshape(-1, 4)
    xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    edge = np.array([frame[1], frame[0]] * 2, float)
    for box, (w, h) in zip(xyxy, xywh[:, 2:], strict=True):
        if w <= 0 or h <= 0:
            raise UserError(f"the box {_shown(box)} has no area", where=where, expected="positive width and height",
                            fix="remove or mend it")
        if box.min() < -1 or (box > edge + 1).any():
            raise UserError(f"the box {_shown(box)} leaves its image", where=where,
                            expected=f"x within 0..{frame[1]}, y within 0..{frame[0]}", fix="remove or mend it")
    scale = np.array([image[1], image[0]] * 2) / edge
    return (np.clip(xyxy, 0, edge) * scale).astype(np.float32)


def _shown(box: np.ndarray) -> str:
    return "(" + ", ".join(f"{v:g}" for v in box) + ")"


@dataclass(frozen=True, slots=True)
class CocoImage:
    """One image of a COCO file: declared (height, width), boxes (n, 4) x, y, width, height, and labels (n,)."""

    size: tuple[int, int]
    xywh: np.ndarray
    labels: np.ndarray


def read_coco(path: Path, classes: Sequence[str]) -> dict[str, CocoImage]:
    """Boxes of a COCO detection file by image file name; labels index `classes`, matched by category name."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        index = {c["id"]: classes.index(c["name"]) for c in content["categories"] if c["name"] in classes}
        boxes: dict[Any, list[tuple[list[float], int]]] = {i["id"]: [] for i in content["images"]}
        for a in content["annotations"]:
            if a["category_id"] in index:
                boxes[a["image_id"]].append((a["bbox"], index[a["category_id"]]))
        return {i["file_name"]: CocoImage((i["height"], i["width"]),
                                          np.array([b for b, _ in boxes[i["id"]]], float).reshape(-1, 4),
                                          np.array([k for _, k in boxes[i["id"]]], np.int64))
                for i in content["images"]}
    except FileNotFoundError:
        raise UserError("an annotation file of the dataset is missing", where=str(path),
                        fix="copy it there under this name") from None
    except (KeyError, TypeError, ValueError) as error:  # json.JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise UserError(f"the annotation file is not in COCO's format ({type(error).__name__}: {error})",
                        where=str(path), expected="images, categories and annotations that refer to them",
                        fix="copy it again") from error


def check_value(row: Row, column: str, allowed: Collection[str]) -> str:
    """The row's value, which must be one of the allowed."""
    if row[column] not in allowed:
        raise row.wrong(column, f"one of {', '.join(allowed)}")
    return row[column]


@lru_cache
def read_prompts(path: Path) -> Mapping[str, Mapping[str, Prompts]]:
    """Prompts by target and class from YAML {target: {class: {positive: [], negative: []}}}; `source` is prose."""
    import yaml

    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content.pop("source", None)
    return {target: {name: Prompts(tuple(p["positive"]), tuple(p.get("negative", ()))) for name, p in classes.items()}
            for target, classes in content.items()}

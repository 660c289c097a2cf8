"""`data verify`: open every file, check every value, account for every row, and look for leaks between splits.

Leaks are looked for in two ways: a group that stands in several splits, and images that look the same but belong to
different groups. Alike means a 256-bit difference hash (16 x 16 comparisons of neighbouring grey values) that differs
in at most 7 bits: copies at another size or quality differ in 0 to 2, different chest X-rays in 20 or more. Such pairs
agree in at least one of 8 bands of 32 bits, so that sorting by band finds them without comparing all pairs.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from prior_bench.data.images import BadImage
from prior_bench.data.splits import SPLITS
from prior_bench.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from prior_bench.data.dataset import Boxes, Dataset
    from prior_bench.types import ImageRecord

SIDE = 16  # comparisons per row and rows of the difference hash
BANDS = 8
NEAR = BANDS - 1  # bits; with more, two hashes could differ in every band


@dataclass(frozen=True, slots=True)
class Finding:
    """`error`: mend it; `warning`: look at it; `info`: what was counted, or left out on purpose."""

    severity: Literal["error", "warning", "info"]
    what: str
    where: str = ""


@dataclass(frozen=True, slots=True)
class Opened:
    """What is kept of an opened image: height and width, and its difference hash (32,) uint8."""

    size: tuple[int, int]
    hash: np.ndarray


def verify(dataset: Dataset, near_duplicates: bool = True,
           report: Callable[[str, float], None] | None = None) -> list[Finding]:
    """All findings, each once, errors first. `report` is called with (phase, share done)."""
    found: list[Finding] = []
    try:
        found += _check_studies(dataset)
        opened, bad = _open_all(dataset, report)
        found += bad
        for target in dataset.targets:
            found += _check_target(dataset, target, opened)
        found += [Finding("info", f"left out: {why}", where) for where, why in dataset.left_out()]
        if near_duplicates:
            found += _check_alike(dataset, {i: o.hash for i, o in opened.items()})
    except UserError as error:  # a table that cannot be read ends the walk: nothing after it can be trusted
        found.append(_as_finding(error))
    return sorted(dict.fromkeys(found), key=lambda f: ("error", "warning", "info").index(f.severity))


def difference_hash(image: PILImage) -> np.ndarray:
    """(32,) uint8: 256 bits, each whether a pixel of the 17 x 16 thumbnail is darker than its right neighbour."""
    from PIL import Image

    small = np.asarray(image.resize((SIDE + 1, SIDE), Image.Resampling.BOX)).astype(np.int16)
    return np.packbits(small[:, 1:] > small[:, :-1])


def find_alike(hashes: Mapping[str, np.ndarray]) -> list[tuple[str, str, int]]:
    """Pairs of ids whose hashes differ in at most `NEAR` bits, with the number of bits, sorted."""
    ids = sorted(hashes)
    if len(ids) < 2:
        return []
    table = np.stack([hashes[i] for i in ids])
    bands = np.ascontiguousarray(table).view(np.uint32)  # (n, BANDS)
    pairs: dict[tuple[str, str], int] = {}
    for band in bands.T:
        order = np.argsort(band, kind="stable")
        for a, b in _equal_neighbours(band[order]):
            left, right = order[a], order[b]
            distance = np.unpackbits(table[left] ^ table[right], axis=1).sum(1)
            for i, j, d in zip(left, right, distance, strict=True):
                if d <= NEAR:
                    first, second = sorted((ids[i], ids[j]))
                    pairs[first, second] = int(d)
    return [(a, b, d) for (a, b), d in sorted(pairs.items())]


def _equal_neighbours(values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Index pairs (a, b), a < b, of equal values in a sorted array, nearest ones first; O(n) memory."""
    at, step = np.arange(len(values)), 1
    while True:
        at = at[at + step < len(values)]
        at = at[values[at] == values[at + step]]
        if not len(at):
            return
        yield at, at + step
        step += 1


# ------------------------------------------------------------------------------------------- checks


def _check_studies(dataset: Dataset) -> Iterator[Finding]:
    """Ids are unique, groups stay in one split, every split has images."""
    for kind, ids in (("study", [s.id for s in dataset.studies]),
                      ("image", [i.id for s in dataset.studies for i in s.images])):
        for id, n in Counter(ids).items():
            if n > 1:
                yield Finding("error", f"{n} records have one {kind} id", id)
    splits: dict[str, set[str]] = {}
    for study in dataset.studies:
        splits.setdefault(study.group, set()).add(study.split)
    for group, inside in splits.items():
        if len(inside) > 1:
            yield Finding("error", f"a patient leaks: the group is in {' and '.join(sorted(inside))}", f"group {group}")
    for split in SPLITS:
        studies = [s for s in dataset.studies if s.split == split]
        groups, pictures = len({s.group for s in studies}), sum(len(s.images) for s in studies)
        yield Finding("info" if studies else "warning",
                      f"{split}: {pictures} images in {len(studies)} studies of {groups} groups")


def _open_all(dataset: Dataset, report: Callable[[str, float], None] | None
              ) -> tuple[dict[str, Opened], list[Finding]]:
    records = list(dataset.records.values())
    opened, bad = {}, []
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = pool.map(lambda r: _open(dataset, r), records)
        for done, (record, result) in enumerate(zip(records, results, strict=True), 1):
            if isinstance(result, BadImage):
                bad.append(_as_finding(result))
            else:
                opened[record.id] = result
            if report is not None and done % 64 == 0:
                report("opening images", done / len(records))
    return opened, bad


def _open(dataset: Dataset, record: ImageRecord) -> Opened | BadImage:
    try:
        image = dataset.read_image(record)
    except BadImage as error:
        return error
    return Opened((image.height, image.width), difference_hash(image))


def _check_target(dataset: Dataset, target: str, opened: Mapping[str, Opened]) -> Iterator[Finding]:
    spec = dataset.targets[target]
    try:
        ids = {split: dataset.ids(target, split) for split in SPLITS}
        if spec.kind in {"multilabel", "exclusive"}:
            yield from _check_labels(dataset, target)
    except UserError as error:
        yield _as_finding(error)
        return
    counts = ", ".join(f"{len(v)} {k}" for k, v in ids.items())
    yield Finding("info", f"target {target} ({spec.kind}): {counts}")
    for id in (i for inside in ids.values() for i in inside if i in opened):
        where, size = f"{target} of {id}", opened[id].size
        try:
            if spec.kind == "mask":
                yield from _check_mask(dataset.load_mask(target, id), size, where)
            elif spec.kind == "boxes":
                yield from _check_boxes(dataset.load_boxes(target, id), len(spec.classes), size, where)
            elif spec.kind == "report":
                report = dataset.study_of[id].report
                if report is None or not report.text.strip():
                    yield Finding("error", "the report is empty", where)
        except UserError as error:
            yield _as_finding(error)


def _check_labels(dataset: Dataset, target: str) -> Iterator[Finding]:
    spec, table = dataset.targets[target], dataset.labels(target)
    values = table.values
    for row in np.flatnonzero(~(np.isnan(values) | (values == 0) | (values == 1)).all(axis=1)):
        yield Finding("error", f"labels other than 0, 1 and missing: {values[row].tolist()}",
                      f"{target} of {table.ids[row]}")
    if spec.kind == "exclusive":
        for row in np.flatnonzero(values.sum(axis=1) != 1):
            yield Finding("error", "not exactly one class", f"{target} of {table.ids[row]}")
    for name, positives in zip(table.classes, (values == 1).sum(axis=0), strict=True):
        if positives == 0:
            yield Finding("warning", f"no image has the label {name!r}", target)


def _check_mask(mask: np.ndarray, size: tuple[int, int], where: str) -> Iterator[Finding]:
    if mask.shape != size:
        yield Finding("error", f"the mask has {mask.shape} pixels, its image {size} (height, width)", where)
    if not np.isin(mask, (0, 1, 255)).all():
        yield Finding("error", "the mask holds values other than 0, 1 and 255", where)


def _check_boxes(boxes: Boxes, classes: int, size: tuple[int, int], where: str) -> Iterator[Finding]:
    h, w = size
    for box in boxes.xyxy:
        inside = 0 <= box[0] < box[2] <= w + 0.01 and 0 <= box[1] < box[3] <= h + 0.01
        if not inside:
            yield Finding("error", f"the box {box.round(2).tolist()} is not inside {w} x {h} pixels", where)
    if len(boxes.labels) != len(boxes.xyxy) or not np.isin(boxes.labels, np.arange(classes)).all():
        yield Finding("error", "labels that do not fit the boxes or the classes", where)


def _check_alike(dataset: Dataset, hashes: Mapping[str, np.ndarray]) -> Iterator[Finding]:
    """Alike images of different groups: a leak where the splits differ."""
    for a, b, bits in find_alike(hashes):
        if dataset.group_of(a) == dataset.group_of(b):
            continue
        splits = sorted({dataset.study_of[a].split, dataset.study_of[b].split})
        severity: Literal["error", "warning"] = "error" if len(splits) > 1 else "warning"
        leak = f"a leak between {' and '.join(splits)}" if len(splits) > 1 else f"both in {splits[0]}"
        yield Finding(severity, f"near-duplicates of two groups, {bits} of 256 bits apart: {leak}", f"{a} and {b}")


def _as_finding(error: UserError) -> Finding:
    return Finding("error", error.what + (f" (expected: {error.expected})" if error.expected else ""), error.where)


def summary(findings: Iterable[Finding]) -> Sequence[str]:
    """One line per severity that occurs: how many."""
    counts = Counter(f.severity for f in findings)
    return [f"{counts[s]} {s}" for s in ("error", "warning", "info") if counts[s]]

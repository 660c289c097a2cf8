"""Detection metrics: COCO average precision (Lin et al. 2014) and FROC, from matches that are computed once.

Matching a detection to a box does not depend on the other images, so `match` does it once per image, class and IoU
threshold; a bootstrap draw then re-ranks the cached matches with each image counted as often as it was drawn.
Equal to pycocotools without crowds, area ranges and with at most 100 detections an image.

- `map_50_95`: mean AP over IoU .50:.05:.95; `ap_50`: at .50; `map_40_75`: over .40:.05:.75.
- `froc`: mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per image, hits at IoU .50.

Means run over the classes that have boxes in the truth; a class without any is NaN alone and left out of the mean. An
image without detections adds nothing, one without boxes only false positives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

IOUS = np.round(np.arange(0.40, 0.96, 0.05), 2)
RANGES = {"map_50_95": (0.50, 0.95), "ap_50": (0.50, 0.50), "map_40_75": (0.40, 0.75)}  # first and last IoU
METRICS = (*RANGES, "froc")
FALSE_POSITIVES = (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)  # per image
_RECALLS = np.linspace(0, 1, 101)
_HIT = int(np.searchsorted(IOUS, 0.50))
_CHUNK = 16  # draws worked on at once: memory is detections x chunk


@dataclass(frozen=True, slots=True)
class ImageBoxes:
    """One image: `boxes` (n, 4) xyxy with `scores` (n,), `labels` (n,); `truth` (m, 4) with `truth_labels` (m,)."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    truth: np.ndarray
    truth_labels: np.ndarray


@dataclass(frozen=True, slots=True)
class Matches:
    """One class: its detections over all images by falling score, and the number of true boxes of each image.

    `scores` (D,), `image` (D,) row of the image, `hit` (T, D): it matches a box at each of `IOUS`, `truths` (N,).
    """

    scores: np.ndarray
    image: np.ndarray
    hit: np.ndarray
    truths: np.ndarray


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (n, m) of boxes (n, 4) and (m, 4), xyxy."""
    a, b = np.asarray(a, float).reshape(-1, 1, 4), np.asarray(b, float).reshape(1, -1, 4)
    sides = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    inter = sides.prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inter
    return inter / np.where(union > 0, union, 1)


def match(images: Sequence[ImageBoxes], classes: int) -> list[Matches]:
    """Matches of each class. Detections take boxes by falling score, each the free box with the highest IoU at or above
    the threshold (the last of equals, as COCO does)."""
    found = []
    for c in range(classes):
        scores, rows, hits, truths = [], [], [], np.zeros(len(images), int)
        for i, image in enumerate(images):
            mine = np.flatnonzero(image.labels == c)
            mine = mine[np.argsort(-image.scores[mine], kind="stable")]
            truth = image.truth[image.truth_labels == c]
            truths[i] = len(truth)
            scores.append(image.scores[mine])
            rows.append(np.full(len(mine), i))
            hits.append(_hits(iou(image.boxes[mine], truth)))
        all_scores = np.concatenate([*scores, np.empty(0)])
        order = np.argsort(-all_scores, kind="stable")
        all_rows = np.concatenate([*rows, np.empty(0, int)]).astype(int)
        all_hits = np.concatenate([*hits, np.zeros((len(IOUS), 0), bool)], axis=1)
        found.append(Matches(all_scores[order], all_rows[order], all_hits[:, order], truths))
    return found


def _hits(overlap: np.ndarray) -> np.ndarray:
    """Which detections match a box at each threshold, (T, n), of their IoU (n, m) by falling score."""
    detections, boxes = overlap.shape
    hit = np.zeros((len(IOUS), detections), bool)
    if boxes == 0:
        return hit
    free = np.ones((len(IOUS), boxes), bool)
    for d in np.flatnonzero(overlap.max(1) >= IOUS[0]):
        possible = free & (overlap[d] >= IOUS[:, None])
        best = boxes - 1 - np.argmax(np.where(possible, overlap[d], -1)[:, ::-1], axis=1)
        hit[:, d] = possible.any(1)
        free[hit[:, d], best[hit[:, d]]] = False
    return hit


@dataclass(frozen=True, slots=True)
class _Drawn:
    """One class in B draws: `weights` (B, D) of detections, their running sum `seen`; `truths`, `images` (B,)."""

    matches: Matches
    weights: np.ndarray
    seen: np.ndarray
    truths: np.ndarray
    images: np.ndarray

    @classmethod
    def of(cls, matches: Matches, weights: np.ndarray) -> _Drawn:
        drawn = np.take(weights.astype(np.int32), matches.image, axis=1)
        seen = np.cumsum(drawn, axis=1, dtype=np.int32)
        return cls(matches, drawn, seen, weights @ matches.truths, weights.sum(1, dtype=np.int64))


def _average_precision(drawn: _Drawn) -> np.ndarray:
    """AP (B, T) at each of `IOUS`, 101-point interpolated; NaN where no box is left."""
    ap = np.empty((len(drawn.truths), len(IOUS)))
    for t, hit in enumerate(drawn.matches.hit):
        at = np.flatnonzero(hit)  # precision is highest at a hit, so hits are enough
        true = np.cumsum(drawn.weights[:, at], axis=1)
        precision = true / np.maximum(drawn.seen[:, at], 1)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        recall = true / np.maximum(drawn.truths, 1)[:, None]
        reached = np.searchsorted(_RECALLS, recall, side="right")
        ap[:, t] = (np.diff(reached, axis=1, prepend=0) * precision).sum(1) / len(_RECALLS)
    ap[drawn.truths == 0] = np.nan
    return ap


def _froc(drawn: _Drawn) -> np.ndarray:
    """Mean sensitivity (B,) at `FALSE_POSITIVES` per image, hits at IoU .50; NaN where no box is left.

    An operating point is a score threshold: detections of equal score come together.
    """
    scores = drawn.matches.scores
    ends = np.flatnonzero(np.append(np.diff(scores) != 0, len(scores) > 0))
    true = np.cumsum(drawn.weights * drawn.matches.hit[_HIT], axis=1, dtype=np.int32)
    false = (drawn.seen - true)[:, ends]
    true = np.concatenate([np.zeros((len(true), 1), np.int32), true[:, ends]], axis=1)
    allowed = np.outer(drawn.images, FALSE_POSITIVES)
    found = [t[np.searchsorted(f, a, side="right")] for t, f, a in zip(true, false, allowed, strict=True)]
    return np.where(drawn.truths > 0, np.mean(found, axis=1) / np.maximum(drawn.truths, 1), np.nan)


def box_metrics(matches: Sequence[Matches], classes: Sequence[str], weights: np.ndarray | None = None,
                ) -> dict[str, np.ndarray]:
    """Every metric in each draw: {name: (B,)} and per class {name_class: (B,)}, NaN where undefined.

    Args:
        matches: of `match`, in the order of `classes`.
        weights: (B, N) multiplicity of each image in each draw; None: each image once.
    """
    if weights is None:
        weights = np.ones((1, len(matches[0].truths)), np.int64)
    parts = [_metrics(matches, classes, weights[start: start + _CHUNK])
             for start in range(0, len(weights), _CHUNK)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _metrics(matches: Sequence[Matches], classes: Sequence[str], weights: np.ndarray) -> dict[str, np.ndarray]:
    each: dict[str, list[np.ndarray]] = {name: [] for name in METRICS}
    for m in matches:
        drawn = _Drawn.of(m, weights)
        ap = _average_precision(drawn)
        for name, (first, last) in RANGES.items():
            each[name].append(ap[:, (first <= IOUS) & (last >= IOUS)].mean(1))
        each["froc"].append(_froc(drawn))
    counted = [c for c, m in enumerate(matches) if m.truths.any()]
    found = {}
    for name, values in each.items():
        empty = np.full(len(weights), np.nan)
        found[name] = np.mean([values[c] for c in counted], axis=0) if counted else empty
        found |= {f"{name}_{cls}": values[c] for c, cls in enumerate(classes)}
    return found

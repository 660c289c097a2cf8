"""Overlap of a binary mask with its truth: Dice and IoU of the foreground, from pixel counts.

Background is never averaged in, and ignored pixels are in no count. Every metric is a sum over images of one term
divided by the sum of another, so the bootstrap needs the terms alone:

- `dice_foreground_image_mean`: mean Dice of the images that have foreground.
- `dice_foreground_image_mean_empty_is_one`: mean over all images; where there is no foreground, 1 if none is predicted
  and 0 otherwise.
- `dice_foreground_dataset`, `iou_foreground_dataset`: pixels of all images counted together.
"""

from __future__ import annotations

import numpy as np

METRICS = ("dice_foreground_image_mean", "dice_foreground_image_mean_empty_is_one", "dice_foreground_dataset",
           "iou_foreground_dataset")


def pixel_counts(prediction: np.ndarray, truth: np.ndarray, ignore: np.ndarray | None = None) -> tuple[int, int, int]:
    """True positives, false positives and false negatives of two masks (H, W) bool, outside `ignore`."""
    prediction, truth = np.asarray(prediction, bool), np.asarray(truth, bool)
    if ignore is not None:
        prediction, truth = prediction & ~ignore, truth & ~ignore
    both = int(np.count_nonzero(prediction & truth))
    return both, int(np.count_nonzero(prediction)) - both, int(np.count_nonzero(truth)) - both


def terms(counts: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Numerator and denominator (N,) of each metric per image, of `counts` (N, 3): tp, fp, fn."""
    tp, fp, fn = np.asarray(counts, float).reshape(-1, 3).T
    lesion = tp + fn > 0
    empty = tp + fp + fn == 0
    dice = 2 * tp / np.where(empty, 1, 2 * tp + fp + fn)
    return {
        "dice_foreground_image_mean": (np.where(lesion, dice, 0), lesion.astype(float)),
        "dice_foreground_image_mean_empty_is_one": (np.where(empty, 1, dice), np.ones(len(tp))),
        "dice_foreground_dataset": (2 * tp, 2 * tp + fp + fn),
        "iou_foreground_dataset": (tp, tp + fp + fn),
    }


def overlap_metrics(counts: np.ndarray) -> dict[str, float]:
    """The metrics of `counts` (N, 3); NaN where one is undefined (no image has foreground)."""
    return {name: float(top.sum() / bottom.sum()) if bottom.sum() > 0 else float("nan")
            for name, (top, bottom) in terms(counts).items()}


def encode_mask(mask: np.ndarray) -> str:
    """COCO run-length code (the `counts` string of pycocotools) of a mask (H, W) bool."""
    from pycocotools import mask as rle

    return str(rle.encode(np.asfortranarray(mask, np.uint8))["counts"], "ascii")


def decode_mask(counts: str, height: int, width: int) -> np.ndarray:
    """The mask (height, width) bool of a COCO run-length code."""
    from pycocotools import mask as rle

    return rle.decode({"size": [height, width], "counts": counts.encode("ascii")}).astype(bool)

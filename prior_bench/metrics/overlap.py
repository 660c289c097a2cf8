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
    """The mask (height, width) bool of a COCO run-length code; a ValueError where it is none of such a mask.

    pycocotools ends the process on a code that it did not write, and predictions may come from anywhere.
    """
    runs = _runs(np.frombuffer(counts.encode(), np.uint8))
    if runs.min(initial=0) < 0 or runs.max(initial=0) > height * width or runs.sum() != height * width:
        raise ValueError(f"the code is not of a mask of {height} x {width} pixels")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T


def _runs(code: np.ndarray) -> np.ndarray:
    """Run lengths (n,) int64, of 0 and 1 in turn. A number has five bits a character, the lowest first; a character
    with bit 6 is not its last, and bit 5 of the last is its sign. From the fourth on, it is added to the one before the
    last."""
    six = code.astype(np.int64) - 48
    if len(six) and (six.min() < 0 or six.max() > 63 or six[-1] > 31):
        raise ValueError("no run-length code")
    last = six < 32
    starts = np.flatnonzero(np.append(True, last[:-1])[: len(six)])
    place = np.arange(len(six)) - np.repeat(starts, np.diff(np.append(starts, len(six))))
    if place.max(initial=0) > 7:  # 40 bits
        raise ValueError("no run-length code")
    numbers = np.add.reduceat((six & 31) << 5 * place, starts) if len(six) else np.zeros(0, np.int64)
    numbers -= np.where(six[last] & 16, 1 << 5 * (place[last] + 1), 0)
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers

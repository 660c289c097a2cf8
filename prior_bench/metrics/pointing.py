"""The pointing game: does a map have its maximum where the thing is (Zhang et al., 2016, "Top-down neural attention by
excitation backprop")?

Without their tolerance of 15 pixels: a map of few positions is judged by the centres of its cells, where the maximum of
its bilinear interpolation lies too.
"""

from __future__ import annotations

import numpy as np


def pointing(maps: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where maps point, held against masks.

    Args: maps (N, h, w) finite, larger is more; masks (N, H, W) of the same images, 1 where the thing is.
    Returns: hits (N,), 1 where the maximum lies on the thing and 0 elsewhere, of several equal maxima the share that
    does; habit (N,), what the maps of all others reach on the same mask: the score of pointing without looking; and
    reachable (N,), whether any cell's centre lies on the thing: the most that a map so coarse can reach.
    """
    n, h, w = maps.shape
    rows, columns = ((np.arange(k) * 2 + 1) * side // (2 * k) for k, side in zip((h, w), masks.shape[1:], strict=True))
    inside = (masks[:, rows[:, None], columns] == 1).reshape(n, -1).astype(float)
    flat = maps.reshape(n, -1)
    peaks = (flat == flat.max(axis=1, keepdims=True)).astype(float)
    peaks /= peaks.sum(axis=1, keepdims=True)
    hits = (inside * peaks).sum(axis=1)
    habit = (inside @ peaks.sum(axis=0) - hits) / max(n - 1, 1)
    return hits, habit, inside.any(axis=1)

"""The pointing game against a plain loop over sentences and cells; ties, things off the image, coarse maps."""

from __future__ import annotations

import numpy as np
import pytest

from prior_bench.metrics.pointing import pointing


def by_loops(maps, masks):
    n, h, w = maps.shape
    side_y, side_x = masks.shape[1] / h, masks.shape[2] / w
    hits, habit = [], []
    for i in range(n):
        scores = []
        for j in range(n):
            at = [(r, c) for r in range(h) for c in range(w) if maps[j, r, c] == maps[j].max()]
            inside = [masks[i, int((r + 0.5) * side_y), int((c + 0.5) * side_x)] == 1 for r, c in at]
            scores.append(sum(inside) / len(at))
        hits.append(scores[i])
        habit.append((sum(scores) - scores[i]) / (n - 1))
    return hits, habit


@pytest.mark.parametrize(("shape", "side"), [((4, 4), 32), ((7, 7), 48), ((2, 3), 30), ((8, 8), 8)])
def test_by_loops_with_ties(shape, side):
    rng = np.random.default_rng(0)
    maps = rng.integers(0, 4, (9, *shape)).astype(float)  # few values, so that maxima tie
    masks = rng.integers(0, 2, (9, side, side)).astype(np.uint8)
    masks[0] = 255  # padding alone: off the image
    masks[1] = 1
    hits, habit, reachable = pointing(maps, masks)
    np.testing.assert_allclose(hits, by_loops(maps, masks)[0])
    np.testing.assert_allclose(habit, by_loops(maps, masks)[1])
    assert (hits[0], habit[0], reachable[0]) == (0, 0, False)
    assert (hits[1], habit[1], reachable[1]) == (1, 1, True)


def test_a_flat_map_scores_the_share_of_cells():
    masks = np.zeros((1, 8, 8), np.uint8)
    masks[0, :, :2] = 1
    hits, habit, _ = pointing(np.zeros((1, 4, 4)), masks)
    assert (hits[0], habit[0]) == (0.25, 0)


def test_what_no_cell_centre_meets_is_not_reachable():
    masks = np.zeros((2, 32, 32), np.uint8)
    masks[0, 0, 0] = masks[1, 4, 4] = 1
    maps = np.zeros((2, 4, 4))
    maps[:, 0, 0] = 1
    hits, _, reachable = pointing(maps, masks)
    assert hits.tolist() == [0, 1]
    assert reachable.tolist() == [False, True]

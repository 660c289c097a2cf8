"""Use of prototypes, the pointing game over findings, and curves, on numbers made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from prior_bench.diagnosis import curves, pointing_game, use


def test_use_of_equal_and_of_collapsed_prototypes():
    equal = use(np.eye(5).repeat(3, axis=0))
    assert (equal["entropy"], equal["entropy_of_one"], equal["first_choices"]) == (pytest.approx(1), 0, 1)
    collapsed = use(np.eye(5)[[2] * 7])
    assert (collapsed["entropy"], collapsed["entropy_of_one"], collapsed["first_choices"]) == (0, 0, 0.2)
    blind = use(np.full((4, 5), 0.2))
    assert (blind["entropy"], blind["entropy_of_one"]) == (pytest.approx(1), pytest.approx(1))
    assert sum(equal["mean_weights"]) == pytest.approx(1)


def test_pointing_by_finding_over_patients():
    masks = np.zeros((40, 16, 16), np.uint8)
    masks[:, :4, :4] = 1
    maps = np.zeros((40, 4, 4))
    maps[::2, 0, 0] = 1  # nodules are found, edema is not
    maps[1::2, 3, 3] = 1
    groups = [f"patient {i // 4}" for i in range(40)]
    found = pointing_game(maps, masks, ["nodule", "edema"] * 20, groups)
    assert list(found) == ["all", "edema", "nodule"]
    assert (found["all"]["hits"], found["all"]["chance"], found["all"]["reachable"]) == (0.5, 1 / 16, 1)
    assert found["all"]["habit"] == pytest.approx(0.5)
    assert found["all"]["interval"] == (0.5, 0.5)  # half of every patient's
    assert (found["nodule"]["hits"], found["edema"]["hits"], found["nodule"]["sentences"]) == (1, 0, 20)


def test_curves_begin_where_their_stage_does():
    rows = [{"step": i, "epoch": 0, "stage": 1 + (i >= 50), "lr": 0.1, "total": 100.0 - i, "images_per_second": 9.0}
            | ({"late": 1.0} if i >= 50 else {}) for i in range(100)]
    found = curves(rows)
    assert list(found) == ["total", "late", "lr"]
    assert found["total"] == {"from_step": 0, "first": 99.5, "last": 1.5}
    assert found["late"]["from_step"] == 50

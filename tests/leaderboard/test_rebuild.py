"""What `problems` finds in a stored result, and that one cell alone has the intervals it has in the tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from prior_bench.errors import UserError
from prior_bench.leaderboard.rebuild import problems, rebuild
from prior_bench.results import predictions_path, read_results

PATTERN = "*_zero-shot_zero-shot_phantom_*"


def test_problems(committed):
    folder = committed("prior" + PATTERN)
    one, other = read_results(folder)
    assert problems(folder, one) == []
    first, *rest = one.metrics
    changed = replace(one, metrics=(replace(first, value=0.5), *rest[:-1], replace(rest[-1], name="more")))
    found = problems(folder, changed)
    assert len(found) == 2
    assert found[0].startswith(f"{first.name} is stored as 0.5 (")
    assert f"the predictions give {first.value:.6f}"[:-1] in found[0]
    assert "give no such metric" in found[1]
    (miscounted,) = problems(folder, replace(one, metrics=(replace(first, counts={"images": 1}),)))
    assert "(images 1)" in miscounted
    (version,) = problems(folder, replace(one, cell=replace(one.cell, protocol_version=7)))
    assert version == "protocol version 7 cannot be recomputed, this program has version 1"
    predictions_path(folder, other.cell).unlink()
    assert problems(folder, other) == ["the predictions of a result are missing"]


def test_one_cell_alone_has_the_draws_of_all(committed, tmp_path):
    folder = committed("prior" + PATTERN)
    found = list(read_results(folder))
    whole = rebuild(folder, found, tmp_path / "memo")
    (alone,) = rebuild(folder, found, tmp_path / "other", [found[1]])
    assert alone.result is found[1]
    for name, values in whole[1].replicates.items():
        np.testing.assert_array_equal(alone.replicates[name], values)


def test_a_memo_that_cannot_be_written(committed, tmp_path):
    folder = committed("prior" + PATTERN)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write") as caught:
        rebuild(folder, list(read_results(folder)), tmp_path / "file" / "memo")
    assert "--cache" in caught.value.fix

"""The statistical gate's test: against scipy's t test, and by simulation its false alarms and its power."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from prior_bench.leaderboard.gate.statistical import compared
from prior_bench.leaderboard.gate.statistical.judgement import LEVEL, POWER, Change
from prior_bench.leaderboard.gate.statistical.seeds import Series
from prior_bench.statistics import holm

OLD = [0.71, 0.74, 0.72, 0.69, 0.75, 0.73]


@pytest.mark.parametrize("new", [0.66, 0.735, 0.80])
def test_one_new_seed_is_the_t_test_of_two_groups(new: float) -> None:
    """With one value in the second group, the pooled deviation is that of the first."""
    change = Change.of(OLD, [new], "higher")
    assert change.p == pytest.approx(stats.ttest_ind([new], OLD, alternative="less").pvalue)
    assert change.p_better == pytest.approx(1 - change.p)
    assert Change.of(OLD, [new], "lower").p == pytest.approx(change.p_better)
    assert Change.of(OLD, [new], "neither").p == pytest.approx(stats.ttest_ind([new], OLD).pvalue)


@pytest.mark.parametrize("better", ["higher", "neither"])
def test_a_difference_of_the_critical_size_is_just_significant(better: str) -> None:
    size = Change.of(OLD, [0.7, 0.7], better).critical(0.01)
    mean = float(np.mean(OLD))
    assert Change.of(OLD, [mean - size] * 2, better).p == pytest.approx(0.01)


def test_what_never_varied_may_not_change() -> None:
    assert Change.of([0.0] * 5, [0.0], "higher").p == 0.5
    assert Change.of([0.0] * 5, [-0.001], "higher").p == 0
    assert Change.of([0.0] * 5, [0.001], "higher").p == 1
    assert Change.of([0.0] * 5, [0.001], "neither").p == 0


def test_five_seeds_that_agree_by_chance_are_given_the_resolution_of_what_is_stored() -> None:
    assert Change.of([1.0] * 5, [1.0001], "neither").p > 0.3
    assert Change.of([1.0] * 5, [1.01], "neither").p < 1e-6


def test_used_is_one_where_the_adjusted_p_is_the_level() -> None:
    change = Change.of(OLD, [0.7], "higher")
    assert change.used(LEVEL) == pytest.approx(1)
    assert change.used(LEVEL / 10) > 1
    assert change.used(1.0) == 0


@pytest.mark.parametrize(("seeds", "new"), [(5, 1), (10, 1), (10, 3)])
def test_the_detectable_regression_is_found_with_its_power(seeds: int, new: int) -> None:
    """Normal seeds of deviation 1; the detectable size in units of the true deviation, not of the estimated one."""
    level, rng = 1e-3, np.random.default_rng(0)
    old = rng.standard_normal((20_000, seeds))
    estimated = old.std(axis=1, ddof=1)
    change = Change.of(old[0], [0.0] * new, "higher")
    size = change.detectable(level) / change.deviation
    fresh = rng.standard_normal((20_000, new)).mean(axis=1) - size
    limit = np.array([change.critical(level) / change.deviation])
    found = (old.mean(axis=1) - fresh > limit * estimated).mean()
    assert found == pytest.approx(POWER, abs=0.012)


@pytest.mark.parametrize("shared", [0.0, 0.8], ids=["independent", "correlated"])
def test_false_alarms_of_a_run_are_at_most_the_level(shared: float) -> None:
    """Runs of 40 tests on normal seeds, ten in the baseline: any adjusted p below the level is a false alarm."""
    rng, level, runs, cells = np.random.default_rng(1), 0.2, 400, 40
    alarms = 0
    for _ in range(runs):
        common = np.sqrt(shared) * rng.standard_normal((1, 11))
        values = common + np.sqrt(1 - shared) * rng.standard_normal((cells, 11))
        pairs = [(f"cell {i}", "metric", Series("higher" if i % 2 else "neither", tuple(row[:10])),
                  Series("higher" if i % 2 else "neither", (row[10],))) for i, row in enumerate(values)]
        alarms += min(test.adjusted for test in compared(pairs)) < level
    error = np.sqrt(level * (1 - level) / runs)
    assert alarms / runs <= level + 2.5 * error
    if not shared:
        assert alarms / runs >= level - 3.5 * error  # and it is no test that never rejects


def test_all_tests_of_a_run_are_adjusted_together() -> None:
    rng = np.random.default_rng(2)
    pairs = [("cell", f"m{i}", Series("neither", tuple(rng.standard_normal(6))), Series("neither", (float(i),)))
             for i in range(8)]
    tests = compared(pairs)
    assert [t.adjusted for t in tests] == pytest.approx(holm([t.change.p for t in tests]))

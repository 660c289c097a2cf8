"""Ranks, mean ranks and several pre-training seeds, against loops over made-up replicates."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm, rankdata

from prior_bench.leaderboard import ranking
from prior_bench.leaderboard.rebuild import Rebuilt
from prior_bench.leaderboard.sheets import sheets
from prior_bench.leaderboard.tables import Known, tabled
from prior_bench.statistics import holm, over_seeds
from prior_bench.types import Cell, Metric, Result

DRAWS = 400


def rebuilt(method, values, fraction=0.1, seed=0, subset=0, source="phantom", task="classification",
            dataset="phantom", target="findings"):
    cell = Cell(method, "small", source, seed, f"w{seed}", task, 1, "standard", "linear", "s", dataset, "d",
                target, fraction, subset)
    metric = Metric("auroc_macro", float(values.mean()))
    return Rebuilt(Result(cell, "done"), {"auroc_macro": metric}, {"auroc_macro": values})


def replicates(means, spread=0.02, seed=0):
    """Draws (methods, DRAWS) around the means, with a part that methods share."""
    rng = np.random.default_rng(seed)
    return np.array(means)[:, None] + 0.05 * rng.normal(size=DRAWS) + spread * rng.normal(size=(len(means), DRAWS))


def ranks_of(table):
    return {(row.method, fraction): rank for (row, fraction), rank in ranking.ranks(ranking.compared(table)).items()}


@given(st.permutations(range(8)), st.lists(st.sampled_from([0.6, 0.65, 0.7, 0.8]), min_size=8, max_size=8),
       st.integers(0, 50))
def test_ranks_do_not_depend_on_the_order_of_rows(order, means, seed):
    """Four methods at two fractions, against a loop, whatever the order of results and names."""
    values = replicates(means, seed=seed)
    found = [rebuilt("abcd"[i % 4], values[i], fraction=(0.1, 1.0)[i // 4]) for i in range(8)]
    (table,) = tabled([], [found[i] for i in order])
    pairs = [(a, b) for part in (range(4), range(4, 8)) for a, b in combinations(part, 2)]
    p = []
    for a, b in pairs:
        difference = values[a] - values[b]
        p.append(2 * norm.sf(abs(difference.mean()) / difference.std(ddof=1)))
    expected = {("abcd"[i % 4], (0.1, 1.0)[i // 4]): 1 for i in range(8)}
    for (a, b), adjusted in zip(pairs, holm(p), strict=True):
        if adjusted < 0.05:
            worse = a if values[a].mean() < values[b].mean() else b
            expected["abcd"[worse % 4], (0.1, 1.0)[worse // 4]] += 1
    assert ranks_of(table) == expected
    renamed = [rebuilt("zyxw"[i % 4], values[i], fraction=(0.1, 1.0)[i // 4]) for i in range(8)]
    (again,) = tabled([], renamed)
    assert {("abcd"["zyxw".index(m)], f): rank for (m, f), rank in ranks_of(again).items()} == expected


@pytest.mark.parametrize("source", ["phantom", "none"])
def test_references_are_not_ranked_and_a_lone_method_neither(source):
    values = replicates([0.9, 0.7])
    (table,) = tabled([], [rebuilt("ours", values[0], source=source), rebuilt("random", values[1], source="none")])
    assert ranks_of(table) == {}
    assert ranking.overviews([table]) == []
    assert not any(cell.bold for sheet in sheets(Known([table], [], [])) for line in sheet.lines for cell in line.cells)


def test_mean_rank_orders_anew_in_each_draw():
    first, second = replicates([0.7, 0.71, 0.8]), replicates([0.6, 0.5, 0.55], seed=1)
    some = [rebuilt(m, v, f) for f, part in ((0.1, first), (1.0, second)) for m, v in zip("abc", part, strict=True)]
    some.append(rebuilt("a", first[0], 0.01))  # alone there: no cell that all have
    (overview,) = ranking.overviews(tabled([], some))
    assert (overview.cells, overview.all_cells, overview.versions) == (2, 3, {"classification": 1})
    means = (rankdata(-first.mean(1)) + rankdata(-second.mean(1))) / 2
    draws = (rankdata(-first, axis=0) + rankdata(-second, axis=0)) / 2
    for standing in overview.standings:
        i = "abc".index(standing.row.method)
        assert standing.mean_rank == means[i]
        assert standing.interval == pytest.approx(tuple(np.quantile(draws[i], [0.025, 0.975])))
    assert [s.mean_rank for s in overview.standings] == sorted(means)


@pytest.mark.parametrize(("dataset", "counts"), [("phantom", False), ("not-installed", True)])
def test_sanity_checks_are_shown_and_do_not_count_in_mean_ranks(dataset, counts):
    """The phantom's target `lungs` is one; of a data set that is not here nobody knows."""
    values = replicates([0.8, 0.7])
    found = [rebuilt(m, v, dataset=dataset) for m, v in zip("ab", values, strict=True)]
    sanity = [rebuilt(m, v, dataset=dataset, task="segmentation", target="lungs")
              for m, v in zip("ba", values, strict=True)]
    tables = tabled([], found + sanity)
    (overview,) = ranking.overviews(tables)
    assert [s.mean_rank for s in overview.standings] == ([1.5, 1.5] if counts else [1, 2])
    assert (overview.cells, overview.all_cells) == ((2, 2) if counts else (1, 1))
    told = {sheet.section.split(":")[0]: sheet.caption for sheet in sheets(Known(tables, [], []))}
    assert ("Sanity checks do not count: phantom/lungs." in told["Overview of track small"]) is not counts
    assert {section for section, caption in told.items() if "A sanity check" in caption} == (
        set() if counts else {"segmentation (linear) on phantom / lungs"})
    only = ranking.overviews(tabled([], sanity))
    assert bool(only) is counts


def test_pretraining_seeds_are_drawn_with_the_groups():
    """Unequal numbers of subsets too: each pre-training seed counts once."""
    values = replicates([0.7, 0.8, 0.6])
    found = [rebuilt("ours", values[0], seed=0, subset=0), rebuilt("ours", values[1], seed=0, subset=1),
             rebuilt("ours", values[2], seed=1, subset=0)]
    (table,) = tabled([], found)
    (row,) = table.entries
    summary = table.summary(row, 0.1, "auroc_macro")
    of_seeds = {0: (values[0] + values[1]) / 2, 1: values[2]}
    assert summary.mean == pytest.approx((of_seeds[0].mean() + of_seeds[1].mean()) / 2)
    np.testing.assert_allclose(summary.replicates, over_seeds(of_seeds))
    assert summary.pretrain_deviation == pytest.approx(
        abs(of_seeds[0].mean() - of_seeds[1].mean()) / math.sqrt(2))
    (values_sheet, variation) = sheets(Known([table], [], []))
    assert values_sheet.lines[0].label == "ours (small, phantom), 2 seeds"
    assert values_sheet.lines[0].cells[0].after == "3 of 4 runs"
    assert variation.lines[0].cells[0].text.startswith("subset ")
    assert f"pre-training {summary.pretrain_deviation:.3f}" in variation.lines[0].cells[0].text


@given(st.lists(st.sampled_from([0.6, 0.61, 0.63, 0.7]), min_size=2, max_size=6), st.integers(0, 30))
def test_ties_join_neighbours_of_which_no_two_differ(means, seed):
    """Against a loop over all runs of neighbours, by the pairs' p-values from scratch."""
    methods = "abcdef"[: len(means)]
    cells = [replicates(means, 0.005 * (k + 1), seed=seed + k) for k in range(4)]
    (overview,) = ranking.overviews(tabled([], [
        rebuilt(m, v, task=task, fraction=f) for (task, f), part in zip(
            [("classification", 0.1), ("classification", 1.0), ("zero-shot", None), ("zero-shot", 0.1)], cells,
            strict=True) for m, v in zip(methods, part, strict=True)]))
    draws = np.mean([rankdata(-part, axis=0) for part in cells], axis=0)
    pairs = list(combinations(range(len(means)), 2))
    p = []
    for i, j in pairs:
        difference = draws[i] - draws[j]
        error = difference.std(ddof=1)
        p.append(2 * norm.sf(abs(difference.mean()) / error) if error > 0 else float(difference.mean() == 0))
    differ = {frozenset(methods[i] for i in pair) for pair, q in zip(pairs, holm(p), strict=True) if q < 0.05}
    order = [s.row.method for s in overview.standings]
    runs = [order[i:j] for i in range(len(order)) for j in range(i + 2, len(order) + 1)
            if not any(frozenset(pair) in differ for pair in combinations(order[i:j], 2))]
    longest = [run for run in runs if not any(set(run) < set(other) for other in runs)]
    assert [[row.method for row in tie] for tie in overview.ties] == longest

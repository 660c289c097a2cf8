"""Which methods of a track are better: paired comparisons, ranks, and mean ranks over all tables.

All pairs of a track are compared in each column, in the table's main metric and in the same draws, and Holm's method
(1979) adjusts over the whole table. Rank = 1 + number of methods that are significantly better. References are
compared with, never ranked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from prior_bench.leaderboard.tables import Heading, Row, Table
from prior_bench.statistics import Paired, holm, interval, paired

LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Comparison:
    """Row a minus row b at one fraction. `better` is the one that is significantly better after adjustment."""

    fraction: float | None
    a: Row
    b: Row
    paired: Paired
    p_holm: float
    better: Row | None


def difference(table: Table, a: Row, b: Row, fraction: float | None, name: str) -> Paired | None:
    """Row a minus row b in one metric: the means' difference, with error, interval and p of the draws."""
    ours, theirs = table.summary(a, fraction, name), table.summary(b, fraction, name)
    if ours is None or theirs is None or ours.mean is None or theirs.mean is None:
        return None
    if ours.replicates is None or theirs.replicates is None:
        return None
    found = paired(ours.replicates, theirs.replicates)
    return None if found is None else replace(found, difference=ours.mean - theirs.mean)


def compared(table: Table) -> list[Comparison]:
    """All pairs of ranked rows of each track at each fraction, adjusted together."""
    main = table.main
    if main is None:
        return []
    found = [(fraction, a, b, one) for rows in table.tracks.values()
             for a, b in combinations([row for row in rows if not row.reference], 2)
             for fraction in table.fractions
             if (one := difference(table, a, b, fraction, main.name)) is not None]
    adjusted = holm([one.p for *_, one in found])
    sign = 1 if main.higher_is_better else -1
    return [Comparison(fraction, a, b, one, p, (a if sign * one.difference > 0 else b) if p < LEVEL else None)
            for (fraction, a, b, one), p in zip(found, adjusted, strict=True)]


def ranks(comparisons: Iterable[Comparison]) -> dict[tuple[Row, float | None], int]:
    """1 + number of significantly better methods of the track, for each row and fraction with a comparison."""
    result: dict[tuple[Row, float | None], int] = defaultdict(lambda: 1)
    for c in comparisons:
        for row in (c.a, c.b):
            result[row, c.fraction] += c.better not in (None, row)
    return dict(result)


@dataclass(frozen=True, slots=True)
class Standing:
    """A method in the overview of its track. `first` counts the cells in which no method is significantly better."""

    row: Row
    mean_rank: float
    interval: tuple[float, float] | None
    first: int
    orders: tuple[float, ...]  # its place in each cell, of which `mean_rank` is the mean


@dataclass(frozen=True, slots=True)
class Overview:
    """The methods of one track under one profile, over the `cells` (of `all_cells`) in which all of them have a value.

    The mean rank is that of the order of the means in each cell, 1 for the best, ties shared (as Demsar 2006 averages
    ranks); its interval orders them anew in each draw. `ties` are the longest runs of neighbours of which no two differ
    significantly in mean rank (paired in the same draws, Holm over the pairs): the bars of a critical-difference plot.
    """

    profile: str
    versions: dict[str, int]  # of the protocol, by task
    track: str
    cells: int
    all_cells: int
    standings: list[Standing]
    places: list[tuple[Heading, float | None]]  # the cells, in the order of each standing's `orders`
    ties: list[tuple[Row, ...]]
    sanity: list[str]  # targets of sanity checks, which do not count


def overviews(tables: Sequence[Table]) -> list[Overview]:
    """One overview a profile and track with two methods or more; of each task its latest protocol version, without
    sanity checks."""
    latest: dict[tuple[str, str], int] = {}
    for table in tables:
        h = table.heading
        latest[h.profile, h.task] = max(h.version, latest.get((h.profile, h.task), 0))
    chosen = defaultdict(list)
    for table in tables:
        if table.heading.version == latest[table.heading.profile, table.heading.task]:
            for track in table.tracks:
                chosen[table.heading.profile, track].append(table)
    found = [_overview(profile, track, some) for (profile, track), some in sorted(chosen.items())]
    return [one for one in found if one is not None]


def _overview(profile: str, track: str, all_tables: Sequence[Table]) -> Overview | None:
    tables = [table for table in all_tables if not table.sanity]
    sanity = sorted({f"{t.heading.dataset}/{t.heading.target}" for t in all_tables if t.sanity})
    rows = sorted({row for table in tables for row in table.tracks[track] if not row.reference})
    if len(rows) < 2:
        return None
    orders, draws, placed, places = [], [], [], []
    all_cells = 0
    for table in tables:
        given = ranks(compared(table))
        for fraction in table.fractions:
            values = _values(table, rows, fraction)
            all_cells += any(table.entry(row, fraction) is not None for row in rows)
            if values is not None:
                places.append((table.heading, fraction))
                orders.append(_order(values[0]))
                draws.append(_order(values[1]))
                placed.append([given.get((row, fraction)) == 1 for row in rows])
    if not orders:
        return None
    replicates = np.mean(draws, axis=0)  # (rows, draws)
    first = np.sum(placed, axis=0)
    standings = [Standing(row, float(np.mean(order)), interval(draw), int(count), tuple(map(float, order)))
                 for row, order, draw, count in zip(rows, np.transpose(orders), replicates, first, strict=True)]
    standings.sort(key=lambda s: (s.mean_rank, s.row))
    versions = {table.heading.task: table.heading.version for table in tables}
    ties = _ties([s.row for s in standings], dict(zip(rows, replicates, strict=True)))
    return Overview(profile, versions, track, len(orders), all_cells, standings, places, ties, sanity)


def _ties(rows: Sequence[Row], replicates: Mapping[Row, np.ndarray]) -> list[tuple[Row, ...]]:
    """The longest runs of two rows or more of which no two differ; a pair that cannot be compared does not differ."""
    pairs = {pair: found for pair in combinations(rows, 2)
             if (found := paired(replicates[pair[0]], replicates[pair[1]])) is not None}
    adjusted = holm([found.p for found in pairs.values()])
    differing = {pair for pair, p in zip(pairs, adjusted, strict=True) if p < LEVEL}
    runs: list[tuple[Row, ...]] = []
    for start in range(len(rows)):
        stop = start + 1
        while stop < len(rows) and not any((row, rows[stop]) in differing for row in rows[start:stop]):
            stop += 1
        if stop - start > 1 and (not runs or rows[stop - 1] != runs[-1][-1]):
            runs.append(tuple(rows[start:stop]))
    return runs


def _values(table: Table, rows: Sequence[Row], fraction: float | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Mean (rows,) and replicates (rows, draws) of the main metric, lower is better; None where a row has none."""
    main = table.main
    if main is None:
        return None
    found = [table.summary(row, fraction, main.name) for row in rows]
    means = [s.mean for s in found if s is not None and s.mean is not None]
    draws = [s.replicates for s in found if s is not None and s.replicates is not None]
    if len(means) < len(rows) or len(draws) < len(rows):
        return None
    sign = -1 if main.higher_is_better else 1
    return sign * np.array(means), sign * np.stack(draws)


def _order(values: np.ndarray) -> np.ndarray:
    """Ranks along the first axis, 1 for the lowest, ties shared; NaN in a column with a NaN."""
    from scipy.stats import rankdata

    return np.asarray(rankdata(values, axis=0, nan_policy="propagate"), float)

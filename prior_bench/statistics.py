"""Intervals and paired tests: the bootstrap over leak groups, vectorised over its draws.

A draw takes groups with replacement, four fewer than there are; a row then counts as often as its group was drawn. All
methods, fractions and seeds of a dataset share the draws, so their differences are paired. A draw in which a metric is
undefined (a class was lost) is NaN and replaced by a spare one; where more than 5 % are undefined there is no interval.
Tests that need no draws (DeLong, sign flips) are in paired_tests.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 1000
MAX_UNDEFINED = 0.05
FEWER = 4  # groups in a draw than there are (group_draws)
DETECTABLE = 2.80  # standard errors: the normal quantiles of 97.5 % and 80 %, so 80 % power at two-sided 5 %
SPARE = math.ceil(DRAWS / (1 - MAX_UNDEFINED)) - DRAWS
_WEIGHTS = 200_000  # rows x draws that are worked on at once: they stay in the processor's cache


def group_draws(groups: Sequence[str], n: int = DRAWS + SPARE, seed: int = 0) -> dict[str, np.ndarray]:
    """How often each group is drawn: {group: (n,) int16}. The same set of groups and seed give the same draws.

    Of G groups G - 4 are drawn. Replicates over G of them vary too little where groups are few, by (G - 1) / G, and
    their quantiles are not Student's. A 95 % interval of a mean is as wide as Student's with G - 3.4 of them: with
    (G - 1) (1.96 / t)^2, t being the quantile of G - 1 degrees of freedom. docs/performance.md has what that covers.
    """
    names = sorted(set(groups))
    return dict(zip(names, _draws(len(names), max(1, len(names) - FEWER), n, seed), strict=True))


def over_seeds(replicates: Mapping[int, np.ndarray]) -> np.ndarray:
    """Replicates of the mean over pre-training seeds: each draw of the groups also draws seeds, with replacement.

    K - 1 of K seeds are drawn: K of them would understate the variance between few seeds by 1/K (Rao and Wu 1988).
    Rows with the same seeds share the draws. One seed is kept as it is, and speaks of that checkpoint alone. Few seeds
    remain few: simulated intervals of 2, 3, 5 seeds cover 94, 96, 96 % where the deviation over seeds equals the
    sampling error of one, 98, 98, 97 % where there is none, and 81, 89, 93 % where it is three times as large.

    Args:
        replicates: over the same draws of the groups (n,), by seed.
    """
    values = np.stack([replicates[seed] for seed in sorted(replicates)])
    if len(values) == 1:
        return values[0]
    drawn = _draws(len(values), len(values) - 1, values.shape[1], seed=1)
    return (drawn * values).sum(0) / (len(values) - 1)


def _draws(units: int, size: int, n: int, seed: int) -> np.ndarray:
    """(units, n) int16: how often each unit is among `size` drawn with replacement, n times."""
    rng = np.random.default_rng(seed)
    counts = np.empty((n, units), np.int16)
    for draw in counts:
        draw[:] = np.bincount(rng.integers(units, size=size), minlength=units)
    return np.ascontiguousarray(counts.T)


def defined(replicates: np.ndarray, n: int = DRAWS) -> tuple[np.ndarray | None, int]:
    """The first n defined replicates (fewer if fewer were drawn), and how many undefined ones they replaced.

    The first value is None where more than 5 % of the draws passed over are undefined.
    """
    good = np.flatnonzero(np.isfinite(replicates))[:n]
    seen = int(good[-1]) + 1 if len(good) == n else len(replicates)
    undefined = seen - len(good)
    if seen == 0 or undefined > MAX_UNDEFINED * seen:
        return None, undefined
    return replicates[good], undefined


def interval(replicates: np.ndarray, level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of the defined replicates; None where more than 5 % of the draws are undefined."""
    values, _ = defined(np.asarray(replicates, float))
    if values is None:
        return None
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Paired:
    """The difference a - b of one metric on the same images."""

    difference: float
    error: float  # standard error
    interval: tuple[float, float]  # 95 %
    p: float  # two-sided: normal approximation over draws (`paired`), Student's t from `paired_tests.delong`

    @property
    def detectable(self) -> float:
        """The smallest difference that these data show with a power of 80 % in a two-sided test at 5 %."""
        return DETECTABLE * self.error


def paired(replicates_a: np.ndarray, replicates_b: np.ndarray) -> Paired | None:
    """Compare two methods by their replicates over the same draws (n,); None where over 5 % are undefined.

    Difference, standard error and percentile interval are those of the draws.
    """
    values, _ = defined(np.asarray(replicates_a, float) - replicates_b)
    if values is None:
        return None
    low, high = np.quantile(values, [0.025, 0.975])
    mean, error = float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return Paired(mean, error, (float(low), float(high)), normal_p(mean, error))


def normal_p(difference: float, error: float) -> float:
    """Two-sided p of a difference with this standard error; where that is zero, 0, or 1 if there is no difference."""
    z = abs(difference) / error if error > 0 else (math.inf if difference else 0.0)
    return math.erfc(z / math.sqrt(2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted, worst, m = [0.0] * len(p_values), 0.0, len(p_values)
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (m - rank) * float(p_values[i])))
        adjusted[i] = worst
    return adjusted


class Bootstrap:
    """The draws seen from the rows of a predictions table: every method gives one value a draw.

    Args:
        groups: the leak group of each row (N,).
        draws: multiplicity of each group in each draw, {group: (n,) int}, as from `group_draws`.
    """

    def __init__(self, groups: Sequence[str] | np.ndarray, draws: Mapping[str, np.ndarray]):
        names, self._group = np.unique(np.asarray(groups, str), return_inverse=True)
        self._counts = np.stack([draws[str(name)] for name in names], axis=1)  # (n, groups)

    def auroc(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """AUROC in each draw, (n,); NaN in draws that lost a class. Rows with a NaN label are left out."""
        sorted_ = _Sorted(scores, labels)
        parts = []
        for positives, negatives in self._chunks(sorted_.positives, sorted_.negatives):
            below = _cumulative(negatives)
            twice = np.take(below, sorted_.below, axis=1) + np.take(below, sorted_.not_above, axis=1)
            right = np.einsum("dp,dp->d", positives, twice, dtype=float)
            parts.append(quotient(right, 2.0 * positives.sum(1) * below[:, -1]))
        return np.concatenate(parts)

    def average_precision(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Average precision in each draw, (n,); NaN in draws without positives. NaN labels are left out."""
        sorted_ = _Sorted(scores, labels)
        parts = []
        for positives, negatives in self._chunks(sorted_.positives, sorted_.negatives):
            positives_below, below = _cumulative(positives), _cumulative(negatives)
            true = positives_below[:, -1:] - np.take(positives_below, sorted_.positives_below, axis=1)
            false = below[:, -1:] - np.take(below, sorted_.below, axis=1)
            precision = true / np.maximum(true + false, 1)
            parts.append(quotient((positives * precision).sum(1), positives_below[:, -1]))
        return np.concatenate(parts)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum over rows of multiplicity x value: values (N, K) -> (n, K). NaN counts as zero."""
        grouped = np.zeros((self._counts.shape[1], values.shape[1]))
        np.add.at(grouped, self._group, np.nan_to_num(np.asarray(values, float)))
        size = _chunk(len(grouped))
        starts = range(0, len(self._counts), size)
        return np.concatenate([self._counts[start : start + size] @ grouped for start in starts])

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Mean of values (N,) in each draw, (n,). Rows that are NaN are left out; a draw without any other is NaN."""
        total = self.sums(np.stack([values, ~np.isnan(values)], axis=1))
        return quotient(total[:, 0], total[:, 1])

    def median(self, values: np.ndarray) -> np.ndarray:
        """Median of finite values (N,) in each draw, (n,); the mean of the middle two where their number is even."""
        order = np.argsort(values, kind="stable")
        ascending = np.append(values[order], np.nan)  # the last one is reached by draws without rows
        parts = []
        for (weights,) in self._chunks(order):
            cumulative = np.cumsum(weights, axis=1)
            total = cumulative[:, -1:]
            middle = [(cumulative <= half).sum(1) for half in ((total - 1) // 2, total // 2)]
            parts.append((ascending[middle[0]] + ascending[middle[1]]) / 2)
        return np.concatenate(parts)

    def _chunks(self, *rows: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
        """Multiplicities (chunk of draws, len(rows)) int32 of some rows, for each list of rows given."""
        columns = [self._group[r] for r in rows]
        size = _chunk(sum(map(len, columns)))
        for start in range(0, len(self._counts), size):
            counts = self._counts[start : start + size].astype(np.int32)
            yield tuple(np.take(counts, c, axis=1) for c in columns)


class _Sorted:
    """One label's rows by score, ascending: one sort serves all draws.

    `positives` (P,) and `negatives` are row numbers. For each positive, `below` and `not_above` count the negatives
    with a lower and with no higher score, and `positives_below` the positives with a lower score.
    """

    def __init__(self, scores: np.ndarray, labels: np.ndarray):
        order = np.argsort(scores, kind="stable")
        self.positives, self.negatives = order[labels[order] == 1], order[labels[order] == 0]
        positive, negative = scores[self.positives], scores[self.negatives]
        self.below = np.searchsorted(negative, positive, "left")
        self.not_above = np.searchsorted(negative, positive, "right")
        self.positives_below = np.searchsorted(positive, positive, "left")


def _chunk(rows: int) -> int:
    """How many draws are worked on at once."""
    return max(1, _WEIGHTS // max(rows, 1))


def _cumulative(weights: np.ndarray) -> np.ndarray:
    """(d, n + 1): column k is the sum of the first k columns of weights (d, n)."""
    result = np.zeros((weights.shape[0], weights.shape[1] + 1), weights.dtype)
    np.cumsum(weights, axis=1, out=result[:, 1:])
    return result


def quotient(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """NaN where the denominator is zero."""
    return np.divide(numerator, denominator, out=np.full(np.shape(numerator), np.nan), where=denominator > 0)

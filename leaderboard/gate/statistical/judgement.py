"""Is a new run worse than the seeds of the baseline? A t test of a prediction, adjusted over the run, and its power.

The baseline holds n values of a quantity, one a seed. The mean of m new values of unchanged code differs from theirs by
s sqrt(1/n + 1/m) times a t variable with n - 1 degrees of freedom, s being the deviation between the n: the test data
are the same in every run, so what varies is the seed. Few seeds make wide tails; `detectable` says how wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import copysign, inf, sqrt
from typing import Literal

import numpy as np

Better = Literal["higher", "lower", "neither"]  # neither: a loss term, which a mistake moves either way

LEVEL = 0.01  # probability of any false alarm in a run, so one in a hundred nights
POWER = 0.8
RESOLUTION = 1e-4  # relative: less than this deviation is no measurement, curves are kept in four digits


@dataclass(frozen=True, slots=True)
class Change:
    """New values of a quantity beside the baseline's. `p` is that of a change for the worse (of any change where
    neither way is better) before adjustment, `p_better` that of one for the better."""

    old: float  # means
    new: float
    deviation: float  # between the baseline's seeds
    error: float  # standard error of new - old
    degrees: int
    sides: int
    p: float
    p_better: float

    @classmethod
    def of(cls, old: Sequence[float], new: Sequence[float], better: Better) -> Change:
        """Compare m new values with n >= 2 old ones."""
        from scipy import stats

        mean, again = float(np.mean(old)), float(np.mean(new))
        deviation = max(float(np.std(old, ddof=1)), RESOLUTION * abs(mean))
        error, degrees = deviation * sqrt(1 / len(old) + 1 / len(new)), len(old) - 1
        sides = 2 if better == "neither" else 1
        # where all seeds are 0, any difference is infinitely many deviations
        t = (again - mean) / error if error else copysign(inf, again - mean) if again != mean else 0.0
        rising, falling = float(stats.t.sf(t, degrees)), float(stats.t.cdf(t, degrees))
        if better == "neither":
            p, p_better = min(1.0, 2 * min(rising, falling)), 1.0
        else:
            p, p_better = (falling, rising) if better == "higher" else (rising, falling)
        return cls(mean, again, deviation, error, degrees, sides, p, p_better)

    def critical(self, level: float) -> float:
        """The smallest difference that is significant at a level."""
        from scipy import stats

        return float(self.error * stats.t.isf(level / self.sides, self.degrees))

    def used(self, adjusted: float) -> float:
        """Share of the tolerance that is used: t of the adjusted p over that of LEVEL. Above 1: rejected."""
        from scipy import stats

        found, limit = stats.t.isf(np.array([adjusted, LEVEL]) / self.sides, self.degrees)
        return float(max(0.0, found / limit))

    def detectable(self, level: float) -> float:
        """The smallest true change that is found at a level with probability POWER (the test's t is non-central)."""
        return self.error * _shift(level / self.sides, self.degrees)


def _shift(level: float, degrees: int) -> float:
    """Non-centrality at which a one-sided t test at `level` has the power POWER."""
    from scipy import optimize, stats

    limit = stats.t.isf(level, degrees)
    return float(optimize.brentq(lambda shift: stats.nct.sf(limit, degrees, shift) - POWER, 0, 4 * limit + 10))

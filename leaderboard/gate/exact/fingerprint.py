"""A few dozen numbers that stand for an array, so that golden values stay small and a difference has a size.

An array is kept whole up to 24 entries. Of a larger one are kept its mean, its deviation, twelve projections on random
directions, which any change of its order changes, and twelve of its entries. Directions and places hang on the shape
alone. A projection of noise is as large as the noise, so one tolerance serves all numbers of an array.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, prod
from typing import Any

import numpy as np

WHOLE, PROJECTIONS, ENTRIES = 24, 12, 12
DIGITS = 7
_LEAST_SCALE = 1e-3


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """`undefined` counts entries that are no number; in `numbers` they stand as zero."""

    shape: tuple[int, ...]
    undefined: int
    numbers: tuple[float, ...]

    @property
    def whole(self) -> bool:
        return prod(self.shape) <= WHOLE

    @property
    def scale(self) -> float:
        """Root mean square of the array."""
        values = self.numbers if self.whole else self.numbers[:2]
        return float(np.sqrt(np.square(values).sum() / (max(len(values), 1) if self.whole else 1)))

    def name(self, index: int) -> str:
        """What one of the numbers is."""
        if self.whole:
            return f"entry {index}" if len(self.numbers) > 1 else ""
        if index < 2:
            return ("mean", "deviation")[index]
        index -= 2
        return f"projection {index}" if index < PROJECTIONS else f"sampled entry {index - PROJECTIONS}"


def fingerprint(values: Any) -> Fingerprint:
    """The fingerprint of an array of numbers or booleans, or of a single number."""
    array = np.asarray(values, np.float64)
    flat = np.nan_to_num(array, posinf=0.0, neginf=0.0).ravel()
    undefined = int((~np.isfinite(array)).sum())
    if flat.size <= WHOLE:
        return Fingerprint(array.shape, undefined, _rounded(flat))
    rng = np.random.default_rng(array.shape)
    projections = rng.standard_normal((PROJECTIONS, flat.size)) @ flat / np.sqrt(flat.size)
    entries = flat[rng.integers(flat.size, size=ENTRIES)]
    return Fingerprint(array.shape, undefined, _rounded([flat.mean(), flat.std(), *projections, *entries]))


def difference(found: Fingerprint, golden: Fingerprint, scale: float | None = None) -> tuple[float, int]:
    """The largest difference of two numbers in units of `scale` (None: the golden array's root mean square), and which
    number it is; infinite where the arrays have other shapes, or other entries are undefined."""
    if (found.shape, found.undefined) != (golden.shape, golden.undefined):
        return inf, 0
    if not golden.numbers:
        return 0.0, 0
    apart = np.abs(np.subtract(found.numbers, golden.numbers))
    worst = int(apart.argmax())
    return float(apart[worst] / (scale or max(golden.scale, _LEAST_SCALE))), worst


def _rounded(values: Any) -> tuple[float, ...]:
    rounded = tuple(float(f"{value:.{DIGITS}g}") for value in values)
    assert all(map(isfinite, rounded))
    return rounded

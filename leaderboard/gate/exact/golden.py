"""The files of an exact baseline. A folder for each method, which holds its checkpoint and its golden values:

    <method>/weights/       a weights folder of ours; matrices in float16
    <method>/<kind>.json    golden values of one device kind and precision ("cpu-fp32"), and why and from what they are
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prior_bench.leaderboard.gate.baseline import Origin
from prior_bench.leaderboard.gate.exact.fingerprint import Fingerprint

PACKAGED = Path(__file__).parent / "baseline"


@dataclass(frozen=True, slots=True)
class GoldenCell:
    """Fingerprints by quantity, and digests of what must be the same to compare them ("weights", "data", ...)."""

    made_from: dict[str, str]
    quantities: dict[str, Fingerprint]


@dataclass(frozen=True, slots=True)
class Golden:
    """Golden values of one method on one device kind in one precision, by cell ("prior/zero-shot/findings")."""

    schema: int
    kind: str
    origin: Origin
    cells: dict[str, GoldenCell]


def weights_folder(baseline: Path, method: str) -> Path:
    return baseline / method / "weights"


def methods(baseline: Path) -> list[str]:
    """Methods with a checkpoint in a baseline."""
    return sorted(path.parent.name for path in baseline.glob("*/weights"))

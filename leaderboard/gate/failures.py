"""What both gates hear of cells that run: only which ones failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prior_bench.grid import PlannedCell, Weights
    from prior_bench.types import Result


class Failures:
    """A listener that remembers which cells failed."""

    def __init__(self) -> None:
        self.errors: dict[PlannedCell, str] = {}

    def failed(self, cell: PlannedCell, error: str) -> None:
        self.errors[cell] = error

    def weights(self, weights: Weights, phase: str, share: float, text: str) -> None:
        """Nothing."""

    def loaded(self, weights: Weights, coverage: str) -> None:
        """Nothing."""

    def progress(self, cell: PlannedCell, phase: str, share: float) -> None:
        """Nothing."""

    def waiting(self, cell: PlannedCell) -> None:
        """Nothing."""

    def finished(self, cell: PlannedCell, result: Result, seconds: float | None) -> None:
        """Nothing."""

"""What both gates hear of cells that run: only which ones failed."""

from __future__ import annotations

from prior_bench.execution import Listener
from prior_bench.grid import PlannedCell


class Failures(Listener):
    """A listener that remembers which cells failed."""

    def __init__(self) -> None:
        self.errors: dict[PlannedCell, str] = {}

    def failed(self, cell: PlannedCell, error: str) -> None:
        self.errors[cell] = error

"""What both gates are asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prior_bench.engine.precision import Precision


@dataclass(frozen=True, slots=True)
class Options:
    """The options of `prior-bench check` that a gate reads."""

    precision: Precision
    cache: Path
    methods: tuple[str, ...] = ()  # empty: all that the baseline holds
    tasks: tuple[str, ...] = ()  # empty: all
    seeds: tuple[int, ...] = ()  # of pre-training, in the statistical gate; empty: the gate's own
    baseline: Path | None = None  # None: the one that is packaged
    say: Callable[[str], None] = field(default=lambda line: None)  # a line of progress

    @property
    def kind(self) -> str:
        """Device kind and precision, which two runs must share to be compared: "cpu-fp32"."""
        return "-".join(self.precision.key())

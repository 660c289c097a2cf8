"""Figures for people to look at: loss curves, the use of prototypes, and maps of sentences on images."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from prior_bench.engine.pretrain import terms

_COLUMNS = 3


def draw_losses(rows: Sequence[Mapping[str, float]], file: Path) -> None:
    """Curves over steps, a panel for the total, each term and the learning rate; thick: the mean over 2 % of the run;
    dotted: where a stage begins."""
    names = terms(rows)
    begins = [row["step"] for before, row in pairwise(rows) if row["stage"] != before["stage"]]
    width = max(1, len(rows) // 50)
    figure, panels = _panels(len(names), _COLUMNS, 4, 2.5)
    for panel, name in zip(panels, names, strict=False):
        steps = np.array([row["step"] for row in rows if name in row])
        values = np.array([row[name] for row in rows if name in row])
        panel.plot(steps, values, linewidth=0.5, alpha=0.4, color="C0")
        if len(values) > width:
            middle = steps[(width - 1) // 2 :]
            mean = np.convolve(values, np.ones(width) / width, "valid")
            panel.plot(middle[: len(mean)], mean, color="C0")
        for step in begins:
            panel.axvline(step, linestyle=":", linewidth=1, color="grey")
        panel.set_xlim(rows[0]["step"], rows[-1]["step"] + 1)
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("step", fontsize=8)
    _save(figure, file)


def draw_use(shares: Mapping[str, np.ndarray], file: Path) -> None:
    """A panel for each kind of item: the mean weight (K,) of each prototype, the most used first; dotted: equal use."""
    figure, panels = _panels(len(shares), len(shares), 4, 3)
    for panel, (name, values) in zip(panels, shares.items(), strict=True):
        panel.bar(np.arange(len(values)), np.sort(values)[::-1], width=1.0)
        panel.axhline(1 / len(values), linestyle=":", linewidth=1, color="grey")
        panel.set_title(name, fontsize=9)
        panel.set_xlabel("prototypes or queries, the most used first", fontsize=8)
        panel.set_ylabel("mean weight", fontsize=8)
    _save(figure, file)


@dataclass(frozen=True, slots=True)
class Example:
    """One sentence on one image: pixels (S, S) uint8, map (h, w), mask (S, S) with 1 where the finding is."""

    pixels: np.ndarray
    map: np.ndarray
    mask: np.ndarray
    title: str


def draw_maps(rows: Mapping[str, Sequence[Example]], file: Path) -> None:
    """A row of examples for each direction: the map over the image in colour, its maximum a cross, the outline of the
    mask in white. Maps are interpolated and stretched to their own range."""
    columns = max(len(examples) for examples in rows.values())
    figure, panels = _panels(len(rows) * columns, columns, 1.8, 2.6)
    for k, (name, examples) in enumerate(rows.items()):
        own = panels[k * columns : (k + 1) * columns]
        own[0].set_ylabel(name, fontsize=8)
        for panel, example in zip(own, examples, strict=False):
            side = len(example.pixels)
            whole = (0, side, side, 0)
            panel.imshow(example.pixels, cmap="gray", extent=whole)
            panel.imshow(example.map, cmap="inferno", alpha=0.45, interpolation="bilinear", extent=whole)
            middle = np.arange(side) + 0.5
            panel.contour(middle, middle, example.mask == 1, levels=[0.5], colors="white", linewidths=1)
            row, column = np.unravel_index(example.map.argmax(), example.map.shape)
            height, width = example.map.shape
            panel.plot((column + 0.5) * side / width, (row + 0.5) * side / height, "x", color="cyan", markersize=7)
            panel.set_title("\n".join(textwrap.wrap(example.title, 32)), fontsize=6)
            panel.set_xticks([])
            panel.set_yticks([])
    _save(figure, file)


def _save(figure: Figure, file: Path) -> None:
    """As a PNG of 256 colours, a third of its size in full colour."""
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=85)
    Image.open(drawn).convert("RGB").quantize(256).save(file, "PNG", optimize=True)


def _panels(n: int, columns: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    """A figure of n panels, so many in a row, each so large in inches."""
    lines = -(-n // columns)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    panels = [figure.add_subplot(lines, columns, place + 1) for place in range(n)]
    for panel in panels:
        panel.tick_params(labelsize=7)
    return figure, panels

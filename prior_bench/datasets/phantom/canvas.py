"""Drawing primitives of the phantom: a frame of thorax coordinates, soft edges, strokes and smooth noise.

Thorax coordinates are independent of pixels: x runs from -0.5 (patient's right, image left) to 0.5, y from 0 (top)
to 1.
Only element-wise numpy is used (no BLAS), so the bytes do not depend on the number of threads or processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray


def smoothstep(t: ArrayLike) -> Array:
    """0 below 0, 1 above 1, a smooth ramp between."""
    t = np.minimum(np.maximum(t, 0.0), 1.0)
    return np.asarray(t * t * (3.0 - 2.0 * t))


def smooth_max(a: Array, b: Array, radius: float) -> Array:
    """Maximum of two signed distances with its kink rounded over `radius` (polynomial, Inigo Quilez)."""
    h = np.maximum(radius - np.abs(a - b), 0.0) / radius
    return np.asarray(np.maximum(a, b) + h * h * (radius / 4))


class Frame:
    """The pixel grid of one exposure: where each pixel lies in the thorax.

    Args: size: pixels of a side; tilt: rotation in radians; shift: of the image, as a share of its side; zoom: scale.
    """

    def __init__(self, size: int, tilt: float = 0.0, shift: tuple[float, float] = (0.0, 0.0), zoom: float = 1.0):
        self.size, self.shift = size, shift
        self.unit = size * zoom  # pixels per thorax unit
        self.cos, self.sin, self.zoom = float(np.cos(tilt)), float(np.sin(tilt)), zoom
        centres = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
        u = (centres[None, :] - shift[0]) / zoom
        v = (centres[:, None] - shift[1]) / zoom
        self.x = (self.cos * u + self.sin * v).astype(np.float32)
        self.y = (self.cos * v - self.sin * u + 0.5).astype(np.float32)

    def blank(self) -> Array:
        return np.zeros((self.size, self.size), np.float32)

    def pixel(self, x: float, y: float) -> tuple[float, float]:
        """Column and row (real numbers, whole at a pixel's centre) of a thorax point."""
        u = self.zoom * (self.cos * x - self.sin * (y - 0.5)) + self.shift[0]
        v = self.zoom * (self.sin * x + self.cos * (y - 0.5)) + self.shift[1]
        return float((u + 0.5) * self.size - 0.5), float((v + 0.5) * self.size - 0.5)

    def rows(self, low: float, high: float) -> slice:
        """The rows that show any height between low and high."""
        ends = np.stack([self.y[:, 0], self.y[:, -1]])
        shown = np.flatnonzero((ends.max(0) >= low) & (ends.min(0) <= high))
        return slice(int(shown[0]), int(shown[-1]) + 1) if len(shown) else slice(0, 0)

    def edge(self, inside: ArrayLike, blur: float = 0.0) -> Array:
        """Coverage in 0..1 from a signed distance (thorax units, positive inside), at least one pixel soft."""
        width = blur + 1.2 / self.unit
        return smoothstep(np.asarray(inside, np.float32) / np.float32(width) + np.float32(0.5))

    def inside_ellipse(self, x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> Array:
        """About the distance to the edge of an ellipse, positive inside; its first axis is turned by `angle` (radians,
        clockwise on the image)."""
        c, s = float(np.cos(angle)), float(np.sin(angle))
        u = ((self.x - x) * c + (self.y - y) * s) / rx
        v = ((self.y - y) * c - (self.x - x) * s) / ry
        return np.asarray((1.0 - np.sqrt(u * u + v * v)) * min(rx, ry))

    def ellipse(self, x: float, y: float, rx: float, ry: float, angle: float = 0.0, blur: float = 0.0) -> Array:
        """Coverage of an ellipse (see `inside_ellipse`)."""
        return self.edge(self.inside_ellipse(x, y, rx, ry, angle), blur)

    def stroke(
        self,
        layer: Array,
        points: Sequence[tuple[float, float]],
        width: float,
        value: float = 1.0,
        end_width: float | None = None,
    ) -> None:
        """Draw a polyline into `layer` by maximum; the full width runs from `width` to `end_width` (thorax units)."""
        taper = 0.0 if end_width is None else end_width - width
        for i, ((x0, y0), (x1, y1)) in enumerate(pairwise(self.pixel(*point) for point in points)):
            half = (width + taper * (i + 0.5) / (len(points) - 1)) * self.unit / 2
            margin = half + 1.5
            left, right = int(max(min(x0, x1) - margin, 0)), int(min(max(x0, x1) + margin + 1, self.size))
            top, bottom = int(max(min(y0, y1) - margin, 0)), int(min(max(y0, y1) + margin + 1, self.size))
            if left >= right or top >= bottom:
                continue
            px = np.arange(left, right, dtype=np.float32)[None, :] - x0
            py = np.arange(top, bottom, dtype=np.float32)[:, None] - y0
            dx, dy = x1 - x0, y1 - y0
            along = (px * dx + py * dy) / max(dx * dx + dy * dy, 1e-6)
            along = np.minimum(np.maximum(along, 0.0), 1.0)  # np.clip is slow on small arrays
            px, py = px - along * dx, py - along * dy
            # a line thinner than a pixel keeps one pixel of width and loses contrast instead
            cover = np.minimum(np.maximum(max(half, 0.5) + 0.5 - np.sqrt(px * px + py * py), 0.0), 1.0)
            window = layer[top:bottom, left:right]
            np.maximum(window, cover * (value * min(1.0, half / 0.5)), out=window)


def noise(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Smooth noise (size, size), about unit deviation, with `cells` bumps a side (cubic B-spline of white noise)."""
    grid = rng.standard_normal((cells + 3, cells + 3)).astype(np.float32)
    at = (np.arange(size, dtype=np.float32) + 0.5) * cells / size
    first = at.astype(np.int64)
    t = at - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    rows = sum(weights[k][:, None] * grid[first + k] for k in range(4))
    columns = rows.T
    both = sum(weights[k][:, None] * columns[first + k] for k in range(4))
    return (both.T * 2.0).astype(np.float32)  # the spline halves the deviation (0.479 for the product of two axes)


def texture(rng: np.random.Generator, size: int, cells: int, octaves: int = 3) -> Array:
    """Noise of several scales, about unit deviation, the same structure at every image size."""
    layers = [noise(rng, size, cells << k) * 0.6**k for k in range(octaves)]
    return sum(layers[1:], layers[0]) / np.float32(sum(0.36**k for k in range(octaves)) ** 0.5)

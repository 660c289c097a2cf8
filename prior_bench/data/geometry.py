"""Geometry: how a source image lands on the square input of an encoder, and how predictions come back.

All three fits are one map: the source (h, w) is resized to (rh, rw) and laid on the (S, S) input with its corner at
(top, left), which is positive where black is padded (letterbox) and negative where the image is cut (crop). A point
moves as x_input = x_source * rw / w + left, in pixel edges: the first pixel begins at 0, the last one ends at w.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from prior_bench.types import ImageInput

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

IGNORE = 255  # mask value of pixels that leave loss and metric


@dataclass(frozen=True, slots=True)
class Geometry:
    """The map between an image of `source` (height, width) pixels and the input that `spec` asks for."""

    source: tuple[int, int]
    spec: ImageInput

    @property
    def resized(self) -> tuple[int, int]:
        """Height and width (rh, rw) of the whole resized image, at least one pixel each."""
        (h, w), size = self.source, self.spec.size
        if self.spec.fit == "squash":
            return size, size
        scale = size / max(h, w) if self.spec.fit == "letterbox" else size / self.spec.crop_pct / min(h, w)
        return max(1, round(h * scale)), max(1, round(w * scale))

    @property
    def corner(self) -> tuple[int, int]:
        """Top and left of the resized image on the input, in input pixels."""
        rh, rw = self.resized
        return (self.spec.size - rh) // 2, (self.spec.size - rw) // 2

    # --------------------------------------------------------------------------------------- forth

    def image(self, image: PILImage) -> np.ndarray:
        """Grey 8-bit image at source size to uint8 (S, S); anti-aliased; letterbox padding is black."""
        from PIL import Image

        method = Image.Resampling.BICUBIC if self.spec.interpolation == "bicubic" else Image.Resampling.BILINEAR
        return self._lay(image, method, background=0)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Mask (H, W) uint8 at source size to uint8 (S, S), nearest neighbour; letterbox padding is 255, ignore."""
        from PIL import Image

        return self._lay(Image.fromarray(mask), Image.Resampling.NEAREST, background=IGNORE)

    def boxes(self, xyxy: np.ndarray) -> np.ndarray:
        """Boxes (n, 4) from source to input pixels, clipped to the input: a box outside a crop keeps no area."""
        return np.clip(np.asarray(xyxy, np.float32).reshape(-1, 4) * self._scale + self._shift, 0, self.spec.size)

    # ---------------------------------------------------------------------------------------- back

    def boxes_back(self, xyxy: np.ndarray) -> np.ndarray:
        """Boxes (n, 4) from input to source pixels, clipped to the image."""
        h, w = self.source
        back = (np.asarray(xyxy, np.float32).reshape(-1, 4) - self._shift) / self._scale
        return np.clip(back, 0, np.array([w, h, w, h], np.float32))

    def mask_back(self, probability: np.ndarray) -> np.ndarray:
        """Probabilities (S, S) to float32 (H, W) at source size, bilinear; 0 where a crop cut the image away."""
        rows = _interpolation(self.source[0], self.resized[0], self.corner[0], self.spec.size)
        columns = _interpolation(self.source[1], self.resized[1], self.corner[1], self.spec.size)
        tall = _sample(np.asarray(probability, np.float32), *rows)
        return np.ascontiguousarray(_sample(tall.T, *columns).T)

    # ------------------------------------------------------------------------------------- helpers

    @property
    def _scale(self) -> np.ndarray:
        (h, w), (rh, rw) = self.source, self.resized
        return np.array([rw / w, rh / h] * 2, np.float32)

    @property
    def _shift(self) -> np.ndarray:
        top, left = self.corner
        return np.array([left, top] * 2, np.float32)

    def _lay(self, image: PILImage, method: int, background: int) -> np.ndarray:
        """Resize the visible part alone (a crop of a long strip needs no huge intermediate) and lay it on the input."""
        from PIL import Image

        h, w = self.source
        if image.size != (w, h):
            raise ValueError(f"image of {image.height} x {image.width} given to the geometry of {h} x {w} (h x w)")
        (rh, rw), (top, left), size = self.resized, self.corner, self.spec.size
        x0, x1 = max(left, 0), min(left + rw, size)
        y0, y1 = max(top, 0), min(top + rh, size)
        part = ((x0 - left) * w / rw, (y0 - top) * h / rh, min((x1 - left) * w / rw, w), min((y1 - top) * h / rh, h))
        canvas = Image.new("L", (size, size), background)
        canvas.paste(image.resize((x1 - x0, y1 - y0), Image.Resampling(method), box=part), (x0, y0))
        return np.array(canvas, dtype=np.uint8)


def _interpolation(source: int, resized: int, corner: int, size: int) -> tuple[np.ndarray, ...]:
    """Per source pixel along one axis: lower and upper input pixel, the upper one's weight, whether it is visible."""
    centre = (np.arange(source) + 0.5) * resized / source + corner
    inside = (centre >= 0) & (centre < size)
    first, last = max(corner, 0), min(corner + resized, size) - 1
    at = np.clip(centre - 0.5, first, last)
    lower = np.floor(at).astype(np.intp)
    return lower, np.minimum(lower + 1, last), (at - lower).astype(np.float32), inside


def _sample(values: np.ndarray, lower: np.ndarray, upper: np.ndarray, weight: np.ndarray,
            inside: np.ndarray) -> np.ndarray:
    """Linear interpolation along the first axis."""
    mixed = values[lower] * (1 - weight)[:, None] + values[upper] * weight[:, None]
    return mixed * inside[:, None]

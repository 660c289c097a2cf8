"""Augmentation of pre-training images: one affine move, one change of grey values, a flip, a blur.

Methods differ in how far each goes, which their recipes state; what is at 0 is not done.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter
from pydantic import Field

from prior_bench.recipes import Strict


class Augmentation(Strict):
    """How far an image is moved and changed. Ranges are symmetric about no change."""

    rotation: float = 0.0  # degrees, drawn in +-
    scale: float = Field(0.0, ge=0, lt=1)  # relative zoom, drawn in +-
    shift: float = Field(0.0, ge=0, lt=1)  # share of the side, drawn in +- along both axes
    crop: float = Field(1.0, gt=0, le=1)  # least share of each side that a random crop keeps
    contrast: float = Field(0.0, ge=0, lt=1)  # relative change about the middle grey
    brightness: float = Field(0.0, ge=0, lt=1)  # what is added, as a share of the grey range
    flip: bool = False  # left and right swapped half of the time; the report does not follow
    blur: tuple[float, float] | None = None  # deviation of a Gaussian in pixels, drawn between the two


def augment(pixels: np.ndarray, how: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """(H, W) uint8, moved in one resampling (black comes in from outside) and changed; the same size."""
    values = _regrey(_move(pixels, how, rng), how, rng)
    if how.blur is not None:
        radius = rng.uniform(*how.blur)
        values = np.asarray(Image.fromarray(values).filter(ImageFilter.GaussianBlur(radius)))
    if how.flip and rng.random() < 0.5:
        values = values[:, ::-1]
    return values


def _move(pixels: np.ndarray, how: Augmentation, rng: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape
    turn = np.deg2rad(rng.uniform(-how.rotation, how.rotation))
    zoom = rng.uniform(1 - how.scale, 1 + how.scale)
    dx, dy = rng.uniform(-how.shift, how.shift, 2) * (width, height)
    if how.crop < 1:
        side = rng.uniform(how.crop, 1)
        corner = rng.uniform(-(1 - side) / 2, (1 - side) / 2, 2) * (width, height)
        zoom, dx, dy = zoom / side, dx + corner[0], dy + corner[1]
    a, b = np.cos(turn) / zoom, np.sin(turn) / zoom
    x, y = width / 2, height / 2
    affine = (a, b, x - a * x - b * y + dx, -b, a, y + b * x - a * y + dy)  # from output to input coordinates
    moved = Image.fromarray(pixels).transform((width, height), Image.Transform.AFFINE, affine,
                                              Image.Resampling.BILINEAR)
    return np.asarray(moved)


def _regrey(values: np.ndarray, how: Augmentation, rng: np.random.Generator) -> np.ndarray:
    gain, lift = rng.uniform(-how.contrast, how.contrast), rng.uniform(-how.brightness, how.brightness)
    if not (gain or lift):
        return values
    table = (np.arange(256) - 127.5) * (1 + gain) + 127.5 + 255 * lift
    changed: np.ndarray = np.clip(table, 0, 255).round().astype(np.uint8)[values]
    return changed

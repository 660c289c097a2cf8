"""Geometry: boxes and masks survive the way to the input and back, for every fit and any source size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prior_bench.data.geometry import IGNORE, Geometry
from prior_bench.types import ImageInput

FITS = ("squash", "letterbox", "crop")
geometries = st.builds(
    lambda h, w, size, fit, pct: Geometry((h, w), ImageInput(size=size, fit=fit, crop_pct=pct)),
    st.integers(20, 400), st.integers(20, 400), st.sampled_from([32, 64, 224]), st.sampled_from(FITS),
    st.sampled_from([1.0, 0.9]),
)


def visible(g: Geometry) -> np.ndarray:
    """The part of the source that is on the input, xyxy."""
    return g.boxes_back(np.array([[0, 0, g.spec.size, g.spec.size]]))[0]


@given(geometries, st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_boxes_come_back(g, corners):
    x0, y0, x1, y1 = visible(g)
    xs, ys = sorted(corners[:2]), sorted(corners[2:])
    box = np.array([[x0 + xs[0] * (x1 - x0), y0 + ys[0] * (y1 - y0), x0 + xs[1] * (x1 - x0), y0 + ys[1] * (y1 - y0)]])
    there = g.boxes(box)
    assert there.min() >= 0
    assert there.max() <= g.spec.size
    np.testing.assert_allclose(g.boxes_back(there), box, atol=0.05)


@given(geometries, st.integers(0, 10_000))
def test_masks_come_back_within_one_pixel(g, seed):
    """A rectangle's mask returns with every edge within one pixel of the coarser of the two grids."""
    rng = np.random.default_rng(seed)
    h, w = g.source
    x0, y0, x1, y1 = visible(g)
    pixel = np.maximum(1, 1 / g._scale[:2])  # in source pixels: x, y
    sides = [np.sort(rng.integers(int(np.ceil(a)), int(b) + 1, 2)) for a, b in ((x0, x1), (y0, y1))]
    (left, right), (top, bottom) = sides
    if right - left < 3 * pixel[0] or bottom - top < 3 * pixel[1]:
        return
    mask = np.zeros((h, w), np.uint8)
    mask[top:bottom, left:right] = 1
    back = g.mask_back((g.mask(mask) == 1).astype(np.float32))
    assert back.shape == (h, w)
    ys, xs = np.nonzero(back > 0.5)
    got = np.array([xs.min(), xs.max() + 1, ys.min(), ys.max() + 1])
    assert np.all(np.abs(got - [left, right, top, bottom]) <= np.repeat(pixel, 2) + 1e-6)


@given(geometries)
def test_image_mask_and_boxes_agree(g):
    """What is bright in the fitted image is foreground in the fitted mask and inside the fitted box."""
    h, w = g.source
    source = np.zeros((h, w), np.uint8)
    source[h // 3: h - h // 3, w // 3: w - w // 3] = 255
    bright = g.image(Image.fromarray(source)) > 127
    mask = g.mask((source > 0).astype(np.uint8))
    assert ((mask == 1) == bright).mean() > 0.9
    x0, y0, x1, y1 = g.boxes(np.array([[w // 3, h // 3, w - w // 3, h - h // 3]]))[0]
    ys, xs = np.nonzero(bright)
    assert abs(xs.min() - x0) <= 1.01
    assert abs(xs.max() + 1 - x1) <= 1.01
    assert abs(ys.min() - y0) <= 1.01
    assert abs(ys.max() + 1 - y1) <= 1.01


def test_letterbox_pads_black_and_ignores():
    g = Geometry((50, 100), ImageInput(size=64, fit="letterbox"))
    image = g.image(Image.new("L", (100, 50), 200))
    mask = g.mask(np.ones((50, 100), np.uint8))
    assert g.resized == (32, 64)
    assert (image[:16] == 0).all()
    assert (image[16:48] == 200).all()
    assert (mask[:16] == IGNORE).all()
    assert (mask[16:48] == 1).all()


def test_crop_equals_resize_then_cut():
    rng = np.random.default_rng(0)
    source = Image.fromarray(rng.integers(0, 255, (120, 300), np.uint8))
    g = Geometry((120, 300), ImageInput(size=60, fit="crop"))
    whole = np.asarray(source.resize((150, 60), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(g.image(source), whole[:, 45:105])


def test_outside_of_a_crop_is_zero():
    g = Geometry((100, 200), ImageInput(size=50, fit="crop"))
    back = g.mask_back(np.ones((50, 50), np.float32))
    assert (back[:, 50:150] == 1).all()
    assert (back[:, :49] == 0).all()
    assert (back[:, 151:] == 0).all()


def test_no_boxes():
    g = Geometry((10, 10), ImageInput(size=8))
    assert g.boxes(np.zeros((0, 4))).shape == (0, 4)


def test_wrong_size_is_a_bug():
    with pytest.raises(ValueError, match="10 x 20"):
        Geometry((20, 10), ImageInput(size=8)).mask(np.zeros((10, 20), np.uint8))

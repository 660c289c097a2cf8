"""Contact sheets show every kind of annotation, are repeatable, and take any dataset."""

import numpy as np

from prior_bench.data.contact_sheet import COLUMNS, GAP, TILE, contact_sheet, outline


def test_sheet(toy):
    sheet = contact_sheet(toy, n=6, seed=1)
    assert sheet.mode == "RGB"
    assert sheet.width == COLUMNS * (TILE + GAP) + GAP
    assert sheet.height > 2 * TILE
    pixels = np.asarray(sheet).reshape(-1, 3)
    for colour in ((86, 180, 233), (0, 158, 115)):  # frames of discs and bars
        assert (pixels == colour).all(axis=1).any()
    np.testing.assert_array_equal(np.asarray(contact_sheet(toy, n=6, seed=1)), np.asarray(sheet))
    assert np.asarray(contact_sheet(toy, n=6, seed=2)).tobytes() != np.asarray(sheet).tobytes()


def test_masks_are_outlined(toy_class):
    class Plain(toy_class):
        def read_image(self, record):
            from PIL import Image

            return Image.new("L", (64, 64), 100)

    pixels = np.asarray(contact_sheet(Plain(), n=4)).reshape(-1, 3)
    assert (pixels == (230, 159, 0)).all(axis=1).any()


def test_an_outline_has_the_pixels_at_the_edge():
    mask = np.zeros((5, 6), bool)
    mask[1:, 1:5] = True  # four by four, down to the border of the image
    expected = mask.copy()
    expected[2:4, 2:4] = False
    np.testing.assert_array_equal(outline(mask), expected)


def test_more_than_there_is(toy_class):
    class Small(toy_class):
        def load_studies(self):
            return super().load_studies()[:2]

    assert contact_sheet(Small(), n=50).height < TILE * 2

"""Augmentation: each part does what its name says and nothing else, and a seed repeats it."""

import numpy as np
import pytest

from prior_bench.data.augment import Augmentation, augment


@pytest.fixture
def picture():
    y, x = np.mgrid[:64, :64]
    return (40 + 2 * x + ((y - 20) ** 2 + (x - 44) ** 2 < 60) * 60).astype(np.uint8)


def views(picture, n=40, **how):
    return [augment(picture, Augmentation(**how), np.random.default_rng(i)) for i in range(n)]


def spot(image):
    """Centre of the disc, (y, x)."""
    return np.argwhere(image >= image.max() - 20).mean(axis=0)


def test_nothing_is_done_by_default(picture):
    for view in views(picture, 3):
        np.testing.assert_array_equal(view, picture)


def test_rotation_turns_about_the_middle_and_shift_moves(picture):
    centre, true = np.array([31.5, 31.5]), spot(picture)
    for view in views(picture, rotation=20):
        assert abs(np.linalg.norm(spot(view) - centre) - np.linalg.norm(true - centre)) < 2
    moved = np.array([spot(view) - true for view in views(picture, shift=0.1)])
    assert np.abs(moved).max() < 0.1 * 64 + 1.5
    assert moved.std(axis=0).min() > 1


def test_a_crop_stays_inside_the_image(picture):
    seen = views(picture, crop=0.6)
    assert min(view.min() for view in seen) >= picture.min() - 1  # no black from outside
    sizes = [(view >= view.max() - 20).sum() for view in seen]
    assert max(sizes) > 1.8 * (picture >= picture.max() - 20).sum()


def test_grey_values(picture):
    for view in views(picture, brightness=0.2):
        change = view.astype(int) - picture
        inside = (view > 0) & (view < 255)
        assert np.ptp(change[inside]) <= 1
        assert abs(change[inside]).max() <= 52
    gains = [np.polyfit(picture.ravel(), view.ravel(), 1)[0] for view in views(picture, contrast=0.3)]
    assert 0.69 < min(gains) < 0.85
    assert 1.1 < max(gains) < 1.31


def test_flip_and_blur(picture):
    flips = {view.tobytes() for view in views(picture, flip=True)}
    assert flips == {picture.tobytes(), picture[:, ::-1].tobytes()}
    edge = np.abs(np.diff(picture.astype(int), axis=1)).max()
    assert all(np.abs(np.diff(view.astype(int), axis=1)).max() < edge for view in views(picture, blur=(1.0, 2.0)))


def test_a_seed_repeats_it(picture):
    how = {"rotation": 5, "scale": 0.1, "shift": 0.1, "crop": 0.8, "contrast": 0.2, "brightness": 0.2, "flip": True,
           "blur": (0.1, 2.0)}
    for first, second in zip(views(picture, **how), views(picture, **how), strict=True):
        np.testing.assert_array_equal(first, second)

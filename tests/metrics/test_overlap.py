"""Overlap metrics against a loop over pixels and images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as rle

from prior_bench.metrics.overlap import decode_mask, encode_mask, overlap_metrics, pixel_counts, terms

masks = arrays(np.int64, (5, 3, 4), elements=st.sampled_from([0, 0, 1, 255]))


def loop(prediction, truth):
    """The metrics as their definitions read, on lists of masks whose truth may hold 255 (ignore)."""
    per_image, per_image_all, total = [], [], np.zeros(3)
    for p, t in zip(prediction, truth, strict=True):
        tp = fp = fn = 0
        for a, b in zip(p.ravel(), t.ravel(), strict=True):
            if b == 255:
                continue
            tp, fp, fn = tp + (a == 1 and b == 1), fp + (a == 1 and b == 0), fn + (a != 1 and b == 1)
        total += (tp, fp, fn)
        if tp + fn:
            per_image.append(2 * tp / (2 * tp + fp + fn))
            per_image_all.append(per_image[-1])
        else:
            per_image_all.append(1.0 if fp == 0 else 0.0)
    tp, fp, fn = total
    nan = float("nan")
    return [np.mean(per_image) if per_image else nan, np.mean(per_image_all),
            2 * tp / (2 * tp + fp + fn) if total.any() else nan, tp / total.sum() if total.any() else nan]


def counts(prediction, truth):
    return np.array([pixel_counts(p == 1, t == 1, t == 255) for p, t in zip(prediction, truth, strict=True)])


@given(masks, masks)
def test_metrics_equal_a_loop(prediction, truth):
    found = overlap_metrics(counts(prediction, truth))
    np.testing.assert_allclose(list(found.values()), loop(prediction, truth))


@given(masks, masks, masks)
def test_ignored_pixels_change_nothing(prediction, truth, other):
    changed = np.where(truth == 255, other, prediction)
    assert (counts(prediction, truth) == counts(changed, truth)).all()


@given(masks, masks)
def test_terms_of_repeated_images_are_weights(prediction, truth):
    """A bootstrap draw is a weighted sum of the terms: as if the images had been repeated."""
    c = counts(prediction, truth)
    times = np.array([2, 0, 1, 3, 1])
    repeated = overlap_metrics(np.repeat(c, times, axis=0))
    for name, (top, bottom) in terms(c).items():
        weighted = times @ top / (times @ bottom) if times @ bottom else np.nan
        np.testing.assert_allclose(weighted, repeated[name])


def test_nothing_to_find_is_undefined_not_zero():
    found = overlap_metrics(np.array([[0, 0, 0], [0, 5, 0]]))
    assert np.isnan(found["dice_foreground_image_mean"])
    assert found["dice_foreground_image_mean_empty_is_one"] == 0.5
    assert found["dice_foreground_dataset"] == 0


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40), st.sampled_from([0, 0.02, 0.5, 0.98, 1]))
def test_codes_are_those_of_pycocotools(seed, height, width, share):
    found = np.random.default_rng(seed).random((height, width)) < share
    counts = encode_mask(found)
    np.testing.assert_array_equal(decode_mask(counts, height, width), found)
    np.testing.assert_array_equal(
        decode_mask(counts, height, width), rle.decode({"size": [height, width], "counts": counts.encode()}))


def test_a_large_mask():
    y, x = np.mgrid[:700, :900]
    found = np.hypot(y - 300, x - 500) < 200
    np.testing.assert_array_equal(decode_mask(encode_mask(found), 700, 900), found)


@given(st.text(st.characters(min_codepoint=40, max_codepoint=120)))
def test_any_other_code_is_refused(text):
    """pycocotools ends the process on some of these."""
    try:
        found = decode_mask(text, 8, 8)
    except ValueError:
        return
    np.testing.assert_array_equal(decode_mask(encode_mask(found), 8, 8), found)


@pytest.mark.parametrize("text", ["", "0", "é", "o", "o" * 1000, encode_mask(np.ones((8, 9), bool)), "00`2"])
def test_codes_that_are_none(text):
    with pytest.raises(ValueError, match="code"):
        decode_mask(text, 8, 8)

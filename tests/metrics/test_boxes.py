"""Detection metrics against pycocotools and plain loops."""

import contextlib
import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from prior_bench.metrics.boxes import FALSE_POSITIVES, IOUS, ImageBoxes, box_metrics, iou, match

CLASSES = ("nodule", "effusion", "mass")


def random_boxes(rng, n):
    corner = rng.uniform(0, 60, (n, 2))
    return np.concatenate([corner, corner + rng.uniform(5, 40, (n, 2))], axis=1)


def random_images(rng, n=12, classes=3):
    """Images whose detections are partly the truth with noise; some have no boxes, some no detections."""
    images = []
    for _ in range(n):
        truth = random_boxes(rng, rng.integers(0, 5))
        near = np.repeat(truth, rng.integers(0, 3), axis=0)
        boxes = np.concatenate([near + rng.uniform(-2, 2, near.shape), random_boxes(rng, rng.integers(0, 6))])
        labels = rng.integers(0, classes, len(truth))
        right = np.repeat(labels, len(near) // max(len(truth), 1))
        guesses = np.concatenate([right, rng.integers(0, classes, len(boxes))])
        images.append(ImageBoxes(boxes, rng.permutation(1000)[: len(boxes)] / 1000 + rng.uniform(0, 1e-4, len(boxes)),
                                 guesses[: len(boxes)], truth, labels))
    return images


def coco(images, classes, ious):
    """{class: AP over `ious`} of pycocotools; -1 where a class has no boxes."""
    def xywh(boxes):
        return [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes.tolist()]

    truth = [{"image_id": i, "category_id": int(c), "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
             for i, image in enumerate(images) for b, c in zip(xywh(image.truth), image.truth_labels, strict=True)]
    for number, annotation in enumerate(truth, 1):
        annotation["id"] = number
    found = [{"image_id": i, "category_id": int(c), "bbox": b, "score": float(s)} for i, image in enumerate(images)
             for b, c, s in zip(xywh(image.boxes), image.labels, image.scores, strict=True)]
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO()
        api.dataset = {"images": [{"id": i} for i in range(len(images))], "annotations": truth,
                       "categories": [{"id": c} for c in range(classes)]}
        api.createIndex()
        results = COCO()
        results.dataset = api.dataset | {"annotations": [
            f | {"id": n, "area": f["bbox"][2] * f["bbox"][3], "iscrowd": 0} for n, f in enumerate(found, 1)]}
        results.createIndex()
        evaluation = COCOeval(api, results, "bbox")
        evaluation.params.iouThrs = ious
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # (T, R, K), all areas, 100 detections
    return precision.mean((0, 1))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("name", "ious"), [("map_50_95", IOUS[2:]), ("ap_50", IOUS[2:3]), ("map_40_75", IOUS[:8])])
def test_average_precision_equals_pycocotools(seed, name, ious):
    images = random_images(np.random.default_rng(seed))
    found = box_metrics(match(images, 3), CLASSES)
    expected = coco(images, 3, ious)
    for c, cls in enumerate(CLASSES):
        assert found[f"{name}_{cls}"][0] == pytest.approx(expected[c], abs=1e-6)
    assert found[name][0] == pytest.approx(expected[expected >= 0].mean(), abs=1e-6)


def expanded(images, times):
    return [image for image, n in zip(images, times, strict=True) for _ in range(n)]


@given(st.integers(0, 10_000))
def test_draws_equal_matching_the_repeated_images_again(seed):
    rng = np.random.default_rng(seed)
    images = random_images(rng, n=8)
    weights = rng.integers(0, 3, (3, 8))
    found = box_metrics(match(images, 3), CLASSES, weights)
    for row, times in enumerate(weights):
        repeated = box_metrics(match(expanded(images, times), 3), CLASSES)
        for name, values in found.items():
            if name.endswith(CLASSES):  # the mean runs over the classes of the full set, so compare class by class
                np.testing.assert_allclose(values[row], repeated[name][0], atol=1e-9)


@given(st.integers(0, 10_000))
def test_froc_equals_a_loop_over_thresholds(seed):
    images = random_images(np.random.default_rng(seed), n=6, classes=1)
    found = box_metrics(match(images, 1), ("nodule",))["froc"][0]
    points = [(0.0, 0.0)]
    boxes = sum(len(image.truth) for image in images)
    for threshold in {s for image in images for s in image.scores}:
        hits = false = 0
        for image in images:
            free = set(range(len(image.truth)))
            for d in np.argsort(-image.scores):
                if image.scores[d] < threshold:
                    continue
                best = max(free, key=lambda g: iou(image.boxes[d], image.truth[g])[0, 0], default=None)
                if best is not None and iou(image.boxes[d], image.truth[best])[0, 0] >= 0.5:
                    free.remove(best)
                    hits += 1
                else:
                    false += 1
        points.append((false / len(images), hits))
    if boxes == 0:
        assert np.isnan(found)
    else:
        best = [max(hits for false, hits in points if false <= rate) / boxes for rate in FALSE_POSITIVES]
        assert found == pytest.approx(np.mean(best))


def test_iou_equals_pycocotools():
    from pycocotools import mask

    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 7), random_boxes(rng, 5)
    xywh = [np.concatenate([x[:, :2], x[:, 2:] - x[:, :2]], axis=1) for x in (a, b)]
    np.testing.assert_allclose(iou(a, b), mask.iou(*xywh, [0] * 5))


def test_no_detections_are_zero_and_no_boxes_undefined():
    none = np.empty((0, 4))
    box = np.array([[0.0, 0.0, 9.0, 9.0]])
    images = [ImageBoxes(none, np.empty(0), np.empty(0, int), box, np.array([0])),
              ImageBoxes(box, np.ones(1), np.array([1]), none, np.empty(0, int))]
    found = box_metrics(match(images, 3), CLASSES)
    for name in ("map_50_95", "ap_50", "map_40_75", "froc"):
        assert found[name][0] == 0
        assert found[f"{name}_nodule"][0] == 0
        assert np.isnan(found[f"{name}_effusion"][0])
        assert np.isnan(found[f"{name}_mass"][0])


def test_no_truth_at_all_is_undefined():
    box = np.array([[0.0, 0.0, 9.0, 9.0]])
    images = [ImageBoxes(box, np.ones(1), np.array([1]), np.empty((0, 4)), np.empty(0, int))]
    assert all(np.isnan(v[0]) for v in box_metrics(match(images, 3), CLASSES).values())


def test_perfect_detections_score_one():
    rng = np.random.default_rng(3)
    images = []
    for _ in range(5):
        boxes, labels = random_boxes(rng, 3), np.arange(3)
        images.append(ImageBoxes(boxes, rng.random(3), labels, boxes, labels))
    for values in box_metrics(match(images, 3), CLASSES).values():
        assert values[0] == pytest.approx(1)

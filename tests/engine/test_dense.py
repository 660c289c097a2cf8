"""Segmentation and detection models end to end: geometry there and back, ignored pixels, best weights, memory."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from prior_bench.data.dataset import Boxes, Dataset
from prior_bench.data.images import BadImage
from prior_bench.engine import openmmlab
from prior_bench.engine.precision import Precision
from prior_bench.errors import UserError
from prior_bench.features import FeatureCache
from prior_bench.method import ImageFeatures, Method
from prior_bench.task import Context
from prior_bench.types import Cell, DenseBudget, ImageInput, ImageRecord

with openmmlab.scope("mmseg"):
    from prior_bench.engine import dense, segmentor
with openmmlab.scope("mmdet"):
    from prior_bench.engine import detector

SIZE = 96
BUDGET = DenseBudget(size=SIZE, channels=16, batch=4, steps=3, validations=3)
FP32 = Precision(torch.device("cpu"), None)
FITS = [ImageInput(size=SIZE, fit="squash"), ImageInput(size=SIZE, fit="letterbox"),
        ImageInput(size=SIZE, fit="crop", crop_pct=0.9),
        ImageInput(size=SIZE, channels=3, mean=(0.5,) * 3, std=(0.2,) * 3)]
SUPPRESSION = detector.Suppression(1000, 0.5, 100)


class Pooled(Method):
    """Grey values pooled to each stride: a pyramid that costs nothing."""

    name: ClassVar[str] = "pooled"
    pyramid_channels = (2, 2, 2, 2)

    def __init__(self, spec=FITS[0]):
        super().__init__()
        self.image_input = spec
        torch.manual_seed(0)
        self.scale = nn.Conv2d(spec.channels, 2, 1)

    @classmethod
    def from_recipe(cls, recipe, texts=None, tokenizer=None):
        return cls()

    def encode_image(self, images):
        return ImageFeatures(None, self.pyramid(images)[-1])

    def pyramid(self, images):
        x = self.scale(images)
        return tuple(nn.functional.avg_pool2d(x, s) for s in (4, 8, 16, 32))


class Rectangles:
    """Images of odd shapes with one bright rectangle each: the part of a Dataset that dense training asks for."""

    name = "rectangles"
    version = 1
    shapes = ((90, 150), (200, 120), (61, 61), (96, 96))

    def __init__(self):
        rng = np.random.default_rng(0)
        self.truth, self.records = {}, {}
        for n, (h, w) in enumerate(self.shapes):
            half = min(h, w) / 2 * rng.uniform(0.3, 0.6, 2)
            cx, cy = w / 2 + rng.uniform(-5, 5), h / 2 + rng.uniform(-5, 5)
            box = np.round([cx - half[0], cy - half[1], cx + half[0], cy + half[1]])
            self.truth[f"r{n}"] = ((h, w), box.astype(int))
            self.records[f"r{n}"] = ImageRecord(f"r{n}")

    def fingerprint(self):
        return 0

    def mask(self, id):
        (h, w), (x0, y0, x1, y1) = self.truth[id]
        mask = np.zeros((h, w), np.uint8)
        mask[y0:y1, x0:x1] = 1
        return mask

    def boxes(self, id):
        return Boxes(self.truth[id][1][None].astype(np.float32), np.array([1]))

    def read_image(self, record):
        return Image.fromarray(50 + 150 * self.mask(record.id))


@pytest.fixture
def context(tmp_path: Path):
    def make(spec=FITS[0]):
        method = Pooled(spec)
        return Context(method, Rectangles(), "w", FP32, FeatureCache(tmp_path, method, "w", FP32), tmp_path)

    return make


def cell(mode="frozen"):
    return Cell("pooled", "r", "none", 0, "w", "t", 1, "standard", mode, "s", "rectangles", "d", "mask", 1.0)


def trained(context, build, library):
    with openmmlab.scope(library):
        return dense.TrainedHead(build().eval(), context, BUDGET)


# ------------------------------------------------------------------------------- there and back again


def coarser_pixel(geometry):
    """A pixel of the source or of the input, whichever is larger, for the sides of a box (x, y, x, y)."""
    (h, w), (rh, rw) = geometry.source, geometry.resized
    return np.array([w / rw, h / rh] * 2).clip(1)


@pytest.mark.parametrize("spec", FITS, ids=lambda s: f"{s.fit}-{s.channels}")
def test_a_known_mask_survives_store_pipeline_head_and_back(context, spec):
    """The head is replaced by the pipeline's own mask at stride 4; what comes back is the source mask, to a pixel."""
    context = context(spec)
    ids = list(context.dataset.truth)
    images = dense.DenseImages(context, ids, SIZE)
    head = trained(context, lambda: segmentor.build_segmentor(context.method, "frozen", spec, 16), "mmseg")
    truth = segmentor.MaskDataset(images, ids, context.dataset.mask)
    masks = torch.stack([truth[i]["data_samples"].gt_sem_seg.data for i in range(len(ids))])
    quarter = nn.functional.avg_pool2d((masks == 1).float(), 4)
    head.model.decode_head.forward = lambda maps: 20 * (quarter - 0.5)
    for id, sample in zip(ids, dense.predict(head, segmentor.MaskDataset(images, ids)), strict=True):
        geometry = images.geometry(id)
        found = geometry.mask_back(segmentor.probability(sample)) > 0.5
        (h, w), box = context.dataset.truth[id]
        assert found.shape == (h, w)
        y, x = np.nonzero(found)
        back = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1])
        assert (np.abs(back - box) <= coarser_pixel(geometry) + 1e-6).all()


@pytest.mark.parametrize("spec", FITS, ids=lambda s: f"{s.fit}-{s.channels}")
def test_a_known_box_survives_store_pipeline_head_and_back(context, spec):
    """The head is replaced by its own training targets; what it decodes is the source box within a pixel."""
    context = context(spec)
    ids = list(context.dataset.truth)
    images = dense.DenseImages(context, ids, SIZE)
    def build():
        return detector.build_detector(context.method, "frozen", spec, 16, 3, SUPPRESSION)

    model = trained(context, build, "mmdet")
    head = model.model.bbox_head
    data = detector.BoxDataset(images, ids, "abc", context.dataset.boxes)
    instances = [data[i]["data_samples"].gt_instances for i in range(len(ids))]
    sizes = [(SIZE // s, SIZE // s) for s in (32, 16, 8)]
    anchors = head.prior_generator.grid_priors(sizes, device="cpu")
    flags = [head.responsible_flags(sizes, i.bboxes, "cpu") for i in instances]
    targets, _ = head.get_targets([anchors] * len(ids), flags, instances)
    maps = []
    for target, (side, _) in zip(targets, sizes, strict=True):
        centre, sure = target[..., :2].clamp(1e-4, 1 - 1e-4).logit(), 20 * (target[..., 4:] - 0.5)
        raw = torch.cat([centre, target[..., 2:4], sure], -1)
        maps.append(raw.view(len(ids), side, side, -1).permute(0, 3, 1, 2))
    head.forward = lambda x: (tuple(maps),)
    for id, sample in zip(ids, dense.predict(model, detector.BoxDataset(images, ids, "abc")), strict=True):
        boxes, scores, labels = detector.found_boxes(sample)
        geometry = images.geometry(id)
        _, box = context.dataset.truth[id]
        assert len(boxes) <= 100
        assert scores[0] > 0.99
        assert labels[0] == 1
        assert (np.abs(geometry.boxes_back(boxes[:1])[0] - box) <= coarser_pixel(geometry)).all()


def test_a_missing_file_is_named(toy_class, tmp_path):
    class Files(toy_class):
        read_image = Dataset.read_image

    dataset = Files()
    dataset.records["gone"] = ImageRecord("gone", tmp_path / "gone.png")
    with pytest.raises(BadImage, match="does not exist"):
        dense.source_size(dataset, "gone")


def test_images_are_normalised_once(context):
    spec = ImageInput(size=SIZE, channels=3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    context = context(spec)
    images = dense.DenseImages(context, ["r0"], SIZE)
    expected = context.method.normalise(torch.from_numpy(images.pixels("r0")[None, None, :, :, 0]))
    for library, build, data in (
            ("mmseg", lambda: segmentor.build_segmentor(context.method, "frozen", spec, 16),
             segmentor.MaskDataset(images, ["r0"])),
            ("mmdet", lambda: detector.build_detector(context.method, "frozen", spec, 16, 3, SUPPRESSION),
             detector.BoxDataset(images, ["r0"], "abc"))):
        model = trained(context, build, library).model
        inputs = model.data_preprocessor(dense.pseudo_collate([data[0]]))["inputs"]
        torch.testing.assert_close(inputs, expected)


# -------------------------------------------------------------------------------------------- losses


def test_ignored_pixels_change_no_loss():
    with openmmlab.scope("mmseg"):
        model = segmentor.build_segmentor(Pooled(), "frozen", FITS[0], 16)
    rng = torch.Generator().manual_seed(0)
    target = torch.randint(2, (2, 1, 32, 32), generator=rng)
    target[:, :, :10] = 255
    logits = torch.randn(2, 1, 32, 32, generator=rng)
    other = torch.where(target == 255, torch.randn(2, 1, 32, 32, generator=rng) * 9, logits)
    losses = []
    for prediction in (logits, other):
        prediction = prediction.clone().requires_grad_()
        loss = [part(prediction, target[:, 0], ignore_index=255) for part in model.decode_head.loss_decode]
        sum(loss).backward()
        assert not prediction.grad[target == 255].any()
        losses.append([value.item() for value in loss])
    assert losses[0] == losses[1]
    known = target != 255
    p, t = logits.sigmoid() * known, (target == 1).float()
    dice = [1 - 2 * (a * b).sum() / ((a * a).sum() + (b * b).sum() + 2e-3) for a, b in zip(p, t, strict=True)]
    entropy = nn.functional.binary_cross_entropy_with_logits(logits[known], t[known])
    assert losses[0] == pytest.approx([float(entropy), float(np.mean(dice))], rel=1e-5)


def test_images_without_boxes_train(context):
    context = context()
    with openmmlab.scope("mmdet"):
        model = detector.build_detector(context.method, "frozen", FITS[0], 16, 3, SUPPRESSION)
    images = dense.DenseImages(context, ["r0", "r1"], SIZE)
    none = Boxes(np.empty((0, 4), np.float32), np.empty(0, np.int64))
    data = detector.BoxDataset(images, ["r0", "r1"], "abc", lambda id: none)
    assert len(data) == 2
    batch = model.data_preprocessor(dense.pseudo_collate([data[0], data[1]]), True)
    loss, parts = model.parse_losses(model(**batch, mode="loss"))
    loss.backward()
    assert torch.isfinite(loss)
    assert parts["loss_cls"] == 0


def test_a_box_that_a_crop_cut_away_is_no_truth(context):
    context = context(FITS[2])
    images = dense.DenseImages(context, ["r0"], SIZE)
    outside = Boxes(np.array([[0, 0, 5, 5], [70, 40, 90, 60]], np.float32), np.array([0, 1]))
    sample = detector.BoxDataset(images, ["r0"], "abc", lambda id: outside)[0]["data_samples"]
    assert sample.gt_instances.labels.tolist() == [1]


# ------------------------------------------------------------------------------------------ detection


def test_scores_are_objectness_times_class_and_best_candidates_are_kept(context):
    """An object of low class probability must not lose its place to sure classes of no object."""
    with openmmlab.scope("mmdet"):
        model = detector.build_detector(Pooled(), "frozen", FITS[0], 16, 2, detector.Suppression(5, 0.5, 100))
    head = model.bbox_head
    maps = [torch.zeros(1, 3, 7, SIZE // s, SIZE // s) for s in (32, 16, 8)]
    for m in maps:
        m[:, :, 4], m[:, :, 5:] = -8.0, 4.0  # no objects, sure classes
    maps[0][0, 0, 4, 1, 1], maps[0][0, 0, 5:, 1, 1] = 3.0, -1.0
    meta = {"scale_factor": (1, 1), "img_shape": (SIZE, SIZE)}
    found = head.predict_by_feat([m.flatten(1, 2) for m in maps], [meta])[0]
    expected = torch.tensor(3.0).sigmoid() * torch.tensor(-1.0).sigmoid()
    assert found.scores[:2].tolist() == pytest.approx([float(expected)] * 2, rel=1e-4)
    assert len(found.scores) <= 5


# ------------------------------------------------------------------------------------------- training


def fit(context, mode="frozen", steps=3):
    budget = DenseBudget(SIZE, 16, 4, steps, validations=3)
    ids = list(context.dataset.truth)
    images = dense.DenseImages(context, ids, SIZE)
    training = dense.training_of(context.method, mode)
    with openmmlab.scope("mmseg"):
        return dense.train(
            context, cell(mode), budget,
            build=lambda: segmentor.build_segmentor(context.method, training, images.spec, 16),
            data=segmentor.MaskDataset(images, ids, context.dataset.mask, np.random.default_rng(0)),
            validation=segmentor.MaskDataset(images, ids), metric=segmentor.OverlapMetric(images, context.dataset.mask),
            select="dice_foreground_image_mean",
            optimisation=dense.Optimisation(lambda step, steps: 1.0, weight_decay=0.0, lr=1e-2), augmented=True)


def test_the_encoder_trains_by_mode(context):
    for mode, changes in (("frozen", False), ("finetune", True)):
        c = context()
        before = c.method.scale.weight.clone()
        head = fit(c, mode)
        assert torch.equal(c.method.scale.weight, before)
        assert torch.equal(head.model.backbone.method.scale.weight, before) != changes
        rates = {len(g["params"]): g["lr"] for g in dense._optimizer(
            head.model, head.model.backbone, dense.Optimisation(lambda s, n: 1.0, 0.0, 5e-4)).param_groups}
        assert set(rates.values()) == ({5e-4, 5e-5} if changes else {5e-4})


def test_the_best_validation_is_kept(context):
    head = fit(context(), steps=6)
    history = head.details["validation"]
    assert [h["step"] for h in history] == [2, 4, 6]
    values = [h["dice_foreground_image_mean"] for h in history]
    best = max(range(3), key=lambda i: (values[i], i))
    assert head.details["best_step"] == history[best]["step"]
    ids = list(head.context.dataset.truth)
    images = dense.DenseImages(head.context, ids, SIZE)
    metric = segmentor.OverlapMetric(images, head.context.dataset.mask)
    samples = dense.predict(head, segmentor.MaskDataset(images, ids))
    metric.process(None, [s.to_dict() | {"img_id": s.img_id} for s in samples])
    again = metric.compute_metrics(metric.results)["dice_foreground_image_mean"]
    assert again == pytest.approx(values[best], abs=1e-6)


def test_training_repeats_itself_and_says_nothing(context, capfd):
    first, second = fit(context()), fit(context())
    assert first.details["validation"] == second.details["validation"]
    assert capfd.readouterr() == ("", "")


def test_the_last_layer_starts_from_a_low_foreground_probability(context):
    layer = fit(context(), steps=3).model.decode_head.conv_seg
    assert layer.bias.sigmoid().item() == pytest.approx(segmentor.PRIOR, abs=0.01)


def test_out_of_memory_names_the_batch_that_fits(context, monkeypatch):
    context = context()
    pyramid = Pooled.pyramid

    def scarce(self, images):
        if len(images) > 2 and torch.is_grad_enabled():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pyramid(self, images)

    monkeypatch.setattr(Pooled, "pyramid", scarce)
    with pytest.raises(UserError, match="batch of 4") as error:
        fit(context, "finetune")
    assert "a batch of 2 fits" in error.value.fix


def test_prediction_halves_its_batch_when_memory_is_short(context, monkeypatch):
    context = context()
    ids = list(context.dataset.truth)
    head = fit(context)
    images = dense.DenseImages(context, ids, SIZE)
    plain = [segmentor.probability(s) for s in dense.predict(head, segmentor.MaskDataset(images, ids))]
    pyramid = Pooled.pyramid

    def scarce(self, images):
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return pyramid(self, images)

    monkeypatch.setattr(Pooled, "pyramid", scarce)
    again = [segmentor.probability(s) for s in dense.predict(head, segmentor.MaskDataset(images, ids))]
    np.testing.assert_allclose(plain, again, atol=1e-5)
    notes = [f"out of memory: encoding batch halved to {size}" for size in (16, 8, 4, 2, 1)]
    assert context.features.notes == notes
    assert len(list(dense.predict(head, segmentor.MaskDataset(images, ids)))) == len(ids)
    assert context.features.notes == notes  # not a second time


# --------------------------------------------------------------------------------------- augmentation


def test_augmentation_moves_mask_with_image_and_ignores_what_turned_in():
    rng = np.random.default_rng(0)
    image = np.zeros((64, 64, 1), np.uint8)
    mask = np.zeros((64, 64), np.uint8)
    image[20:40, 24:44], mask[20:40, 24:44] = 200, 1
    augment = dense.Augment(rng)
    for _ in range(10):
        out = augment({"img": image, "gt_seg_map": mask})
        bright = out["img"][..., 0] > 110
        inside = out["gt_seg_map"] != 255
        assert out["img"].shape == image.shape
        assert (bright[inside] == (out["gt_seg_map"][inside] == 1)).mean() > 0.97
        assert set(np.unique(out["gt_seg_map"])) <= {0, 1, 255}


def test_an_image_without_a_counted_pixel_is_replaced():
    nothing = np.full((64, 64), 255, np.uint8)
    sample = {"img": np.zeros((64, 64, 1), np.uint8), "gt_seg_map": nothing}
    assert dense.Augment(np.random.default_rng(0))(sample) is None

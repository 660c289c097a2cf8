"""Fine-tuning: crops, frozen statistics, missing labels, and what happens when memory runs out."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from prior_bench.data.images import ImageStore
from prior_bench.engine import finetune as module
from prior_bench.engine.finetune import Classifier, finetune, random_resized_crop
from prior_bench.engine.precision import Precision
from prior_bench.errors import UserError
from prior_bench.features import FeatureCache
from prior_bench.task import Context


@pytest.fixture
def context(toy, pixel_method, tmp_path):
    method, precision = pixel_method(), Precision(torch.device("cpu"), None)
    features = FeatureCache(tmp_path / "features", method, "weights", precision)
    return Context(method, toy, "weights", precision, features, tmp_path)


def test_crops_lie_inside_and_cover_four_fifths():
    y, x = torch.meshgrid(torch.linspace(0, 1, 64), torch.linspace(0, 1, 64), indexing="ij")
    images = torch.stack([x, y]).expand(200, 2, 64, 64)
    crops = random_resized_crop(images, torch.Generator().manual_seed(0))
    assert crops.shape == images.shape
    assert crops.min() >= 0
    assert crops.max() <= 1
    width, height = ((crops[:, c].amax((1, 2)) - crops[:, c].amin((1, 2))) for c in (0, 1))
    assert (width * height).min() > 0.7  # 0.8 less what clipping a wide crop costs
    assert len(torch.unique(width.round(decimals=2))) > 10
    assert (crops[:, 0, :, 1:] >= crops[:, 0, :, :-1] - 1e-6).all()  # never flipped
    again = random_resized_crop(images, torch.Generator().manual_seed(0))
    assert torch.equal(crops, again)


def test_statistics_are_frozen_unless_training_from_scratch(pixel_method):
    class Scratch(pixel_method):
        trains_on_target = True

    for kind, moves in ((pixel_method, False), (Scratch, True)):
        model = Classifier(kind(), 256, 2, exclusive=False, seed=0).train()
        before = model.method.image_encoder[1].running_mean.clone()
        images = torch.randint(0, 255, (4, 1, 64, 64), dtype=torch.uint8)
        model(images, torch.zeros(4, 2), mode="loss")["loss"].backward()
        assert torch.equal(before, model.method.image_encoder[1].running_mean) != moves
        assert model.method.image_encoder[0].weight.grad.abs().sum() > 0
        head, encoder = model.rates()
        assert encoder["lr"] == pytest.approx(head["lr"] * (1 if moves else 0.1))


@pytest.mark.parametrize("exclusive", [False, True])
def test_missing_labels_do_not_count(pixel_method, exclusive):
    model = Classifier(pixel_method(), 256, 3, exclusive, seed=0).eval()
    logits = torch.randn(4, 3)
    labels = torch.eye(3)[[0, 1, 2, 0]]
    labels[1:3] = float("nan")
    known = logits[[0, 3]], labels[[0, 3]]
    expected = (F.cross_entropy(known[0], known[1].argmax(1)) if exclusive
                else F.binary_cross_entropy_with_logits(*known))
    assert model._loss(logits, labels).item() == pytest.approx(expected.item(), rel=1e-5)
    assert model._loss(logits, torch.full((4, 3), float("nan"))).item() == 0


def test_the_best_validation_is_kept(context, toy):
    ids, validation = toy.ids("place", "train"), toy.ids("place", "validation")
    values = iter([0.7, 0.4])
    seen = []

    def select(logits):
        seen.append(logits)
        return next(values)

    logits, details = finetune(context, 0, ids, toy.labels("place").rows(ids), True, validation, select)
    assert [v["auroc_macro"] for v in details["validation"]] == [0.7, 0.4]
    assert details["best_step"] == details["validation"][0]["step"]
    np.testing.assert_allclose(logits(validation), seen[0], atol=1e-6)
    assert not np.allclose(logits(validation), seen[1])


def test_out_of_memory_names_the_batch_that_fits(context, toy, monkeypatch):
    encode = type(context.method).encode_image

    def limited(self, images):
        if self.training and len(images) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return encode(self, images)

    monkeypatch.setattr(type(context.method), "encode_image", limited)
    ids = toy.ids("place", "train")
    with pytest.raises(UserError, match="a batch of 2 fits") as error:
        finetune(context, 0, ids, toy.labels("place").rows(ids), True, ids[:4], lambda logits: 0.0)
    assert "batch of 8" in error.value.what


def test_validation_halves_its_batch_when_memory_is_short(context, toy, monkeypatch):
    encode = type(context.method).encode_image

    def limited(self, images):
        if not self.training and len(images) > 4:
            raise torch.OutOfMemoryError("out of memory")
        return encode(self, images)

    monkeypatch.setattr(type(context.method), "encode_image", limited)
    ids = toy.ids("place", "train")
    finetune(context, 0, ids, toy.labels("place").rows(ids), True, ids[:8], lambda logits: 0.0)
    assert context.features.notes == ["out of memory: encoding batch halved to 4"]  # once, of two validations


def test_images_come_from_the_shared_store(context, toy, monkeypatch):
    opened = []
    real = ImageStore.open.__func__
    monkeypatch.setattr(module.ImageStore, "open",
                        classmethod(lambda cls, *a, **k: opened.append(a[3]) or real(cls, *a, **k)))
    ids = toy.ids("place", "validation")
    finetune(context, 0, ids, toy.labels("place").rows(ids), True, ids, lambda logits: 0.0)
    assert set(opened) == {context.cache / "images"}

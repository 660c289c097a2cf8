"""The adapter that makes any Method a backbone: exact strides, modes of training, memory."""

from typing import ClassVar

import pytest
import torch
from torch import nn

from prior_bench.encoders.image import ImageEncoder
from prior_bench.engine.backbone import MethodBackbone
from prior_bench.method import ImageFeatures, Method
from prior_bench.recipes import ImageEncoderSpec
from prior_bench.types import ImageInput


class Convolutional(Method):
    """Two convolutions with batch norm; gives maps that are a pixel too large, as some encoders do."""

    name: ClassVar[str] = "convolutional"
    pyramid_channels = (4, 4, 6, 6)

    def __init__(self):
        super().__init__()
        self.image_input = ImageInput(size=64)
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, stride=4, padding=2), nn.BatchNorm2d(4))
        self.deep = nn.Conv2d(4, 6, 1)
        self.calls = 0

    @classmethod
    def from_recipe(cls, recipe, texts=None, tokenizer=None):
        return cls()

    def encode_image(self, images):
        return ImageFeatures(None, self.pyramid(images)[-1])

    def pyramid(self, images):
        self.calls += len(images)
        x = self.stem(images)
        x8, x16, x32 = (nn.functional.avg_pool2d(x, s) for s in (2, 4, 8))
        return x, x8, self.deep(x16), self.deep(x32)


class Patch14(Method):
    """A vision transformer with patches of 14 pixels, which no dense size is a multiple of."""

    name: ClassVar[str] = "patch14"
    pyramid_channels = (384, 384, 384, 384)

    def __init__(self):
        super().__init__()
        self.image_input = ImageInput(size=56)
        self.image_encoder = ImageEncoder(ImageEncoderSpec(name="vit_small_patch14_dinov2", size=56))

    @classmethod
    def from_recipe(cls, recipe, texts=None, tokenizer=None):
        return cls()

    def encode_image(self, images):
        return ImageFeatures(None, self.pyramid(images)[-1])

    def pyramid(self, images):
        return self.image_encoder.pyramid(images)


def images(n=2, height=64, width=96):
    return torch.randn(n, 1, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", [Convolutional, Patch14])
@pytest.mark.parametrize("training", ["frozen", "finetune", "scratch"])
def test_maps_have_exactly_the_strides(method, training):
    backbone = MethodBackbone(method(), training)
    maps = backbone(images())
    assert [tuple(m.shape) for m in maps] == [
        (2, c, 64 // s, 96 // s) for c, s in zip(method.pyramid_channels, (4, 8, 16, 32), strict=True)]


def test_levels_are_chosen():
    backbone = MethodBackbone(Convolutional(), levels=(1, 2, 3))
    assert backbone.out_channels == (4, 6, 6)
    assert [m.shape[-1] for m in backbone(images())] == [12, 6, 3]


def test_it_is_registered():
    from mmengine.registry import MODELS

    assert isinstance(MODELS.build({"type": "MethodBackbone", "method": Convolutional()}), MethodBackbone)


def test_frozen_means_statistics_too_and_no_gradient():
    method = Convolutional()
    backbone = MethodBackbone(method)
    before = {k: v.clone() for k, v in method.state_dict().items()}
    backbone.train()
    maps = backbone(images())
    assert not any(m.requires_grad for m in maps)
    assert not backbone.trained_parameters()
    assert all(torch.equal(v, before[k]) for k, v in method.state_dict().items())
    assert all(p.requires_grad for p in method.parameters())  # the method is lent, not changed


def test_finetuning_has_gradients_frozen_statistics_and_a_copy():
    method = Convolutional()
    backbone = MethodBackbone(method, "finetune")
    backbone.train()
    before = backbone.method.stem[1].running_mean.clone()
    sum(m.sum() for m in backbone(images())).backward()
    assert all(p.grad is not None for p in backbone.trained_parameters())
    assert torch.equal(backbone.method.stem[1].running_mean, before)
    assert all(p.grad is None for p in method.parameters())


def test_from_scratch_updates_statistics():
    backbone = MethodBackbone(Convolutional(), "scratch")
    backbone.train()
    before = backbone.method.stem[1].running_mean.clone()
    backbone(images())
    assert not torch.equal(backbone.method.stem[1].running_mean, before)


def test_remembered_maps_are_the_same_and_encoded_once():
    method = Convolutional()
    backbone = MethodBackbone(method)
    first, others = images(4), images(6)[4:]
    plain = backbone(first)
    method.calls = 0
    with backbone.remembering(training_too=True):
        for _ in range(3):
            again = backbone(first)
            mixed = backbone(torch.cat([others, first[:1]]))
        assert method.calls == 4 + 2
    for a, b in zip(plain, again, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(plain, mixed, strict=True):
        torch.testing.assert_close(a[:1], b[2:])
    backbone(first)
    assert method.calls == 10


def test_augmented_training_images_are_not_remembered():
    method = Convolutional()
    backbone = MethodBackbone(method)
    with backbone.remembering():
        for mode in (True, False, True, False):
            backbone.train(mode)(images(2))
    assert method.calls == 3 * 2


def test_memory_is_bounded():
    method = Convolutional()
    backbone = MethodBackbone(method, keep=0).eval()
    with backbone.remembering():
        for _ in range(3):
            backbone(images(3))
    assert method.calls == 9

"""Image encoders: strides, channels, sizes, and what the weights compute."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision

from prior_bench.encoders.image import ImageEncoder, fit_channels, image_input
from prior_bench.errors import UserError
from prior_bench.recipes import ImageEncoderSpec


def encoder(**values: object) -> ImageEncoder:
    torch.manual_seed(0)
    return ImageEncoder(ImageEncoderSpec(**values)).eval()


@pytest.mark.parametrize(("name", "size"), [
    ("resnet18", 64), ("resnet50", 64), ("vit_tiny_patch16_224", 64), ("vit_small_patch14_dinov2", 64),
    ("convnext_atto", 64), ("densenet121", 64), ("swin_tiny_patch4_window7_224", 224)])
@pytest.mark.parametrize("channels", [1, 3])
def test_pyramid_has_strides_4_to_32_at_any_size(name, size, channels):
    model = encoder(name=name, size=size, channels=channels)
    sizes = (size,) if name.startswith("swin") else (size, 96)
    for side in sizes:
        with torch.no_grad():
            maps = model.pyramid(torch.randn(2, channels, side, side))
            last = model(torch.randn(2, channels, side, side))
        wanted = [(2, c, side // s, side // s) for c, s in zip(model.pyramid_channels, (4, 8, 16, 32), strict=True)]
        assert [tuple(m.shape) for m in maps] == wanted
        assert last.shape == (2, model.channels, model.grid(side), model.grid(side))
        assert all(m.isfinite().all() for m in maps)


def test_resnet_maps_are_those_of_torchvision():
    theirs = torchvision.models.resnet50().eval()
    ours = encoder(name="resnet50", channels=3, size=64)
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    assert not ours.model.load_state_dict(state, strict=False).unexpected_keys
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        c2 = theirs.layer1(theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x)))))
        c3 = theirs.layer2(c2)
        c4 = theirs.layer3(c3)
        expected = (c2, c3, c4, theirs.layer4(c4))
        for found, map_ in zip(ours.pyramid(x), expected, strict=True):
            torch.testing.assert_close(found, map_, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours(x), expected[-1], atol=1e-5, rtol=1e-5)


def test_vit_map_is_its_patch_tokens_on_their_grid():
    model = encoder(name="vit_tiny_patch16_224", size=64)
    x = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        tokens = model.model.forward_features(x)[:, 1:]  # without the class token
        torch.testing.assert_close(model(x).flatten(2).mT, tokens, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(model.pyramid(x)[2], model(x))  # stride 16 is the patch


def test_a_local_file_fills_the_encoder_and_rgb_kernels_are_summed(tmp_path):
    theirs = timm.create_model("resnet18", num_classes=5)
    torch.save({"state_dict": {f"module.{k}": v for k, v in theirs.state_dict().items()}}, tmp_path / "r18.pt")
    ours = encoder(name="resnet18", weights=str(tmp_path / "r18.pt"), channels=1, size=64)
    grey = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        expected = theirs.eval().forward_features(grey.expand(-1, 3, -1, -1))
        torch.testing.assert_close(ours(grey), expected, atol=1e-4, rtol=1e-4)


def test_a_file_of_another_architecture_is_refused(tmp_path):
    torch.save(timm.create_model("resnet34", num_classes=0).state_dict(), tmp_path / "r34.pt")
    with pytest.raises(UserError, match=r"r34\.pt") as error:
        encoder(name="resnet18", weights=str(tmp_path / "r34.pt"), size=64)
    assert f"prior-bench weights inspect {tmp_path / 'r34.pt'}`" in error.value.fix


def test_fit_channels_answers_grey_images_as_before():
    kernel, grey = torch.randn(4, 3, 3, 3), torch.randn(1, 1, 8, 8)
    before = torch.conv2d(grey.expand(-1, 3, -1, -1), kernel)
    one = fit_channels(kernel, 1)
    torch.testing.assert_close(torch.conv2d(grey, one), before, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.conv2d(grey.expand(-1, 3, -1, -1), fit_channels(one, 3)), before,
                               atol=1e-5, rtol=1e-5)


def test_an_unknown_name_is_answered_with_near_ones():
    with pytest.raises(UserError, match=r"did you mean .*'resnet18'"):
        encoder(name="resnet18x")


def test_an_unreachable_hub_is_a_users_error(monkeypatch):
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(UserError, match="local file"):
        encoder(name="resnet18", weights="hub")


def test_statistics_are_given_per_channel():
    spec = image_input(ImageEncoderSpec(channels=3, mean=(0.4,), std=(0.2, 0.3, 0.4), size=64, fit="letterbox"))
    assert (spec.mean, spec.std, spec.size, spec.fit) == ((0.4, 0.4, 0.4), (0.2, 0.3, 0.4), 64, "letterbox")

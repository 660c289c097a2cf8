"""Reference rows: what they compute and what they leave out."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch

from prior_bench import plugins, recipes
from prior_bench.errors import UserError
from prior_bench.recipe_files import read, recipe_file
from prior_bench.task import NotApplicable
from prior_bench.testing import check_method
from prior_bench.weights import new_method, state_digest


def reference(name: str, seed: int = 0, recipe: str = "small"):
    cls = plugins.load("methods", name)
    return new_method(cls, recipes.load(recipe_file(name), recipe, cls.recipe_class, {"image.size": 64}), seed)


@pytest.mark.parametrize("name", ["random", "supervised"])
def test_an_encoder_reference_gives_maps_and_a_pyramid(name):
    method = reference(name)
    images = method.normalise(torch.randint(0, 255, (2, 1, 64, 64), dtype=torch.uint8))
    with torch.no_grad():
        features, maps = method.encode_image(images), method.pyramid(images)
    assert features.joint is None
    assert features.map.shape == (2, 512, 2, 2)
    assert [m.shape[1] for m in maps] == list(method.pyramid_channels)
    assert (method.has_text, method.pretrains) == (False, False)
    assert method.trains_on_target == (name == "supervised")
    assert not method.training


@pytest.mark.parametrize(("recipe", "mean", "interpolation"), [
    ("small", (0.485, 0.456, 0.406), "bilinear"), ("small-vit", (0.5, 0.5, 0.5), "bicubic")])
def test_imagenet_sees_images_as_its_weights_configuration_says(recipe, mean, interpolation):
    cls = plugins.load("methods", "imagenet")
    chosen = recipes.load(recipe_file("imagenet"), recipe, cls.recipe_class, {"image.weights": "random"})
    spec = new_method(cls, chosen, 0).image_input
    assert (spec.size, spec.mean, spec.interpolation) == (128, mean, interpolation)


def test_an_encoder_from_a_file_conforms_and_none_without_one(tmp_path):
    with pytest.raises(UserError, match="none is given"):
        reference("encoder", recipe="resnet50")
    torch.save(timm.create_model("test_resnet", num_classes=0).state_dict(), tmp_path / "file.pth")
    cls = plugins.load("methods", "encoder")
    settings = {"image.name": "test_resnet", "image.size": 64, "image.weights": str(tmp_path / "file.pth")}
    assert len(check_method(new_method(cls, recipes.load(recipe_file("encoder"), "resnet50", cls.recipe_class,
                                                         settings), 0))) >= 6


def test_random_weights_hang_on_the_seed_alone_and_leave_the_global_state():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    digests = [state_digest(reference("random", seed)) for seed in (0, 0, 1)]
    assert torch.equal(torch.rand(1), expected)
    assert digests[0] == digests[1] != digests[2]


def test_thumbnail_is_the_mean_of_each_tile():
    method = reference("thumbnail")
    pixels = np.random.default_rng(0).integers(0, 255, (3, 1, 64, 64), dtype=np.uint8)
    pooled = method.encode_image(method.normalise(torch.from_numpy(pixels))).pooled
    tiles = pixels.reshape(3, 16, 4, 16, 4).mean(axis=(2, 4)).reshape(3, 256) / 255
    np.testing.assert_allclose(pooled.numpy(), (tiles - 0.5) / 0.25, atol=1e-5)
    with pytest.raises(NotApplicable):
        _ = method.pyramid_channels
    with pytest.raises(NotApplicable):
        method.pyramid(torch.zeros(1, 1, 64, 64))


def test_references_have_the_tracks_of_prior():
    assert {"small", "small-long", "paper"} <= set(read(recipe_file("random")))
    for name in ("small", "paper"):
        mine = recipes.load(recipe_file("random"), name, recipes.Recipe).image
        theirs = read(recipe_file("prior"))[name]["image"]
        assert (mine.name, mine.size, mine.channels) == (
            theirs["name"].partition(".")[0], theirs["size"], theirs["channels"])

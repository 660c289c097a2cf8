"""The feature cache: equal to a bare loop, each input once, keyed by content, halved batches, whole after a kill."""

import numpy as np
import pytest
import torch

from prior_bench.data.images import ImageStore
from prior_bench.engine.precision import Precision
from prior_bench.errors import UserError
from prior_bench.features import FeatureCache
from prior_bench.method import ImageFeatures

FP32 = Precision(torch.device("cpu"), None)


@pytest.fixture
def make(pixel_method, tmp_path):
    def cache(method=None, digest="w", precision=FP32, **options):
        return FeatureCache(tmp_path / "features", method or pixel_method(), digest, precision, **options)

    return cache


def bare(method, dataset, ids, folder):
    images = torch.from_numpy(ImageStore.open(dataset, ids, method.image_input, folder).get(ids))[:, None]
    with torch.inference_mode():
        features = method.encode_image(method.normalise(images))
    return features.joint.numpy(), features.pooled.numpy()


def test_features_are_those_of_a_bare_loop_and_images_are_encoded_once(make, toy, tmp_path):
    cache = make(batch=16)
    test, train = toy.ids("findings", "test"), toy.ids("findings", "train")
    found = cache.images(toy, test)
    assert sum(cache.method.encoded) == len(test)
    joint, pooled = bare(cache.method, toy, test, tmp_path / "other")
    np.testing.assert_allclose(found.joint, joint, atol=1e-6)
    np.testing.assert_allclose(found.pooled, pooled, atol=1e-6)
    cache.method.encoded.clear()
    both = cache.images(toy, [*test[::-1], *train, test[0]])
    assert sum(cache.method.encoded) == len(train)
    np.testing.assert_array_equal(both.pooled[: len(test)], found.pooled[::-1])
    np.testing.assert_array_equal(both.joint[-1], found.joint[0])


def test_another_process_finds_everything_on_disk(make, toy, pixel_method):
    ids = toy.ids("findings", "test")
    texts = ["There is a disc.", "No bar is seen. There is a disc.", "There is a disc."]
    first = make()
    images, vectors = first.images(toy, ids), first.texts(texts)
    again = make(pixel_method())
    np.testing.assert_array_equal(again.images(toy, ids).joint, images.joint)
    np.testing.assert_array_equal(again.texts(texts[::-1]), vectors[::-1])
    assert again.method.encoded == []
    assert sum(first.method.encoded) == len(ids) + 2
    np.testing.assert_array_equal(vectors[0], vectors[2])


def test_the_key_is_content(make, pixel_method):
    key = make().key
    assert make(pixel_method()).key == key
    assert make(digest="v").key != key
    assert make(pixel_method(seed=1)).key != key
    assert make(precision=Precision(torch.device("cpu"), torch.bfloat16)).key != key
    smaller = pixel_method()
    smaller.image_input = smaller.image_input.at(32)
    assert make(smaller).key != key
    other = pixel_method()
    other.image_encoder[2] = torch.nn.GELU()
    assert make(other).key != key


def test_changed_images_are_encoded_again(make, toy, toy_class):
    class Other(toy_class):
        seed = 1

    ids, cache = toy.ids("findings", "test"), make()
    assert not np.allclose(cache.images(toy, ids).pooled, cache.images(Other(), ids).pooled)


def test_bfloat16_is_near(make, toy):
    ids = toy.ids("findings", "test")
    exact = make().images(toy, ids).pooled
    found = make(precision=Precision(torch.device("cpu"), torch.bfloat16)).images(toy, ids).pooled
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, exact, atol=0.03)


def test_out_of_memory_halves_the_batch_and_is_recorded(make, toy, pixel_method):
    ids, encode = toy.ids("findings", "test"), pixel_method.encode_image

    class Small(pixel_method):
        def encode_image(self, images):
            if len(images) > 5:
                raise torch.OutOfMemoryError("out of memory")
            return encode(self, images)

    cache = make(Small(), digest="small", batch=20)
    found = cache.images(toy, ids)
    np.testing.assert_allclose(found.pooled, make().images(toy, ids).pooled, atol=1e-5)
    assert cache.notes == [f"out of memory: encoding batch halved to {n}" for n in (10, 5)]


def test_features_that_are_not_finite_are_refused_and_not_kept(make, toy):
    cache = make()
    with torch.no_grad():
        cache.method.image_encoder[0].bias[0] = float("nan")
    ids = toy.ids("findings", "test")
    with pytest.raises(UserError, match="not finite for 27 of 27"):
        cache.images(toy, ids)
    assert not list(cache.folder.rglob("*.npy"))


def test_joint_vectors_that_are_not_of_unit_length_are_refused(make, toy, monkeypatch):
    cache = make()
    kind, encode = type(cache.method), type(cache.method).encode_image
    monkeypatch.setattr(kind, "encode_image", lambda self, images: ImageFeatures(
        2 * (found := encode(self, images)).joint, found.map))
    with pytest.raises(UserError, match="not of length 1 for 27 of 27") as error:
        cache.images(toy, toy.ids("findings", "test"))
    assert "of length 2" in error.value.where
    assert not list(cache.folder.rglob("*.npy"))


def test_a_kill_between_data_and_index_costs_that_block_only(make, toy):
    cache = make()
    test, validation = toy.ids("findings", "test"), toy.ids("findings", "validation")
    before = cache.images(toy, test).pooled
    cache.images(toy, validation)
    index = next(cache.folder.rglob("1.json"))
    index.unlink()
    again = make()
    np.testing.assert_array_equal(again.images(toy, test).pooled, before)
    assert again.method.encoded == []
    again.images(toy, validation)
    assert sum(again.method.encoded) == len(validation)


def test_a_vision_only_method_has_no_joint_vectors(make, toy, pixel_method):
    class VisionOnly(pixel_method):
        has_text = False

        def encode_image(self, images):
            from prior_bench.method import ImageFeatures

            return ImageFeatures(None, super().encode_image(images).map)

    assert make(VisionOnly(), digest="v").images(toy, toy.ids("findings", "test")).joint is None

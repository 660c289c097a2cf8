"""Encoding through the whole pipeline (image store, normalisation, encoder, feature cache on disk), set against a bare
loop of the same timm model on ready tensors in the same precision. Rounds of the two alternate in one run:

    pytest -s benchmarks/test_encoding.py         # prints the share; --benchmark-json keeps it as share_of_bare_loop
"""

from __future__ import annotations

from statistics import median
from time import perf_counter

import numpy as np
import pytest
import torch
from PIL import Image

from prior_bench.data.dataset import Dataset
from prior_bench.data.images import ImageStore
from prior_bench.engine.precision import choose
from prior_bench.features import FeatureCache
from prior_bench.methods.reference.random import Random
from prior_bench.recipes import ImageEncoderSpec, Recipe
from prior_bench.types import ImageRecord, Study
from prior_bench.weights import new_method

BATCH, ROUNDS = 64, 5


class Noise(Dataset):
    """Images of noise; what they show does not change how long they take."""

    name, title, needs_root, targets = "noise", "Noise", False, {}
    images = 512

    def fingerprint(self):
        return self.images

    def load_studies(self):
        return [Study(f"s{i}", f"p{i}", "train", (ImageRecord(f"{i}"),)) for i in range(self.images)]

    def read_image(self, record):
        pixels = np.random.default_rng(int(record.id)).integers(0, 256, (160, 160), np.uint8)
        return Image.fromarray(pixels)


@pytest.mark.parametrize(("encoder", "size", "images"), [("resnet18", 128, 2048), ("resnet50", 224, 256)])
def test_encoding(benchmark, tmp_path, encoder, size, images):
    precision, dataset = choose(), Noise()
    dataset.images = images
    recipe = Recipe(image=ImageEncoderSpec(name=encoder, size=size))
    method = precision.place(new_method(Random, recipe, seed=0))
    ids = sorted(dataset.records)
    pixels = torch.from_numpy(ImageStore.open(dataset, ids, method.image_input, tmp_path / "images").get(ids))[:, None]
    ready = [method.normalise(part.to(precision.device)).contiguous(memory_format=torch.channels_last)
             for part in pixels.split(BATCH)]
    bare: list[float] = []

    def fresh_cache():
        """Time the bare loop, then hand the pipeline an empty cache: neither can profit from a quieter moment."""
        start = perf_counter()
        with torch.inference_mode(), precision.cast():
            outputs = [method.image_encoder.model(batch) for batch in ready]
        outputs[-1].float().sum().item()  # a GPU has finished when this is known
        bare.append(perf_counter() - start)
        folder = tmp_path / f"{len(bare)}"
        folder.mkdir()
        (folder / "images").symlink_to(tmp_path / "images")
        return (FeatureCache(folder / "features", method, "-", precision, BATCH),), {}

    benchmark.pedantic(lambda cache: cache.images(dataset, ids), setup=fresh_cache, rounds=ROUNDS, warmup_rounds=1)
    seconds = median(bare[1:])  # the first one warmed up
    share = seconds / benchmark.stats.stats.median
    benchmark.extra_info["bare_images_per_second"] = round(images / seconds, 1)
    benchmark.extra_info["share_of_bare_loop"] = round(share, 3)
    print(f"\n{encoder} at {size} px, {precision.name} on {precision.device}: {images / seconds:.0f} images/s bare, "
          f"{share:.1%} of that through the pipeline")

"""A training step of each method (recipe `small`, batch 32) beside its bare encoders' forward and backward in the same
run, and GLoRIA's local similarity beside a loop over pairs:

    pytest -s benchmarks/test_methods.py          # prints the ratios; --benchmark-json keeps them
"""

from __future__ import annotations

from statistics import median
from time import perf_counter

import numpy as np
import pytest
import torch

from prior_bench import plugins, recipes
from prior_bench.engine.precision import choose
from prior_bench.method import StudyView
from prior_bench.methods.gloria.local_similarity import word_cosines
from prior_bench.recipe_files import recipe_file
from prior_bench.testing import REPORTS, sample_texts
from prior_bench.types import Report
from prior_bench.weights import new_method

BATCH, ROUNDS = 32, 7
METHODS = dict.fromkeys(("prior", "convirt", "gloria", "mgca", "place"), "small") | {"mpma": "small-vit"}


def method_and_batch(name):
    kind = plugins.load("methods", name)
    recipe = recipes.load(recipe_file(name), METHODS[name], kind.recipe_class)
    method = choose().place(new_method(kind, recipe, 0, sample_texts())).train()
    side, rng = method.image_input.size, np.random.default_rng(0)
    reports = [Report({}, tuple(s for k in range(3) for s in REPORTS[(i + k) % len(REPORTS)])) for i in range(BATCH)]
    views = [StudyView((rng.integers(0, 255, (side, side), dtype=np.uint8),), report) for report in reports]
    return method, method.collate([method.view(view, rng) for view in views])


def timed(run):
    start = perf_counter()
    run()
    return perf_counter() - start


@pytest.mark.parametrize("name", METHODS)
def test_training_step(benchmark, name):
    (method, batch), precision = method_and_batch(name), choose()
    images = method.normalise(batch["image"]).contiguous(memory_format=torch.channels_last)

    def step():
        with precision.cast():
            terms = method(batch, 0.99)
        sum(weight * value for weight, value in terms.values()).backward()
        method.zero_grad()

    def encoders():
        with precision.cast():
            outputs = method.image_encoder(images), method.text_encoder(batch["ids"], batch["mask"])
        sum(out.float().square().mean() for out in outputs).backward()
        method.zero_grad()

    bare: list[float] = []
    benchmark.pedantic(step, setup=lambda: bare.append(timed(encoders)), rounds=ROUNDS, warmup_rounds=2)
    ratio = benchmark.stats.stats.median / median(bare[2:])
    benchmark.extra_info |= {"images_per_second": round(BATCH / benchmark.stats.stats.median, 1),
                             "times_the_bare_encoders": round(ratio, 3)}
    print(f"\n{name}: {BATCH / benchmark.stats.stats.median:.0f} images/s, {ratio:.2f} times its encoders alone")


def test_local_similarity_beside_a_loop(benchmark):
    """All pairs at once, with padding, against one pair after the other with contexts built."""
    torch.manual_seed(0)
    regions, words = torch.randn(BATCH, 64, 256), torch.randn(BATCH, 60, 256)
    lengths = torch.randint(10, 60, (BATCH,))
    mask = torch.arange(60) < lengths.unsqueeze(1)

    def loop():
        for image in regions:
            for text, length in zip(words, lengths.tolist(), strict=True):
                own = text[:length]
                attention = (4 * (image @ own.T).softmax(dim=1)).softmax(dim=0)
                torch.cosine_similarity(attention.T @ image, own, dim=1)

    slow: list[float] = []
    benchmark.pedantic(lambda: word_cosines(regions, words, mask, 4.0), setup=lambda: slow.append(timed(loop)),
                       rounds=ROUNDS, warmup_rounds=1)
    speed_up = median(slow[1:]) / benchmark.stats.stats.median
    benchmark.extra_info["speed_up"] = round(speed_up, 2)
    print(f"\nlocal similarity of {BATCH} x {BATCH} pairs: {speed_up:.1f} times as fast as a loop")

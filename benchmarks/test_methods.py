"""A training step of each method at batch 32 beside its bare encoders' forward and backward in the same run, its
encoding, and batched similarities beside plain loops:

    pytest -s benchmarks/test_methods.py -k small       # prints the ratios; --benchmark-json keeps them
    pytest -s benchmarks/test_methods.py -k paper       # the papers' encoders with random weights: minutes on a CPU

`over expected` is the step's time over that of the encoders times (1 + the objective's share of the flops): what the
objective costs beyond its arithmetic. It should be at most 1.25.
"""

from __future__ import annotations

import sys
from ctypes import CDLL
from statistics import median
from threading import Event, Thread
from time import perf_counter

import numpy as np
import psutil
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from prior_bench import plugins, recipe_files, recipes
from prior_bench.data.reports import split_sentences
from prior_bench.engine.precision import choose
from prior_bench.method import StudyView
from prior_bench.methods.gloria.local_similarity import word_cosines
from prior_bench.methods.prior.local_alignment import CrossAttention, Predictor, image_loss, text_loss
from prior_bench.recipe_files import recipe_file
from prior_bench.testing import REPORTS, sample_texts
from prior_bench.types import Report
from prior_bench.weights import new_method

BATCH, LIMIT = 32, 1.25
ROUNDS = {"small": 7, "paper": 3}
METHODS = ("prior", "convirt", "gloria", "mgca", "place", "mpma")
LARGE = {"image.weights": "random", "text.name": "small-bert", "text.width": 768, "text.heads": 12}  # BERT-base, no hub


def method_and_batch(name, size):
    """A method at its recipe's size, and a batch of noise with reports of three sentences."""
    kind, file = plugins.load("methods", name), recipe_file(name)
    recipe = "small-vit" if (name, size) == ("mpma", "small") else size
    layers = recipe_files.resolve(file, recipe)["text"].get("first_layers") or 12
    settings = LARGE | {"text.layers": layers} if size == "paper" else {}
    method = new_method(kind, recipes.load(file, recipe, kind.recipe_class, settings), 0, sample_texts())
    method = choose().place(method).train()
    side, rng = method.image_input.size, np.random.default_rng(0)
    reports = [Report({}, tuple(s for k in range(3) for s in REPORTS[(i + k) % len(REPORTS)])) for i in range(BATCH)]
    views = [StudyView((rng.integers(0, 255, (side, side), dtype=np.uint8),), report) for report in reports]
    return method, method.collate([method.view(view, rng) for view in views])


def timed(run):
    start = perf_counter()
    run()
    return perf_counter() - start


class Flops(TorchDispatchMode):
    """Counts as FlopCounterMode does, whose record of modules stumbles over methods that look at themselves (MGCA)."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func.overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def flops(run):
    with Flops() as counter:
        run()
    return counter.total


def peak_memory(run):
    """Bytes that a run holds at most beyond what was there before: of the GPU, or resident, looked at every 2 ms."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    if sys.platform == "linux":  # earlier runs' freed memory, which this one would take again unseen, goes back
        CDLL(None).malloc_trim(0)
    process, done, seen = psutil.Process(), Event(), []

    def watch():
        while not done.wait(0.002):
            seen.append(process.memory_info().rss)

    before = process.memory_info().rss
    watcher = Thread(target=watch)
    watcher.start()
    run()
    done.set()
    watcher.join()
    return max(seen, default=before) - before


@pytest.mark.parametrize("size", ROUNDS)
@pytest.mark.parametrize("name", METHODS)
def test_training_step(benchmark, name, size):
    (method, batch), precision = method_and_batch(name, size), choose()
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

    memory, share = peak_memory(step), flops(step) / flops(encoders) - 1
    bare: list[float] = []
    benchmark.pedantic(step, setup=lambda: bare.append(timed(encoders)), rounds=ROUNDS[size], warmup_rounds=1)
    ratio = benchmark.stats.stats.median / median(bare[1:])
    rate, excess = BATCH / benchmark.stats.stats.median, ratio / (1 + share)
    benchmark.extra_info |= {"images_per_second": round(rate, 1), "times_the_bare_encoders": round(ratio, 3),
                             "objective_flops": round(share, 3), "over_expected": round(excess, 3),
                             "peak_memory_bytes": memory}
    print(f"\n{name} ({size}): {rate:.1f} images/s, {memory / 1e9:.2f} GB; {ratio:.2f} times its encoders alone, the "
          f"objective adds {100 * share:.0f} % of their flops: {excess:.2f} over expected (at most {LIMIT})")


@pytest.mark.parametrize("size", ROUNDS)
@pytest.mark.parametrize("name", METHODS)
def test_encoding(benchmark, name, size):
    """Images and texts to the joint space, and the share of it that is the bare encoders'."""
    (method, batch), precision = method_and_batch(name, size), choose()
    method.eval()
    images = method.normalise(batch["image"]).contiguous(memory_format=torch.channels_last)
    texts = [" ".join(s for k in range(3) for s in REPORTS[(i + k) % len(REPORTS)]) for i in range(BATCH)]
    tokens = method.text_encoder.pad([method.text_encoder.tokens(split_sentences(text)) for text in texts])

    @torch.inference_mode()
    def encode():
        with precision.cast():
            method.encode_image(images)
            method.encode_text(texts)

    @torch.inference_mode()
    def encoders():
        with precision.cast():
            method.image_encoder(images)
            method.text_encoder(tokens["ids"], tokens["mask"])

    bare: list[float] = []
    benchmark.pedantic(encode, setup=lambda: bare.append(timed(encoders)), rounds=ROUNDS[size], warmup_rounds=1)
    share = median(bare[1:]) / benchmark.stats.stats.median
    benchmark.extra_info["share_of_bare_encoders"] = round(share, 3)
    print(f"\n{name} ({size}): {BATCH / benchmark.stats.stats.median:.0f} pairs/s encoded, "
          f"{100 * share:.0f} % of the speed of its encoders alone")


def beside_a_loop(benchmark, what, batched, loop):
    slow: list[float] = []
    benchmark.pedantic(batched, setup=lambda: slow.append(timed(loop)), rounds=7, warmup_rounds=1)
    speed_up = median(slow[1:]) / benchmark.stats.stats.median
    benchmark.extra_info["speed_up"] = round(speed_up, 2)
    print(f"\n{what}: {speed_up:.1f} times as fast as a loop")


def test_gloria_beside_a_loop(benchmark):
    """All pairs at once, with padding, against one pair after the other with contexts built; forward and backward."""
    torch.manual_seed(0)
    regions, words = (torch.randn(BATCH, n, 256, requires_grad=True) for n in (64, 60))
    lengths = torch.randint(10, 60, (BATCH,))
    mask = torch.arange(60) < lengths.unsqueeze(1)

    def loop():
        total = 0
        for image in regions:
            for text, length in zip(words, lengths.tolist(), strict=True):
                own = text[:length]
                attention = (4 * (image @ own.T).softmax(dim=1)).softmax(dim=0)
                total = total + torch.cosine_similarity(attention.T @ image, own, dim=1).sum()
        total.backward()

    beside_a_loop(benchmark, f"GLoRIA's local similarity of {BATCH} x {BATCH} pairs",
                  lambda: word_cosines(regions, words, mask, 4.0)[0].sum().backward(), loop)


def test_prior_beside_a_loop(benchmark):
    """PRIOR's local losses, forward and backward, of a padded batch against one report after the other."""
    torch.manual_seed(0)
    attend, predict, scale = CrossAttention(256), Predictor(256), torch.tensor(14.0)
    tokens, sentences = torch.randn(BATCH, 16, 256), torch.randn(BATCH, 12, 256)
    lengths = torch.randint(3, 12, (BATCH,)).tolist()
    mask = torch.arange(12) < torch.tensor(lengths).unsqueeze(1)

    def terms(some, own, there):
        seen = attend(some, own, there)
        return image_loss(some, seen.of_tokens, predict) + text_loss(own, seen.of_sentences, there, scale)

    def loop():
        sum(terms(tokens[i : i + 1], sentences[i : i + 1, :n], mask[i : i + 1, :n])
            for i, n in enumerate(lengths)).backward()

    beside_a_loop(benchmark, f"PRIOR's local losses of {BATCH} reports",
                  lambda: terms(tokens, sentences, mask).backward(), loop)

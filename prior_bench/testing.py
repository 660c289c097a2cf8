"""The conformance suite of methods: what every one must do, whoever wrote it, in the manner of scikit-learn's
`check_estimator`.

`check_method(method)` runs every check on a freshly built method and says what failed; `prior-bench check-method NAME`
does it from a shell. Images and reports are made up here, so neither data nor network is needed. The docstring of a
check is the rule that it stands for, which a failure shows.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import logging
import math
import random
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from prior_bench import plugins
from prior_bench.encoders.image import STRIDES
from prior_bench.method import Batch, Method, StudyView
from prior_bench.task import NotApplicable
from prior_bench.types import Report

REPORTS = (
    ("The heart is enlarged.", "No pneumothorax.", "Small left pleural effusion.", "Lungs are otherwise clear."),
    ("Normal chest radiograph.",),
    ("Right lower lobe consolidation.", "No pneumothorax is seen."),
    ("Lines are in place.", "Heart size is normal.", "No pleural effusion is seen today.", "Stable edema."),
    ("Healed left rib fracture.", "No acute osseous abnormality.", "The lungs are clear."),
    ("Bandlike atelectasis at the right base.", "No effusion."),
)
BF16_COSINE = 0.98  # least cosine of a vector in bf16 with itself in fp32
BF16_SHARE = 0.05  # most that a score or a loss term changes in bf16
START = 3.0  # most times log(batch), or its inverse, that a contrastive term is before training
PATIENCE = timedelta(seconds=120)  # of one rank with the other

T = TypeVar("T")


class CheckFailed(AssertionError):
    """A method failed checks; the text names each with what was seen."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one check: no problem, or what was wrong, beside the rule; or why it does not apply."""

    name: str
    problem: str = ""
    rule: str = ""
    skipped: str = ""


def check_method(method: Method, raise_on_failure: bool = True, only: str = "") -> list[Outcome]:
    """Run every check that applies to a method, built by `from_recipe` and not yet trained.

    A vision-only method is not asked about texts, one that does not pre-train not about losses.

    Args: only: run the checks alone whose name holds this.
    Raises: CheckFailed, unless `raise_on_failure` is off; ValueError where no check has such a name.
    """
    method = copy.deepcopy(method).eval()
    checks = list(ENCODING)
    checks += TEXT if method.has_text else []
    checks += TRAINING if method.pretrains else []
    outcomes = [_outcome(check, method) for check in checks if only in _name(check)]
    if not outcomes:
        raise ValueError(f"no check of {method.name} has a name with {only!r}")
    failed = [f"{o.name}: {o.problem}\n    The rule: {o.rule}" for o in outcomes if o.problem]
    if failed and raise_on_failure:
        raise CheckFailed(f"{method.name} fails {len(failed)} of {len(outcomes)} checks:\n" + "\n".join(failed))
    return outcomes


def _name(check: Callable[[Method], None]) -> str:
    return check.__name__.removeprefix("_").replace("_", " ")


def _outcome(check: Callable[[Method], None], method: Method) -> Outcome:
    name, rule = _name(check), " ".join((check.__doc__ or "").split())
    try:
        check(copy.deepcopy(method))
    except NotApplicable as error:  # the method has no such thing
        return Outcome(name, skipped=str(error))
    except AssertionError as error:
        return Outcome(name, str(error).strip() or "failed", rule)
    except Exception as error:  # a check must not hide the others
        return Outcome(name, f"{type(error).__name__}: {error}", rule)
    return Outcome(name)


# ----------------------------------------------------------------------------------------- inputs


def sample_images(method: Method, n: int = len(REPORTS), seed: int = 0) -> Tensor:
    """Normalised images (n, C, H, W) at the method's size: noise, brighter towards one corner."""
    size = method.image_input.size
    rng = np.random.default_rng(seed)
    ramp = np.linspace(0, 60, size)
    slopes = rng.random((2, n, 1, 1))
    values = rng.integers(0, 190, (n, size, size)) + ramp[:, None] * slopes[0] + ramp * slopes[1]
    return method.normalise(torch.from_numpy(values.clip(0, 255).astype(np.uint8)).unsqueeze(1))


def sample_texts() -> list[str]:
    return [" ".join(sentences) for sentences in REPORTS]


def sample_batch(method: Method, rows: Sequence[int] = range(len(REPORTS))) -> Batch:
    """The collated training views of some of the sample studies; a row is the same in every batch."""
    size = method.image_input.size
    views = []
    for row in rows:
        rng = np.random.default_rng(row)
        image = rng.integers(0, 255, (size, size), dtype=np.uint8)
        views.append(method.view(StudyView((image,), Report({}, REPORTS[row])), rng))
    return method.collate(views)


def _under_seed(seed: int, call: Callable[[], T]) -> T:
    """What a call gives with all global generators at a seed; they are put back."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            return call()
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


# --------------------------------------------------------------------------------------- encoding


def _all_that_tasks_read(method: Method) -> dict[str, Tensor]:
    """By what they are: features and scores of the sample images and texts."""
    images, texts = sample_images(method), sample_texts()
    of_images = method.encode_image(images)
    found = {"maps": of_images.map, "joint image vectors": of_images.joint}
    if method.has_text:
        found["joint text vectors"] = method.encode_text(texts).joint
        found["local scores"] = method.local_score(images, texts)
    return {name: value for name, value in found.items() if value is not None}


def _close(found: Tensor, expected: Tensor, what: str, tolerance: float = 1e-4) -> None:
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    worst = float((found.float() - expected.float()).abs().max()) if found.numel() else 0.0
    assert worst <= tolerance, f"{what} differs by {worst:.2e}, more than {tolerance:.0e}"


def _same_map(found: Tensor, expected: Tensor, what: str) -> None:
    _close(found, expected, what, 1e-4 * max(1e-3, float(expected.abs().max())))


def _unit_length(joint: Tensor) -> None:
    _close(joint.norm(dim=1), torch.ones(len(joint)), "the length of a joint vector", 1e-4)


@torch.inference_mode()
def _image_features_have_their_shapes(method: Method) -> None:
    """`encode_image` gives a finite map (B, C, h, w) and, where there is a text encoder, joint vectors of length 1."""
    images = sample_images(method)
    found = method.encode_image(images)
    assert found.map.dim() == 4, f"map has {found.map.dim()} axes, not (B, C, h, w)"
    assert len(found.map) == len(images), "map has another number of rows than there are images"
    assert torch.isfinite(found.map).all(), "map is not finite"
    if method.has_text:
        assert found.joint is not None, "a method with text has no joint image vectors"
        assert torch.isfinite(found.joint).all(), "joint image vectors are not finite"
        _unit_length(found.joint)


@torch.inference_mode()
def _images_do_not_depend_on_batch_or_order(method: Method) -> None:
    """In eval mode an image has the same features in any batch and at any place of it: nothing is taken over the batch,
    nothing is left behind by a call, and the images are not changed."""
    images = sample_images(method)
    whole = method.encode_image(images)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    turned = method.encode_image(images[order])
    alone = method.encode_image(images[2:3])
    _same_map(turned.map, whole.map[order], "the map of an image in another order")
    _same_map(alone.map, whole.map[2:3], "the map of an image alone")
    if whole.joint is not None and turned.joint is not None and alone.joint is not None:
        _close(turned.joint, whole.joint[order], "joint image vectors in another order")
        _close(alone.joint, whole.joint[2:3], "a joint image vector alone")


@torch.inference_mode()
def _encoding_is_deterministic(method: Method) -> None:
    """In eval mode two calls agree bit for bit, whatever the global generators hold: no noise, no dropout."""
    first, second = (_under_seed(seed, lambda: _all_that_tasks_read(method)) for seed in (1, 2))
    for name, value in first.items():
        _close(second[name], value, f"{name}: what a second call gives", 0.0)


@torch.inference_mode()
def _pyramid_has_its_strides_and_channels(method: Method) -> None:
    """`pyramid` gives maps of strides 4, 8, 16 and 32 with `pyramid_channels`, at the method's own size and at any
    other that the strides divide: dense tasks choose theirs."""
    images = sample_images(method, 2)
    own, step = images.shape[-1], STRIDES[-1]
    for side in (own, step * math.ceil(1.5 * own / step)):
        levels = method.pyramid(nn.functional.interpolate(images, (side, side), mode="bilinear"))
        assert len(levels) == len(STRIDES), f"{len(levels)} levels instead of {len(STRIDES)}"
        for level, stride, channels in zip(levels, STRIDES, method.pyramid_channels, strict=True):
            what = f"stride {stride} of images of {side} pixels"
            assert level.shape[:2] == (2, channels), f"{what}: {tuple(level.shape[:2])}, not (2, {channels})"
            near = side / stride
            least, most = math.floor(near) - 0.1 * near, math.ceil(near) + 0.1 * near
            for found in level.shape[2:]:
                assert least <= found <= most, f"{what}: a side of {found}, not about {near:g}"


@torch.inference_mode()
def _bf16_is_close_to_fp32(method: Method) -> None:
    """Under autocast to bf16 features and scores are those of fp32, but for rounding: lengths, softmax and sums over
    many terms belong in fp32."""
    exact = _all_that_tasks_read(method)
    with torch.autocast("cpu", torch.bfloat16):
        rough = {name: value.float() for name, value in _all_that_tasks_read(method).items()}
    for name in exact.keys() - {"local scores"}:
        a, b = (x[name].flatten(2).mean(dim=2) if x[name].dim() == 4 else x[name] for x in (rough, exact))
        least = float(nn.functional.cosine_similarity(a, b).min())
        assert least >= BF16_COSINE, f"{name} in bf16 have a cosine of {least:.3f} with fp32, below {BF16_COSINE}"
    if "local scores" in exact:
        scores = exact["local scores"]
        _close(rough["local scores"], scores, "a local score in bf16", BF16_SHARE * max(1.0, float(scores.abs().max())))


def _weights_survive_saving(method: Method) -> None:
    """A method that is built anew, by another seed, and filled from saved weights computes the same, after training
    steps, too. What a plain tensor, a list of modules or a buffer that is not persistent holds is not saved."""
    from prior_bench.weights import load_method, new_method, save_weights
    from prior_bench.weights_folder import TOKENIZER

    recipe: Any = getattr(method, "recipe", None)
    if not method.pretrains:
        raise NotApplicable("it does not pre-train")
    if recipe is None:
        raise NotApplicable("it does not keep its recipe as `recipe`, from which it could be built anew")
    if method.name not in plugins.names("methods") or plugins.load("methods", method.name) is not type(method):
        raise NotApplicable("it is not known by its name: no entry point and no --plugin names it")
    _train_a_little(method)
    with tempfile.TemporaryDirectory() as folder:
        weights = save_weights(Path(folder) / "weights", method, recipe, {})
        state = load_method(weights).state_dict()
        recipe = recipe.model_copy(update={"image": recipe.image.model_copy(update={"weights": "random"})})
        again = new_method(type(method), recipe, seed=12345, tokenizer=weights / TOKENIZER)
    again.load_state_dict(state)
    with torch.inference_mode():
        found = _all_that_tasks_read(again)
        for name, value in _all_that_tasks_read(method).items():
            _close(found[name], value, f"{name} after loading", 1e-6 * max(1.0, float(value.abs().max())))


def _train_a_little(method: Method) -> None:
    optimiser = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 1e-3)
    for progress in (0.0, 0.99):
        optimiser.zero_grad()
        _total(method.train()(sample_batch(method), progress)).backward()
        optimiser.step()
        with torch.no_grad():
            method.after_step(progress)
    method.eval()


ENCODING = (_image_features_have_their_shapes, _images_do_not_depend_on_batch_or_order, _encoding_is_deterministic,
            _pyramid_has_its_strides_and_channels, _bf16_is_close_to_fp32, _weights_survive_saving)


# ------------------------------------------------------------------------------------------- text


@torch.inference_mode()
def _texts_do_not_depend_on_batch_or_padding(method: Method) -> None:
    """In eval mode a text has the same vectors beside longer texts, which pad it, and alone; its joint vector has
    length 1 and the width of the images'."""
    texts = sample_texts()
    whole = method.encode_text(texts)
    assert torch.isfinite(whole.joint).all(), "joint text vectors are not finite"
    _unit_length(whole.joint)
    for row, text in enumerate(texts):
        alone = method.encode_text([text])
        _close(alone.joint[0], whole.joint[row], f"the joint vector of text {row} alone")
        for part, mask in (("sentences", "sentence_mask"), ("words", "word_mask")):
            one, all_of_them = getattr(alone, part), getattr(whole, part)
            if all_of_them is not None:
                own, among = one[0][getattr(alone, mask)[0]], all_of_them[row][getattr(whole, mask)[row]]
                _same_map(own, among, f"the vectors of the {part} of text {row} alone")
    _close(method.encode_text(texts[::-1]).joint, whole.joint.flip(0), "joint text vectors in another order")
    images = method.encode_image(sample_images(method)).joint
    assert images is not None
    widths = images.shape[1], whole.joint.shape[1]
    assert widths[0] == widths[1], f"joint widths differ: images {widths[0]}, texts {widths[1]}"


@torch.inference_mode()
def _an_empty_text_is_finite(method: Method) -> None:
    """A text without words has a finite joint vector and finite local scores."""
    texts = ["", "Clear lungs."]
    assert torch.isfinite(method.encode_text(texts).joint).all(), "the joint vector of an empty text is not finite"
    scores = method.local_score(sample_images(method, 2), texts)
    assert scores is None or torch.isfinite(scores).all(), "the local score of an empty text is not finite"


@torch.inference_mode()
def _local_scores_depend_on_their_pair_alone(method: Method) -> None:
    """`local_score` gives (images, texts), each score the same whatever other images and texts stand beside."""
    images, texts = sample_images(method), sample_texts()
    whole = method.local_score(images, texts)
    if whole is None:
        raise NotApplicable("it has no local scores")
    assert whole.shape == (len(images), len(texts)), f"local scores have the shape {tuple(whole.shape)}"
    one = method.local_score(images[3:4], texts[1:3])
    assert one is not None
    _close(one, whole[3:4, 1:3], "local scores of two pairs alone")


@torch.inference_mode()
def _maps_and_use_depend_on_their_pair_alone(method: Method) -> None:
    """`sentence_maps` gives finite maps (B, h, w) and `prototype_use` weights that sum to 1, each the same whatever
    other pairs stand beside its own."""
    images, texts = sample_images(method), [sentences[0] for sentences in REPORTS]
    maps, use = method.sentence_maps(images, texts) or {}, method.prototype_use(images, texts) or {}
    if not maps and not use:
        raise NotApplicable("it has neither maps of sentences nor prototypes")
    for name, whole in maps.items():
        assert whole.dim() == 3, f"the map {name!r} has {whole.dim()} axes, not (B, h, w)"
        assert len(whole) == len(images), f"the map {name!r} has another number of rows than there are pairs"
        assert torch.isfinite(whole).all(), f"the map {name!r} is not finite"
        alone = (method.sentence_maps(images[3:4], texts[3:4]) or {})[name]
        _close(alone, whole[3:4], f"the map {name!r} of a pair alone")
    for name, whole in use.items():
        _close(whole.float().sum(dim=1), torch.ones(len(whole)), f"the sum of the weights of {name!r}")
        first = (method.prototype_use(images[:1], texts[:1]) or {})[name]
        _close(first, whole[: len(first)], f"the weights of {name!r} of a pair alone")


@torch.inference_mode()
def _the_order_of_sentences_does_not_matter(method: Method) -> None:
    """Where nothing tells a text encoder of BERT's kind the order (its table of positions is emptied), neither vectors
    nor local scores depend on it: what is made of the words treats sentences as a set."""
    tables = [module for name, module in method.named_modules()
              if name.endswith(".position_embeddings") and isinstance(module, nn.Embedding)]
    if not tables:
        raise NotApplicable("no text encoder of BERT's kind, whose table of positions could be emptied")
    for table in tables:
        table.weight.zero_()
    texts, turned = sample_texts(), [" ".join(reversed(sentences)) for sentences in REPORTS]
    _close(method.encode_text(turned).joint, method.encode_text(texts).joint, "joint text vectors, sentences reversed")
    images = sample_images(method)
    scores, again = method.local_score(images, texts), method.local_score(images, turned)
    if scores is not None and again is not None:
        _close(again, scores, "local scores, sentences reversed")


TEXT = (_texts_do_not_depend_on_batch_or_padding, _an_empty_text_is_finite, _local_scores_depend_on_their_pair_alone,
        _maps_and_use_depend_on_their_pair_alone, _the_order_of_sentences_does_not_matter)


# --------------------------------------------------------------------------------------- training


def _total(terms: Mapping[str, tuple[float, Tensor]]) -> Tensor:
    return sum((weight * value for weight, value in terms.values()), start=torch.zeros(()))


def _losses_are_finite_and_named(method: Method) -> None:
    """Through the whole run `losses` gives {name: (weight, scalar)}, all finite."""
    for progress in (0.0, 0.5, 0.99):
        terms = method.train()(sample_batch(method), progress)
        assert terms, "no loss terms"
        for name, (weight, value) in terms.items():
            assert value.dim() == 0, f"{name} is no scalar at progress {progress}"
            assert torch.isfinite(value), f"{name} is {value.item()} at progress {progress}"
            assert math.isfinite(weight), f"the weight of {name} is {weight}"


@torch.inference_mode()
def _losses_in_bf16_are_close_to_fp32(method: Method) -> None:
    """Under autocast to bf16 each loss term is that of fp32, but for rounding: similarities, softmax and means over the
    batch belong in fp32."""
    batch = sample_batch(method)
    exact = _under_seed(0, partial(method, batch, 0.99))
    with torch.autocast("cpu", torch.bfloat16):
        rough = _under_seed(0, partial(method, batch, 0.99))
    for name, (_, value) in exact.items():
        _close(rough[name][1], value, f"{name} in bf16", BF16_SHARE * max(1.0, abs(float(value))))


@torch.inference_mode()
def _info_nce_of_equal_pairs_is_log_batch(method: Method) -> None:
    """Where all pairs are the same, none can be told from the others: each direction of InfoNCE is log(batch), whatever
    weights and temperature are. It is a mean over pairs, and `contrastive` says how many directions a term adds."""
    n = len(REPORTS)
    terms = method(sample_batch(method, [0] * n), 0.99)
    for name, directions in _contrastive(method).items():
        assert name in terms, f"{name} of `contrastive` is no loss term"
        _close(terms[name][1], torch.tensor(directions * math.log(n)), f"{name} of {n} equal pairs", 1e-3)


@torch.inference_mode()
def _info_nce_starts_near_log_batch(method: Method) -> None:
    """Untrained vectors say little, so that InfoNCE starts near log(batch), what guessing costs. Far above it logits
    are too large (vectors not of length 1, an extreme temperature), far below it pairs are known beforehand."""
    terms = method(sample_batch(method), 0.99)
    for name, directions in _contrastive(method).items():
        guess, value = directions * math.log(len(REPORTS)), float(terms[name][1])
        assert guess / START <= value <= guess * START, f"{name} starts at {value:.3g}, and guessing costs {guess:.3g}"


def _contrastive(method: Method) -> Mapping[str, float]:
    if not method.contrastive:
        raise NotApplicable("`contrastive` names no term")
    return method.contrastive


@torch.inference_mode()
def _views_depend_on_their_generator_alone(method: Method) -> None:
    """`view` draws with the generator that it is given and with no global one, or a run that was stopped could not be
    continued as if nothing had happened."""
    batches = [_under_seed(seed, lambda: sample_batch(method)) for seed in (1, 2)]
    first, second = (_under_seed(0, partial(method, batch, 0.99)) for batch in batches)
    for name, (_, value) in first.items():
        _close(second[name][1], value, f"{name} of views drawn again with equal generators", 0.0)


def _gradients_reach_both_encoders(method: Method) -> None:
    """The loss trains the modules `image_encoder` and, with text, `text_encoder`: weights are known by these names."""
    _total(method.train()(sample_batch(method), 0.99)).backward()
    for part in ("image_encoder", *(["text_encoder"] if method.has_text else [])):
        module = getattr(method, part, None)
        assert isinstance(module, nn.Module), f"the method has no module {part}"
        trained = [p for p in module.parameters() if p.requires_grad]
        got = sum(float(p.grad.abs().sum()) for p in trained if p.grad is not None)
        assert got > 0 or not trained, f"no gradient reaches the {part}"
        assert math.isfinite(got), f"the gradient of the {part} is not finite"


def _padding_contributes_nothing(method: Method) -> None:
    """Longer padding of the word pieces changes no term and no gradient."""
    batch = dict(sample_batch(method))
    if "ids" not in batch:
        raise NotApplicable("batches hold no word pieces `ids`; two ranks, which pad differently, tell")
    longer = dict(batch)
    for name, empty in (("ids", 0), ("mask", False), ("sentence", -1), ("word", -1), ("masked", False)):
        if name in batch:
            longer[name] = nn.functional.pad(batch[name], (0, 5), value=empty)
    _same_objective(method, [batch], [longer])


def _two_ranks_equal_one_process(method: Method) -> None:
    """Terms and gradients of two ranks with unequal batches, averaged as DistributedDataParallel does, are those of one
    process with all rows: negatives are gathered with gradient, and means weigh by rows (`losses.gather`,
    `losses.mean_over_pairs`). Batch norm and dropout in eval mode; what is random belongs to the sample, or is drawn
    alike from the global state (a start from data)."""
    rows, moments = range(len(REPORTS)), (0.0, 0.99)
    parts = [sample_batch(method, rows[:4]), sample_batch(method, rows[4:])]
    for progress, (terms, gradients) in zip(moments, _on_two_ranks(method, parts, moments), strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            expected = method(sample_batch(method, rows), progress)
        method.zero_grad()
        _total(expected).backward()
        for name, (_, value) in expected.items():
            _close(terms[name], value.detach(), f"{name} on two ranks", 1e-5 * max(1.0, abs(value.item())))
        _same_gradients(method, gradients, "on two ranks")


TRAINING = (_losses_are_finite_and_named, _losses_in_bf16_are_close_to_fp32, _info_nce_of_equal_pairs_is_log_batch,
            _info_nce_starts_near_log_batch, _views_depend_on_their_generator_alone, _gradients_reach_both_encoders,
            _padding_contributes_nothing, _two_ranks_equal_one_process)


def _same_objective(method: Method, first: Sequence[Batch], second: Sequence[Batch], progress: float = 0.99) -> None:
    found = []
    for batch in (*first, *second):
        method.zero_grad()
        terms = _under_seed(0, partial(method, batch, progress))
        _total(terms).backward()
        found.append(({name: value.detach() for name, (_, value) in terms.items()}, _gradients(method)))
    for name, value in found[0][0].items():
        _close(found[1][0][name], value, name, 1e-5 * max(1.0, abs(float(value))))
    _same_gradients(method, found[1][1], "with more padding", found[0][1])


def _gradients(method: Method) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


def _same_gradients(method: Method, found: Mapping[str, Tensor], when: str,
                    expected: Mapping[str, Tensor] | None = None) -> None:
    """Equal to 1e-5 of the largest gradient of all."""
    expected = _gradients(method) if expected is None else expected
    scale = max(1.0, max(float(g.abs().max()) for g in expected.values()))
    for name, gradient in expected.items():
        _close(found.get(name, torch.zeros_like(gradient)), gradient, f"the gradient of {name} {when}", 1e-5 * scale)


Found = tuple[dict[str, Tensor], dict[str, Tensor]]  # loss terms, gradients


def _on_two_ranks(method: Method, parts: Sequence[Batch], moments: Sequence[float]) -> list[Found]:
    """Mean over two gloo processes of the terms and of the gradients, for each progress in `moments`."""
    import torch.multiprocessing as processes

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        torch.save((method, list(parts), list(moments)), home / "inputs.pt")
        kind = type(method)
        logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it tells whom it stops
        try:
            processes.spawn(_rank, (str(home), kind.__module__, inspect.getfile(kind)), nprocs=2)
        except (processes.ProcessRaisedException, processes.ProcessExitedException) as error:
            raise AssertionError(f"a rank failed: {str(error).strip().splitlines()[-1]}; do all ranks call the same "
                                 "collectives, whatever their numbers of rows and sentences?") from error
        found: list[Found] = torch.load(home / "outputs.pt", weights_only=True)
    return found


def _rank(rank: int, folder: str, module: str, file: str) -> None:
    torch.set_num_threads(1)
    home = Path(folder)
    _make_importable(module, file)
    # Written by the parent process a moment ago, so that unpickling it is as safe as the parent.
    method, parts, moments = torch.load(home / "inputs.pt", weights_only=False)
    found = []
    with _group(rank, home):
        for progress in moments:
            method.zero_grad()
            torch.manual_seed(0)
            terms = method(parts[rank], progress)
            _total(terms).backward()
            values = {name: value.detach().clone() for name, (_, value) in terms.items()}
            gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                         for name, p in method.named_parameters()}
            for tensor in (*values.values(), *gradients.values()):
                dist.all_reduce(tensor)
                tensor /= 2
            found.append((values, gradients))
        if rank == 0:
            torch.save(found, home / "outputs.pt")


def _make_importable(name: str, file: str) -> None:
    """A method's module by its name, from its file where it is not on the path (a --plugin file, a test)."""
    with suppress(ImportError):
        importlib.import_module(name)
        return
    for end in (i for i, letter in enumerate(name) if letter == "."):
        sys.modules.setdefault(name[:end], types.ModuleType(name[:end]))
    plugins.import_file(name, Path(file))


@contextmanager
def _group(rank: int, home: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{home / 'meeting'}", rank=rank, world_size=2, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()

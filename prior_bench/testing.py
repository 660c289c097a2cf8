"""The conformance suite of methods: what every one must do, whoever wrote it, in the manner of scikit-learn's
`check_estimator`.

`check_method(method)` runs every check on a freshly built method and says what failed; `prior-bench check-method NAME`
does it from a shell. Images and reports are made up here, so neither data nor network is needed.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import math
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from prior_bench import plugins
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
STRIDES = (4, 8, 16, 32)
BF16_COSINE = 0.98  # least cosine of a vector in bf16 with itself in fp32


class CheckFailed(AssertionError):
    """A method failed checks; the text names each with what was seen."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one check: no problem, or what was wrong."""

    name: str
    problem: str = ""


def check_method(method: Method, raise_on_failure: bool = True, only: str = "") -> list[Outcome]:
    """Run every check that applies to a method, built by `from_recipe` and not yet trained.

    A vision-only method is not asked about texts, one that does not pre-train not about losses.

    Args: only: run the checks alone whose name holds this.
    Raises: CheckFailed, unless `raise_on_failure` is off.
    """
    method = copy.deepcopy(method).eval()
    checks = list(ENCODING)
    checks += TEXT if method.has_text else []
    checks += TRAINING if method.pretrains else []
    outcomes = [_outcome(check, method) for check in checks if only in _name(check)]
    failed = [f"{o.name}: {o.problem}" for o in outcomes if o.problem]
    if failed and raise_on_failure:
        raise CheckFailed(f"{method.name} fails {len(failed)} of {len(outcomes)} checks:\n" + "\n".join(failed))
    return outcomes


def _name(check: Callable[[Method], None]) -> str:
    return check.__name__.removeprefix("_").replace("_", " ")


def _outcome(check: Callable[[Method], None], method: Method) -> Outcome:
    name = _name(check)
    try:
        check(copy.deepcopy(method))
    except NotApplicable:  # the method says that it has no such thing
        return Outcome(name)
    except AssertionError as error:
        return Outcome(name, str(error).strip() or "failed")
    except Exception as error:  # a check must not hide the others
        return Outcome(name, f"{type(error).__name__}: {error}")
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


# --------------------------------------------------------------------------------------- encoding


def _close(found: Tensor, expected: Tensor, what: str, tolerance: float = 1e-4) -> None:
    assert found.shape == expected.shape, f"{what}: shape {tuple(found.shape)} instead of {tuple(expected.shape)}"
    worst = float((found.float() - expected.float()).abs().max()) if found.numel() else 0.0
    assert worst <= tolerance, f"{what} differs by {worst:.2e}, more than {tolerance:.0e}"


def _unit_length(joint: Tensor) -> None:
    _close(joint.norm(dim=1), torch.ones(len(joint)), "the length of a joint vector", 1e-4)


@torch.inference_mode()
def _image_features_have_their_shapes(method: Method) -> None:
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
    images = sample_images(method)
    whole = method.encode_image(images)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    turned = method.encode_image(images[order])
    alone = method.encode_image(images[2:3])
    _close(turned.pooled, whole.pooled[order], "pooled image features in another order")
    _close(alone.pooled, whole.pooled[2:3], "pooled image features alone")
    if whole.joint is not None and turned.joint is not None and alone.joint is not None:
        _close(turned.joint, whole.joint[order], "joint image vectors in another order")
        _close(alone.joint, whole.joint[2:3], "a joint image vector alone")


@torch.inference_mode()
def _encoding_is_deterministic(method: Method) -> None:
    images = sample_images(method)
    torch.manual_seed(1)
    first = method.encode_image(images).pooled
    torch.manual_seed(2)
    _close(method.encode_image(images).pooled, first, "pooled image features of a second call", 0.0)
    if method.has_text:
        text = method.encode_text(sample_texts()).joint
        torch.manual_seed(3)
        _close(method.encode_text(sample_texts()).joint, text, "joint text vectors of a second call", 0.0)


@torch.inference_mode()
def _pyramid_has_its_strides_and_channels(method: Method) -> None:
    images = sample_images(method, 2)
    side = images.shape[-1]
    levels = method.pyramid(images)
    assert len(levels) == len(STRIDES), f"{len(levels)} levels instead of {len(STRIDES)}"
    for level, stride, channels in zip(levels, STRIDES, method.pyramid_channels, strict=True):
        assert level.shape[:2] == (2, channels), f"stride {stride}: {tuple(level.shape[:2])}, not (2, {channels})"
        for found in level.shape[2:]:
            near = side / stride
            assert abs(found - near) <= max(1.0, 0.1 * near), f"stride {stride}: a side of {found}, not about {near:g}"


@torch.inference_mode()
def _bf16_is_close_to_fp32(method: Method) -> None:
    images = sample_images(method)
    exact = method.encode_image(images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = method.encode_image(images)
        texts = method.encode_text(sample_texts()).joint.float() if method.has_text else None
    pairs = [("pooled image features", rough.pooled, exact.pooled)]
    if exact.joint is not None and rough.joint is not None and texts is not None:
        pairs.append(("joint image vectors", rough.joint.float(), exact.joint))
        pairs.append(("joint text vectors", texts, method.encode_text(sample_texts()).joint))
    for what, a, b in pairs:
        least = float(nn.functional.cosine_similarity(a, b).min())
        assert least >= BF16_COSINE, f"{what} in bf16 have a cosine of {least:.3f} with fp32, below {BF16_COSINE}"


@torch.inference_mode()
def _weights_survive_saving(method: Method) -> None:
    from prior_bench.weights import load_method, save_weights

    recipe: Any = getattr(method, "recipe", None)
    if not method.pretrains or recipe is None or method.name not in plugins.names("methods"):
        return  # what is not trained, or has no recipe or entry point, has no folder of weights
    with tempfile.TemporaryDirectory() as folder:
        again = load_method(save_weights(Path(folder) / "weights", method, recipe, {}))
    images = sample_images(method)
    _close(again.encode_image(images).pooled, method.encode_image(images).pooled, "pooled features after loading", 1e-6)
    if method.has_text:
        _close(again.encode_text(sample_texts()).joint, method.encode_text(sample_texts()).joint,
               "joint text vectors after loading", 1e-6)


ENCODING = (_image_features_have_their_shapes, _images_do_not_depend_on_batch_or_order, _encoding_is_deterministic,
            _pyramid_has_its_strides_and_channels, _bf16_is_close_to_fp32, _weights_survive_saving)


# ------------------------------------------------------------------------------------------- text


@torch.inference_mode()
def _texts_do_not_depend_on_batch_or_padding(method: Method) -> None:
    texts = sample_texts()
    whole = method.encode_text(texts).joint
    assert torch.isfinite(whole).all(), "joint text vectors are not finite"
    _unit_length(whole)
    for row, text in enumerate(texts):
        _close(method.encode_text([text]).joint[0], whole[row], f"the joint vector of text {row} alone")
    _close(method.encode_text(texts[::-1]).joint, whole.flip(0), "joint text vectors in another order")
    images = method.encode_image(sample_images(method)).joint
    assert images is not None
    assert images.shape[1] == whole.shape[1], f"joint widths differ: images {images.shape[1]}, texts {whole.shape[1]}"


@torch.inference_mode()
def _an_empty_text_is_finite(method: Method) -> None:
    found = method.encode_text(["", "Clear lungs."]).joint
    assert torch.isfinite(found).all(), "the joint vector of an empty text is not finite"


@torch.inference_mode()
def _local_scores_depend_on_their_pair_alone(method: Method) -> None:
    images, texts = sample_images(method), sample_texts()
    whole = method.local_score(images, texts)
    if whole is None:
        return
    assert whole.shape == (len(images), len(texts)), f"local scores have the shape {tuple(whole.shape)}"
    one = method.local_score(images[3:4], texts[1:3])
    assert one is not None
    _close(one, whole[3:4, 1:3], "local scores of two pairs alone")


@torch.inference_mode()
def _maps_and_use_depend_on_their_pair_alone(method: Method) -> None:
    images, texts = sample_images(method), [sentences[0] for sentences in REPORTS]
    maps = method.sentence_maps(images, texts) or {}
    for name, whole in maps.items():
        assert whole.dim() == 3, f"the map {name!r} has {whole.dim()} axes, not (B, h, w)"
        assert len(whole) == len(images), f"the map {name!r} has another number of rows than there are pairs"
        assert torch.isfinite(whole).all(), f"the map {name!r} is not finite"
        alone = (method.sentence_maps(images[3:4], texts[3:4]) or {})[name]
        _close(alone, whole[3:4], f"the map {name!r} of a pair alone")
    use = method.prototype_use(images, texts) or {}
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
        return
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
    for progress in (0.0, 0.5, 0.99):
        terms = method.train()(sample_batch(method), progress)
        assert terms, "no loss terms"
        for name, (weight, value) in terms.items():
            assert value.dim() == 0, f"{name} is no scalar at progress {progress}"
            assert torch.isfinite(value), f"{name} is {value.item()} at progress {progress}"
            assert math.isfinite(weight), f"the weight of {name} is {weight}"


@torch.inference_mode()
def _info_nce_of_equal_pairs_is_log_batch(method: Method) -> None:
    """Where all pairs are the same, none can be told from the others: each direction of InfoNCE is log(batch), whatever
    weights and temperature are. So it starts, too, where vectors say little yet."""
    n = len(REPORTS)
    terms = method(sample_batch(method, [0] * n), 0.99)
    for name, directions in method.contrastive.items():
        assert name in terms, f"{name} of `contrastive` is no loss term"
        _close(terms[name][1], torch.tensor(directions * math.log(n)), f"{name} of {n} equal pairs", 1e-3)


def _gradients_reach_both_encoders(method: Method) -> None:
    _total(method.train()(sample_batch(method), 0.99)).backward()
    for part in ("image_encoder", "text_encoder"):
        module = getattr(method, part, None)
        if module is None:
            continue
        trained = [p for p in module.parameters() if p.requires_grad]
        got = sum(float(p.grad.abs().sum()) for p in trained if p.grad is not None)
        assert got > 0 or not trained, f"no gradient reaches the {part}"
        assert math.isfinite(got), f"the gradient of the {part} is not finite"


def _padding_contributes_nothing(method: Method) -> None:
    """Longer padding of the word pieces changes no term and no gradient."""
    batch = dict(sample_batch(method))
    if "ids" not in batch:
        return
    longer = dict(batch)
    for name, empty in (("ids", 0), ("mask", False), ("sentence", -1), ("word", -1), ("masked", False)):
        if name in batch:
            longer[name] = nn.functional.pad(batch[name], (0, 5), value=empty)
    _same_objective(method, [batch], [longer])


def _two_ranks_equal_one_process(method: Method) -> None:
    """Terms and gradients of two ranks with unequal batches, averaged as DistributedDataParallel does, are those of one
    process with all rows. Batch norm and dropout in eval mode; what is random belongs to the sample, or is drawn alike
    from the global state (a start from data)."""
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


TRAINING = (_losses_are_finite_and_named, _info_nce_of_equal_pairs_is_log_batch, _gradients_reach_both_encoders,
            _padding_contributes_nothing, _two_ranks_equal_one_process)


def _same_objective(method: Method, first: Sequence[Batch], second: Sequence[Batch], progress: float = 0.99) -> None:
    found = []
    for batch in (*first, *second):
        method.zero_grad()
        terms = method(batch, progress)
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
        processes.spawn(_rank, (str(home), kind.__module__, inspect.getfile(kind)), nprocs=2)
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
    dist.init_process_group("gloo", init_method=f"file://{home / 'meeting'}", rank=rank, world_size=2)
    try:
        yield
    finally:
        dist.destroy_process_group()

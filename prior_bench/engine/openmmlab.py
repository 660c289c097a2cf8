"""The bridge to OpenMMLab: MMSegmentation and MMDetection imported once, quietly, with or without compiled operators.

    with scope("mmseg"):
        from mmseg.models.segmentors import EncoderDecoder

`scope` comes before any import of theirs. mmcv's Python operators load a compiled extension, `mmcv._ext`; where that is
missing, a stand-in takes its place that computes NMS, RoIAlign and the sigmoid focal loss with torchvision. Any other
operator can be imported (mmdet and mmseg import many that nobody calls) and raises an error only when it is called.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import distributions
from typing import Any, Literal

from prior_bench.errors import UserError

ONEDL = {"mmengine": "onedl-mmengine", "mmcv": "onedl-mmcv", "mmdet": "onedl-mmdetection",
         "mmseg": "onedl-mmsegmentation"}
UPSTREAM = {"mmengine": ("mmengine", "mmengine-lite"), "mmcv": ("mmcv", "mmcv-lite"), "mmdet": ("mmdet",),
            "mmseg": ("mmsegmentation",)}
OPENCV = ("opencv-python", "opencv-contrib-python", "opencv-python-headless", "opencv-contrib-python-headless")
PARTS = {"mmseg": ("mmseg.models", "mmseg.datasets", "mmseg.structures"),
         "mmdet": ("mmdet.models", "mmdet.datasets", "mmdet.structures")}
TORCHVISION_OPERATORS = ("nms", "roi_align", "sigmoid_focal_loss")
OPENCV_FIX = ("opencv needs libGL here: `pip uninstall -y opencv-python opencv-python-headless`, then `pip install "
              "opencv-python-headless` (or install the system's libgl1)")
_EXTENSION = "mmcv._ext"


# ------------------------------------------------------------------------------------------ importing


@contextmanager
def scope(library: Literal["mmseg", "mmdet"]) -> Iterator[None]:
    """Import a library with all its registered parts, and resolve names in its registry inside the block.

    Raises: UserError where it cannot be imported (OpenMMLab missing, both families installed, OpenCV without libGL).
    """
    _import(library)
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope(library):
        yield


@cache
def _import(library: str) -> None:
    install_operators()
    try:
        from mmengine.logging import MMLogger

        MMLogger.get_current_instance()  # before the redirection, or the logger would keep its buffer
        with quiet():
            for part in PARTS[library]:
                importlib.import_module(part)
    except (ImportError, AssertionError) as error:  # their version checks are assertions
        raise UserError(f"{library} cannot be imported: {error}", where=family(),
                        fix=OPENCV_FIX if "libGL" in str(error) else "see `prior-bench doctor`") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what these packages print, log and warn at import ("Could not import OneDL") from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ------------------------------------------------------------------------------------------ operators


@cache
def install_operators() -> Literal["compiled", "torchvision"]:
    """Use mmcv's compiled operators where they can be loaded, else put torchvision's in their place; says which."""
    family()
    if importlib.util.find_spec("mmcv") is None:
        raise UserError("mmcv is not installed", fix="reinstall prior-bench with its dependencies")
    try:
        importlib.import_module(_EXTENSION)
    except ImportError:  # there is none, or it was compiled for another torch
        sys.modules[_EXTENSION] = _StandIn(_EXTENSION)
        return "torchvision"
    return "compiled"


class _StandIn(types.ModuleType):
    """In the place of mmcv's compiled extension: what torchvision can compute, and an error for the rest."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return _OPERATORS.get(name) or _missing(name)


def _missing(name: str) -> Callable[..., Any]:
    def call(*_: Any, **__: Any) -> Any:
        raise UserError(f"the operator {name!r} of mmcv is not compiled here, and torchvision has none in its place",
                        expected=f"only {', '.join(TORCHVISION_OPERATORS)}",
                        fix="install an mmcv with compiled operators, or use a head that does not need it")

    return call


def _nms(boxes: Any, scores: Any, *, iou_threshold: float, offset: int) -> Any:
    """Rows that survive, by falling score. mmcv measures a side as x2 - x1 + offset."""
    from torchvision.ops import nms

    boxes = boxes.float()
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return nms(boxes, scores.float(), iou_threshold)


def _roi_align_forward(features: Any, rois: Any, output: Any, argmax_y: Any, argmax_x: Any, *, pool_mode: int,
                       **shape: Any) -> None:
    from torchvision.ops import roi_align

    if pool_mode == 0:
        _missing("roi_align with pool_mode='max'")()
    size = (shape["aligned_height"], shape["aligned_width"])
    output.copy_(roi_align(features, rois, size, shape["spatial_scale"], shape["sampling_ratio"], shape["aligned"]))


def _roi_align_backward(gradient: Any, rois: Any, argmax_y: Any, argmax_x: Any, out: Any, *, pool_mode: int,
                        **shape: Any) -> None:
    import torch
    from torchvision.ops import roi_align

    with torch.enable_grad():
        features = torch.zeros_like(out, requires_grad=True)  # the operator is linear: any input has this gradient
        pooled = roi_align(features, rois, gradient.shape[-2:], shape["spatial_scale"], shape["sampling_ratio"],
                           shape["aligned"])
        out.copy_(torch.autograd.grad(pooled, features, gradient)[0])


def _focal(logits: Any, target: Any, weight: Any, gamma: float, alpha: float) -> Any:
    """Elementwise loss (N, C) of class indices (N,), where index C is background; `weight` (C,) or empty."""
    from torch.nn.functional import one_hot
    from torchvision.ops import sigmoid_focal_loss

    classes = logits.shape[1]
    truth = one_hot(target, classes + 1)[:, :classes].to(logits)
    loss = sigmoid_focal_loss(logits, truth, alpha, gamma, reduction="none")
    return loss * weight[target.clamp(max=classes - 1)][:, None] if weight.numel() else loss


def _focal_forward(logits: Any, target: Any, weight: Any, output: Any, *, gamma: float, alpha: float) -> None:
    output.copy_(_focal(logits, target, weight, gamma, alpha))


def _focal_backward(logits: Any, target: Any, weight: Any, out: Any, *, gamma: float, alpha: float) -> None:
    import torch

    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        out.copy_(torch.autograd.grad(_focal(leaf, target, weight, gamma, alpha).sum(), leaf)[0])


_OPERATORS: dict[str, Callable[..., Any]] = {
    "nms": _nms, "roi_align_forward": _roi_align_forward, "roi_align_backward": _roi_align_backward,
    "sigmoid_focal_loss_forward": _focal_forward, "sigmoid_focal_loss_backward": _focal_backward,
}

# ----------------------------------------------------------------------------------------- describing


@dataclass(frozen=True, slots=True)
class OpenMMLab:
    """What `prior-bench doctor` prints: see `describe`."""

    family: Literal["onedl", "upstream"]
    versions: dict[str, str]  # by import name
    operators: str  # which operators are used
    opencv: dict[str, str]  # installed distributions that write into cv2/
    hints: list[str] = field(default_factory=list)  # what to mend, in words


def describe() -> OpenMMLab:
    """Versions, family, operators and what is wrong. Imports mmcv's extension and cv2, neither mmdet nor mmseg.

    Raises: UserError where both families or none are installed.
    """
    installed = _installed()
    names = {library: name for library in ONEDL for name in (ONEDL[library], *UPSTREAM[library]) if name in installed}
    chosen = family()
    operators = {"compiled": "mmcv's compiled operators",
                 "torchvision": f"torchvision's {', '.join(TORCHVISION_OPERATORS)} (mmcv's are not compiled)"}
    opencv = {name: installed[name] for name in OPENCV if name in installed}
    hints = []
    try:
        importlib.import_module("cv2")
    except ImportError as error:
        hints.append(OPENCV_FIX if "libGL" in str(error) else f"opencv cannot be imported: {error}")
    if len(opencv) > 1 and not hints:
        hints.append(f"{' and '.join(opencv)} write into one folder; should cv2 fail on another machine: {OPENCV_FIX}")
    missing = [library for library in ONEDL if library not in names]
    if missing:
        hints.append(f"not installed: {', '.join(missing)}; reinstall prior-bench with its dependencies")
    versions = {library: installed[name] for library, name in names.items()}
    return OpenMMLab(chosen, versions, operators[install_operators()], opencv, hints)


def family() -> Literal["onedl", "upstream"]:
    """Which family of OpenMMLab packages is installed: the maintained `onedl-` forks or upstream's.

    Raises: UserError where none is, or both are: they write into the same folders, and what is there is a mixture.
    """
    installed = _installed()
    onedl = [name for name in ONEDL.values() if name in installed]
    upstream = [name for names in UPSTREAM.values() for name in names if name in installed]
    if onedl and upstream:
        raise UserError("both families of OpenMMLab packages are installed into the same folders",
                        where=", ".join(onedl + upstream), expected="the onedl- packages, or upstream's, not both",
                        fix=f"pip uninstall -y {' '.join(upstream + onedl)}; pip install {' '.join(ONEDL.values())}")
    if not onedl and not upstream:
        raise UserError("no OpenMMLab package is installed", expected=", ".join(ONEDL.values()),
                        fix=f"pip install {' '.join(ONEDL.values())}")
    return "onedl" if onedl else "upstream"


@cache
def _installed() -> dict[str, str]:
    """Versions of all installed distributions, by normalised name."""
    return {d.name.lower().replace("_", "-"): d.version for d in distributions() if d.name}

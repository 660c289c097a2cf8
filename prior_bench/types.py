"""The nouns, as small frozen dataclasses. Read this file first.

A method turns X-rays and reports into features; a task turns features into numbers on a dataset; a *cell* is one such
evaluation, fully named; a *result* is what a cell leaves behind. Nothing here imports torch: planning must stay fast.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from prior_bench.digests import digest_json

Split = Literal["train", "validation", "test"]
TargetKind = Literal["multilabel", "exclusive", "mask", "boxes", "report"]
Fit = Literal["squash", "letterbox", "crop"]
FRACTIONS = (0.01, 0.1, 1.0)


# ---------------------------------------------------------------------------------------------- data


@dataclass(frozen=True, slots=True)
class Report:
    """A report: its sections by name (`findings`, `impression`, ...) and their sentences, impression first."""

    sections: dict[str, str]
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One image of a study. `path` is None where a dataset makes its images itself."""

    id: str
    path: Path | None = None
    view: str | None = None  # "PA", "AP", "AP Supine", "L" as the owners write it; None: not stated


@dataclass(frozen=True, slots=True)
class Study:
    """One examination: the images of one patient at one time, with their report if there is one.

    `group` is the leak group: the patient, or wider where one person has several ids. It is the unit of splitting,
    subsetting and resampling.
    """

    id: str
    group: str
    split: Split
    images: tuple[ImageRecord, ...]
    report: Report | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """Something that a task can be evaluated on: labels, masks, boxes or reports of a dataset.

    `train=False` marks a test-only set (5x40). `sanity=True` keeps it out of mean ranks and default runs.
    """

    name: str
    kind: TargetKind
    classes: tuple[str, ...] = ()
    train: bool = True
    prompts: bool = False
    sanity: bool = False
    default: bool = True  # part of `--task all`


@dataclass(frozen=True, slots=True)
class DenseBudget:
    """What a dense head may spend on a dataset, the same for every method."""

    size: int  # pixels, a multiple of 32
    channels: int  # head width
    batch: int
    steps: int
    validations: int = 10
    subset_seeds: tuple[int, ...] = (0,)
    head_seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class FinetuneBudget:
    size: int | None = None  # None: the method's own input size
    batch: int = 32
    min_steps: int = 1000
    epochs: int = 30
    validations: int = 10
    subset_seeds: tuple[int, ...] = (0, 1, 2)
    head_seeds: tuple[int, ...] = (0,)


@dataclass(frozen=True, slots=True)
class Budget:
    """Settings that belong to (protocol, dataset), never to a method. Part of every cell's digest."""

    segmentation: DenseBudget
    detection: DenseBudget
    finetune: FinetuneBudget = FinetuneBudget()
    subset_seeds: tuple[int, ...] = (0, 1, 2)  # linear classification


# -------------------------------------------------------------------------------------------- images


@dataclass(frozen=True, slots=True)
class ImageInput:
    """How a method wants its images. Travels with the weights.

    `fit` maps a source image onto the square input: `squash` resizes both sides (aspect ratio lost), `letterbox`
    resizes the long side and pads with black, `crop` resizes the short side to size / crop_pct and cuts the centre.
    `mean` and `std` are on the 0..1 scale, one value per channel.
    """

    size: int = 224
    channels: int = 1
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    fit: Fit = "squash"
    crop_pct: float = 1.0

    def at(self, size: int) -> ImageInput:
        """The same input at another size, as dense tasks ask for."""
        values = asdict(self) | {"size": size}
        return ImageInput(**values)


# -------------------------------------------------------------------------------- cells and results


@dataclass(frozen=True, slots=True)
class Cell:
    """One evaluation, fully named: (what weights) x (what protocol) x (on what data)."""

    # which weights
    method: str
    recipe: str
    pretrain_source: str  # dataset, "file:NAME" for released weights, or "none"
    pretrain_seed: int
    weights_digest: str  # of the weights and the code of the method, or of what untrained ones are made from
    # which protocol
    task: str
    protocol_version: int
    profile: str  # "standard" | "standard-local" | "paper"
    mode: str  # "linear", "finetune", "frozen", "zero-shot", "retrieval"
    settings_digest: str  # budget, prompts and every other setting of the protocol on this dataset
    # on which data
    dataset: str
    data_digest: str
    target: str
    fraction: float | None  # None: the task trains nothing
    subset_seed: int = 0
    head_seed: int = 0

    @property
    def digest(self) -> str:
        return digest_json(asdict(self))

    @property
    def name(self) -> str:
        """A file name that people can read; the digest makes it unique."""
        parts = [self.method, self.task, self.mode, self.dataset, self.target]
        if self.fraction is not None:
            parts += [f"{self.fraction:g}", f"s{self.subset_seed}", f"h{self.head_seed}"]
        parts += [f"p{self.pretrain_seed}"]
        return f"{safe_name('_'.join(parts))}_{self.digest[:12]}"


def safe_name(text: str) -> str:
    """A cell's name, or part of it, as files have it."""
    return text.replace("/", "-").replace(":", "-")


@dataclass(frozen=True, slots=True)
class Metric:
    """One number. `value` is None where it is undefined, and `reason` says why; undefined is never zero."""

    name: str
    value: float | None
    higher_is_better: bool = True
    range: tuple[float, float] = (0.0, 1.0)
    reason: str = ""
    counts: dict[str, int] = field(default_factory=dict)  # images, positives, queries, labels_valid, ...


@dataclass(frozen=True, slots=True)
class Result:
    """What a cell leaves behind, beside its predictions. Schema version 1."""

    cell: Cell
    status: Literal["done", "not_applicable"]
    metrics: tuple[Metric, ...] = ()
    reason: str = ""  # why not applicable
    details: dict[str, Any] = field(default_factory=dict)  # selection: every value tried; curves; convergence
    provenance: dict[str, Any] = field(default_factory=dict)
    schema: int = 1

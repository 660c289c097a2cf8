"""Training of dense heads: what segmentation and detection share.

`DenseImages` holds a dataset's images at the size of the dense budget, keeping the method's fit; `train` runs a head of
MMSegmentation or MMDetection (engine/segmentor.py, engine/detector.py) through MMEngine's Runner on the pyramid of any
method, validates it as often as the budget says and keeps the best weights; `predict` runs it on images without labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil, isnan
from typing import Any

import numpy as np
import torch
from mmengine.dataset import BaseDataset, InfiniteSampler, pseudo_collate
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from prior_bench.data.dataset import Dataset
from prior_bench.data.geometry import IGNORE, Geometry
from prior_bench.data.images import ImageStore
from prior_bench.data.images import size as size_in_header
from prior_bench.engine.backbone import MethodBackbone, Training
from prior_bench.engine.memory import batch_that_fits, in_batches, is_out_of_memory
from prior_bench.engine.protocol import AUGMENTATION, ENCODER_RATE
from prior_bench.engine.runner import QuietRunner, Schedule, seed_everything
from prior_bench.errors import UserError
from prior_bench.method import Method
from prior_bench.task import Context
from prior_bench.types import Cell, DenseBudget, ImageInput

_PREDICT_BATCH = 32


# --------------------------------------------------------------------------------------------- images


class DenseImages:
    """Images of a dataset at (size, size), from the shared image store, and their geometry.

    Args:
        ids: the images that will be asked for.
        size: pixels, of the dataset's dense budget; fit and interpolation are the method's.
    """

    def __init__(self, context: Context, ids: Sequence[str], size: int):
        self.dataset: Dataset = context.dataset
        self.spec: ImageInput = context.method.image_input.at(size)
        self._store = ImageStore.open(context.dataset, ids, self.spec, context.cache / "images", report=context.report)
        self._geometries: dict[str, Geometry] = {}

    def pixels(self, image_id: str) -> np.ndarray:
        """uint8 (size, size, channels), grey values repeated for encoders with three channels."""
        return np.repeat(self._store.get([image_id])[0][..., None], self.spec.channels, axis=2)

    def geometry(self, image_id: str) -> Geometry:
        if image_id not in self._geometries:
            self._geometries[image_id] = Geometry(source_size(self.dataset, image_id), self.spec)
        return self._geometries[image_id]

    def sample(self, image_id: str) -> dict[str, Any]:
        """What every pipeline of MM starts from: pixels and their description."""
        shape = (self.spec.size, self.spec.size)
        return {"img": self.pixels(image_id), "img_id": image_id, "img_shape": shape, "ori_shape": shape,
                "scale_factor": (1.0, 1.0)}


def source_size(dataset: Dataset, image_id: str) -> tuple[int, int]:
    """Height and width of an image at its source; read from the file's header where the dataset does not make it.

    Raises: BadImage where the file cannot be read.
    """
    record = dataset.records[image_id]
    if record.path is not None and type(dataset).read_image is Dataset.read_image:
        return size_in_header(record.path)
    image = dataset.read_image(record)
    return image.height, image.width


def scaled_to_bytes(spec: ImageInput) -> dict[str, list[float]]:
    """Mean and std for MM's data preprocessors, which see 0..255."""
    return {"mean": [255 * m for m in spec.mean], "std": [255 * s for s in spec.std]}


class Augment:
    """Random scale, rotation, brightness and contrast of an image and its mask, within the protocol's `AUGMENTATION`.

    What is turned in from outside is black and ignored. Returns None, so that MMEngine draws another image, where no
    pixel of the mask counts.
    """

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def __call__(self, sample: dict[str, Any]) -> dict[str, Any] | None:
        import cv2

        image, mask, by = sample["img"], sample["gt_seg_map"], AUGMENTATION
        height, width, channels = image.shape
        angle, scale = self.rng.uniform(-by.rotation, by.rotation), self.rng.uniform(*by.scale)
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
        image = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR, borderValue=(0, 0, 0, 0))
        mask = cv2.warpAffine(mask, turn, (width, height), flags=cv2.INTER_NEAREST, borderValue=(IGNORE, 0, 0, 0))
        contrast = self.rng.uniform(1 - by.contrast, 1 + by.contrast)
        brightness = self.rng.uniform(-by.brightness, by.brightness)
        mean = float(image.mean())
        values = (image.astype(np.float32) - mean) * contrast + mean + 255 * brightness
        image = np.clip(np.round(values), 0, 255).astype(np.uint8).reshape(height, width, channels)
        return None if (mask == IGNORE).all() else sample | {"img": image, "gt_seg_map": mask}


# ------------------------------------------------------------------------------------------- training


@dataclass(frozen=True, slots=True)
class Optimisation:
    """How a head is trained: settings of the protocol, the same for every method. `factor` of (step, steps)."""

    factor: Callable[[int, int], float]
    weight_decay: float
    lr: float


@dataclass(slots=True)
class TrainedHead:
    """A trained model with its images; `details` holds every value that the selection saw."""

    model: BaseModel
    context: Context
    budget: DenseBudget
    details: dict[str, Any] = field(default_factory=dict)


def training_of(method: Method, mode: str) -> Training:
    """How the encoder takes part: by the cell's mode, but from scratch where a method learns from the target alone."""
    if method.trains_on_target:
        return "scratch"
    return "finetune" if mode == "finetune" else "frozen"


def train(context: Context, cell: Cell, budget: DenseBudget, build: Callable[[], BaseModel], data: BaseDataset,
          validation: BaseDataset, metric: BaseMetric, select: str, optimisation: Optimisation,
          augmented: bool) -> TrainedHead:
    """Train a model of MMSegmentation or MMDetection whose backbone is a `MethodBackbone`.

    Args:
        build: makes the model; called after the global state was seeded with the cell's head seed.
        data: training samples; `validation`: those that `metric` is computed on.
        select: the name of the metric whose best value chooses the weights; larger is better.
        augmented: no training image comes twice, so its features need not be kept.

    Raises: UserError where memory runs out; it names the batch that fits.
    """
    seed_everything(cell.head_seed)
    model = build()
    backbone = model.backbone
    assert isinstance(backbone, MethodBackbone)
    best = KeepBest(select)
    factor, steps = optimisation.factor, budget.steps
    progress = Progress(context.report, steps)
    runner = QuietRunner(
        model, context.cache, precision=context.precision,
        train_dataloader=DataLoader(data, budget.batch, sampler=InfiniteSampler(data, seed=cell.head_seed),
                                    collate_fn=pseudo_collate),
        train_cfg={"by_epoch": False, "max_iters": steps, "val_interval": ceil(steps / budget.validations)},
        optim_wrapper=OptimWrapper(_optimizer(model, backbone, optimisation)),
        val_dataloader=DataLoader(validation, _PREDICT_BATCH, collate_fn=pseudo_collate), val_cfg={},
        val_evaluator=Evaluator(metric), default_scope="mmengine",
        custom_hooks=[Schedule(lambda step: factor(step, steps)), best, progress])
    try:
        with backbone.remembering(training_too=not augmented):
            runner.train()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        out_of_memory = True
    else:
        out_of_memory = False
    if out_of_memory:  # outside the handler, which holds the failed step's tensors
        raise _memory_error(model, data, context, budget)
    best.restore(model)
    model.eval()
    details = {"validation": best.history, "best_step": best.step, "train_images": len(data), "select": select}
    return TrainedHead(model, context, budget, details)


def predict(trained: TrainedHead, data: BaseDataset) -> Iterator[Any]:
    """MM's data samples with predictions, one for each sample of `data`, in order."""
    model, context = trained.model, trained.context

    def run(part: slice) -> list[Any]:
        batch = pseudo_collate([data[i] for i in range(part.start, part.stop)])
        with torch.no_grad():
            samples: list[Any] = model.test_step(batch)
        context.report("predicting", part.stop / len(data))
        return samples

    for samples in in_batches(len(data), _PREDICT_BATCH, run, context.note):
        yield from samples


class KeepBest(Hook):
    """Keeps in memory the trained weights of the best validation, the later of equals; undefined is the worst."""

    def __init__(self, metric: str):
        self.metric = metric
        self.history: list[dict[str, float | int | None]] = []
        self.step = 0
        self._best = float("-inf")
        self._weights: dict[str, torch.Tensor] = {}

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        value = (metrics or {})[self.metric]
        self.history.append({"step": runner.iter, self.metric: None if isnan(value) else value})
        rank = float("-inf") if isnan(value) else value
        if rank >= self._best:
            self._best, self.step = rank, runner.iter
            state = _trained_state(runner.bare_model)
            self._weights = {name: tensor.detach().clone() for name, tensor in state.items()}

    def restore(self, model: BaseModel) -> None:
        state = model.state_dict()
        for name, tensor in self._weights.items():
            state[name].copy_(tensor)


class Progress(Hook):
    """Reports the share of steps done."""

    def __init__(self, report: Callable[[str, float], None], steps: int):
        self.report, self.steps = report, steps

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.report("training", (runner.iter + 1) / self.steps)


def _trained_state(model: BaseModel) -> dict[str, torch.Tensor]:
    """The weights that training changes: without the encoder's where it is frozen."""
    frozen = model.backbone.kind == "frozen"
    return {name: t for name, t in model.state_dict().items() if not (frozen and name.startswith("backbone."))}


def _optimizer(model: BaseModel, backbone: MethodBackbone, optimisation: Optimisation) -> torch.optim.Optimizer:
    encoder = backbone.trained_parameters()
    inside = {id(p) for p in backbone.parameters()}
    lr = optimisation.lr
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if id(p) not in inside], "lr": lr}]
    if encoder:
        groups.append({"params": encoder, "lr": lr if backbone.kind == "scratch" else lr * ENCODER_RATE})
    return torch.optim.AdamW(groups, lr=lr, weight_decay=optimisation.weight_decay)


def _memory_error(model: BaseModel, data: BaseDataset, context: Context, budget: DenseBudget) -> UserError:
    """Names the batch that fits, found by one dry step with half of it, a quarter, ..."""
    def attempt(size: int) -> None:
        batch = model.data_preprocessor(pseudo_collate([data[i % len(data)] for i in range(size)]), True)
        try:
            loss, _ = model.parse_losses(model(**batch, mode="loss"))
            loss.backward()
        finally:
            model.zero_grad(set_to_none=True)

    model.zero_grad(set_to_none=True)
    fits = batch_that_fits(budget.batch, attempt)
    fix = ("use a device with more memory or a smaller encoder" if fits is None else
           f"a batch of {fits} fits, but the batch belongs to the protocol: use a device with more memory, or give the "
           f"dataset's class a budget with that batch")
    return UserError(f"out of memory in training a dense head with a batch of {budget.batch} at {budget.size} px",
                     where=f"budget of the dataset {context.dataset.name}", fix=fix)

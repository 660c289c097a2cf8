"""Fine-tuning a method's image encoder with a linear head on labels, through MMEngine's Runner.

Protocol (version 1), with the values of `FINETUNING`: AdamW, the encoder at a share of the head's rate, warm-up then
cosine, frozen batch-norm statistics, random resized crop, no flip (it moves the heart), the best validation's weights.
A method that trains on its target (the supervised reference) starts from its random weights: the whole encoder learns
at the head's rate, and batch norm gathers its own statistics, for there are none worth freezing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from prior_bench.data.images import ImageStore
from prior_bench.engine.memory import batch_that_fits, in_batches, is_out_of_memory
from prior_bench.engine.protocol import FINETUNING
from prior_bench.engine.runner import QuietRunner, Schedule, seed_everything, warmup_cosine
from prior_bench.errors import UserError
from prior_bench.method import Method
from prior_bench.task import Context
from prior_bench.types import ImageInput

Logits = Callable[[Sequence[str]], np.ndarray]  # image ids -> (N, C) float64


def finetune(context: Context, seed: int, ids: Sequence[str], labels: np.ndarray, exclusive: bool,
             validation: Sequence[str], select: Callable[[np.ndarray], float]) -> tuple[Logits, dict[str, Any]]:
    """Train a copy of the context's method on labelled images.

    Args:
        seed: of the head, the order of the images and their crops.
        ids: training images; labels: (N, C) in {0, 1, NaN = missing}, one-hot for exclusive classes.
        validation: images whose logits (V, C) `select` turns into the value to maximise.

    Returns: the logits of any images by the best weights, and details: every validation's value.

    Raises: UserError where memory runs out; it names the batch that fits.
    """
    budget, method = context.dataset.budget.finetune, context.method
    spec = method.image_input if budget.size is None else method.image_input.at(budget.size)
    seed_everything(seed)
    model = Classifier(copy.deepcopy(method), _width(method, spec, context), labels.shape[1], exclusive, seed)
    images = _Images(context, spec)
    data = _Labelled(images.pixels(ids), labels)
    steps = max(budget.min_steps, budget.epochs * math.ceil(len(ids) / budget.batch))
    best = _Best(lambda: select(images.logits(model, validation)), math.ceil(steps / budget.validations), steps)
    order = InfiniteSampler(data, shuffle=True, seed=seed)
    runner = QuietRunner(
        model, context.cache, precision=context.precision,
        train_dataloader=DataLoader(data, batch_size=budget.batch, sampler=order),
        train_cfg={"by_epoch": False, "max_iters": steps},
        optim_wrapper=OptimWrapper(torch.optim.AdamW(model.rates(), weight_decay=FINETUNING.weight_decay)),
        custom_hooks=[Schedule(lambda step: warmup_cosine(step, steps, FINETUNING.warmup)), best,
                      _Progress(context, steps)])
    try:
        runner.train()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    else:
        best.restore(model)
        details = {"steps": steps, "best_step": best.step, "validation": best.history}
        return (lambda wanted: images.logits(model, wanted)), details
    # Outside the handler, whose exception holds the failed step's tensors.
    raise _memory_error(model, data, budget.batch)


class Classifier(BaseModel):
    """A method's pooled features and a linear head. Images are uint8 (B, 1, S, S), labels (B, C)."""

    def __init__(self, method: Method, width: int, classes: int, exclusive: bool, seed: int):
        super().__init__()
        self.method, self.exclusive = method, exclusive
        self.scratch = method.trains_on_target
        self.method.requires_grad_(True)
        self.head = nn.Linear(width, classes)
        self.crops = torch.Generator().manual_seed(seed)

    def init_weights(self) -> None:
        """Nothing: the encoder has its weights, and the head is initialised when it is built."""

    def forward(self, images: Tensor, labels: Tensor | None = None, mode: str = "tensor") -> Any:
        x = self.method.normalise(images)
        if mode != "loss":
            return self._logits(x)
        assert labels is not None
        return {"loss": self._loss(self._logits(random_resized_crop(x, self.crops)).float(), labels)}

    def _logits(self, x: Tensor) -> Tensor:
        return self.head(self.method.encode_image(x.contiguous(memory_format=torch.channels_last)).pooled)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean over the known labels, or rows."""
        known = ~labels.isnan()
        if self.exclusive:
            rows = known.all(dim=1)
            total = F.cross_entropy(logits[rows], labels[rows].argmax(dim=1), reduction="sum")
            return total / rows.sum().clamp_min(1)
        total = F.binary_cross_entropy_with_logits(logits[known], labels[known], reduction="sum")
        return total / known.sum().clamp_min(1)

    def train(self, mode: bool = True) -> Classifier:
        """Training mode, except that the statistics of a pre-trained encoder's batch norms stay as they are."""
        super().train(mode)
        if not self.scratch:
            for module in self.method.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()
        return self

    def rates(self) -> list[dict[str, Any]]:
        """Parameter groups with their peak rates."""
        head = FINETUNING.head_rate
        encoder = head if self.scratch else head * FINETUNING.encoder_share
        return [{"params": list(self.head.parameters()), "lr": head},
                {"params": list(self.method.parameters()), "lr": encoder}]


def random_resized_crop(images: Tensor, generator: torch.Generator) -> Tensor:
    """A random crop of each image (B, C, H, W), resized to the whole; area and aspect ratio as the protocol has them.

    Sides are clipped to the image, so that a wide crop of a large area loses some of it.
    """
    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(images), generator=generator)

    narrow, wide = FINETUNING.crop_ratio
    area, ratio = uniform(*FINETUNING.crop_area), uniform(math.log(narrow), math.log(wide)).exp()
    width, height = (area * ratio).sqrt().clamp_max(1), (area / ratio).sqrt().clamp_max(1)
    x, y = (1 - width) * uniform(-1, 1), (1 - height) * uniform(-1, 1)  # centre, in -1..1 of the image
    zero = torch.zeros_like(x)
    affine = torch.stack([torch.stack([width, zero, x], 1), torch.stack([zero, height, y], 1)], 1).to(images)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


class _Images:
    """Fitted images of the context's dataset by id, and their logits."""

    def __init__(self, context: Context, spec: ImageInput):
        self.context, self.spec = context, spec

    def pixels(self, ids: Sequence[str]) -> np.ndarray:
        """uint8 (N, 1, S, S)."""
        folder = self.context.cache / "images"
        store = ImageStore.open(self.context.dataset, ids, self.spec, folder, report=self.context.report)
        return store.get(ids)[:, None]

    def logits(self, model: Classifier, ids: Sequence[str]) -> np.ndarray:
        """(N, C) float64, in eval mode."""
        pixels, training = torch.from_numpy(self.pixels(ids)), model.training
        model.eval()
        with torch.no_grad():
            batches = in_batches(len(ids), self.context.dataset.budget.finetune.batch,
                                 lambda part: model(pixels[part].to(self.context.precision.device)).double().cpu(),
                                 self.context.note)
            found = torch.cat(list(batches)).numpy()
        model.train(training)
        return found


class _Labelled(Dataset[dict[str, np.ndarray]]):
    def __init__(self, pixels: np.ndarray, labels: np.ndarray):
        self.pixels, self.labels = pixels, labels.astype(np.float32)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"images": self.pixels[index], "labels": self.labels[index]}


class _Best(Hook):
    """Validates every `interval` steps and after the last; keeps the best weights in memory, the later of equals."""

    def __init__(self, validate: Callable[[], float], interval: int, steps: int):
        self.validate, self.interval, self.steps = validate, interval, steps
        self.history: list[dict[str, float]] = []
        self.step, self._value = 0, -math.inf
        self._weights: dict[str, Tensor] = {}

    def after_train_iter(self, runner: QuietRunner, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        step = runner.iter + 1
        if step % self.interval and step != self.steps:
            return
        value = self.validate()
        self.history.append({"step": step, "auroc_macro": value})
        if value >= self._value:
            self._value, self.step = value, step
            self._weights = {name: t.detach().clone() for name, t in runner.bare_model.state_dict().items()}

    def restore(self, model: nn.Module) -> None:
        model.load_state_dict(self._weights)


class _Progress(Hook):
    def __init__(self, context: Context, steps: int):
        self.context, self.steps = context, steps

    def after_train_iter(self, runner: QuietRunner, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        self.context.report("fine-tuning", (runner.iter + 1) / self.steps)


def _width(method: Method, spec: ImageInput, context: Context) -> int:
    """Number of pooled features, found by encoding one black image."""
    black = torch.zeros(1, 1, spec.size, spec.size, dtype=torch.uint8, device=context.precision.device)
    with torch.inference_mode():
        return method.eval().encode_image(method.normalise(black)).pooled.shape[1]


def _memory_error(model: Classifier, data: _Labelled, batch: int) -> UserError:
    def attempt(size: int) -> None:
        items = [data[i % len(data)] for i in range(size)]
        tensors = {key: torch.from_numpy(np.stack([item[key] for item in items])) for key in ("images", "labels")}
        try:
            model(**model.data_preprocessor(tensors, True), mode="loss")["loss"].backward()
        finally:
            model.zero_grad(set_to_none=True)

    model.zero_grad(set_to_none=True)
    fits = batch_that_fits(batch, attempt)
    fix = ("use a device with more memory, or a smaller encoder" if fits is None else
           f"a batch of {fits} fits, but the batch belongs to the protocol: use a device with more memory, or a "
           f"dataset class with that batch in its budget")
    return UserError(f"out of memory in fine-tuning with a batch of {batch}", where="budget.finetune.batch", fix=fix)

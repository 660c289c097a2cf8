"""One pre-training run: a method on MMEngine's Runner, from the recipe to the weights folder.

Order, samples and rates are pure functions of the step; what is left, the global generators that dropout and its kind
draw from, lies in the checkpoint. So a killed run, resumed on CPU, ends in the same bits as one never stopped.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner.base_loop import BaseLoop
from torch import Tensor, nn
from torch.utils.data import DataLoader

from prior_bench import plugins
from prior_bench.data.images import ImageStore
from prior_bench.engine import memory
from prior_bench.engine.hooks import CHECKPOINT, Keep, Log, Stages
from prior_bench.engine.precision import choose
from prior_bench.engine.pretrain import LOG, Report, read_log
from prior_bench.engine.processes import Group
from prior_bench.engine.runner import QuietRunner, seed_everything
from prior_bench.engine.samples import Positions, Samples, training_studies
from prior_bench.errors import UserError
from prior_bench.files import check_writable, write_text
from prior_bench.method import Batch, Method

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset
    from prior_bench.recipes import Recipe


def to_device(value: Any, device: torch.device) -> Any:
    """The tensors in nested mappings and sequences, on the device."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(to_device(item, device) for item in value)
    return value


class _BatchToDevice(nn.Module):
    def __init__(self, device: torch.device):
        super().__init__()
        self.device = device

    def forward(self, batch: Batch, training: bool = True) -> dict[str, Any]:
        return {"batch": to_device(batch, self.device)}


class Objective(BaseModel):
    """A method as MMEngine trains it: forward gives its loss terms, the total is their weighted sum.

    `progress`, the share of all steps done, is set before each step.
    """

    method: Method

    def __init__(self, method: Method, device: torch.device):
        super().__init__(data_preprocessor=_BatchToDevice(device))
        self.method = method
        self.progress = 0.0

    def init_weights(self) -> None:
        """Nothing: the method is initialised when it is built."""

    def forward(self, batch: Batch, mode: str = "loss") -> dict[str, tuple[float, Tensor]]:
        if mode != "loss":
            raise ValueError(f"pre-training only asks for losses, not for {mode!r}")
        terms = self.method(batch, self.progress)
        if not isinstance(terms, dict):
            raise TypeError(f"`losses` of {type(self.method).__name__} gives {type(terms).__name__}, and not "
                            "{name: (weight, scalar)}")
        return terms

    def parse_losses(self, losses: dict[str, tuple[float, Tensor]]) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum, and for the log the sum and each term unweighted."""
        total = sum((weight * value for weight, value in losses.values()), start=torch.zeros(()))
        return total, {"total": total.detach(), **{name: value.detach() for name, (_, value) in losses.items()}}


class StepLoop(BaseLoop):
    """A loop over the steps that are left, on a loader whose batch sampler starts where it is told to."""

    def __init__(self, runner: QuietRunner, dataloader: DataLoader, max_iters: int):
        super().__init__(runner, dataloader)
        self.max_iters, self._iter = max_iters, 0
        self._epoch, self.max_epochs = 0, 1  # asked for by Runner; here a run is one row of steps

    @property
    def iter(self) -> int:
        return self._iter

    @property
    def epoch(self) -> int:
        return self._epoch

    def run(self) -> nn.Module:
        self.runner.call_hook("before_train")
        self.runner.model.train()
        self.dataloader.batch_sampler.start = self._iter
        for batch in self.dataloader:
            self.runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=batch)
            outputs = self.runner.model.train_step(batch, optim_wrapper=self.runner.optim_wrapper)
            self.runner.call_hook("after_train_iter", batch_idx=self._iter, data_batch=batch, outputs=outputs)
            self._iter += 1
        self.runner.call_hook("after_train")
        return self.runner.model


class Run:
    """One pre-training run, from the recipe to the weights folder."""

    def __init__(self, method_name: str, recipe: Recipe, dataset: Dataset, seed: int, group: Group, folder: Path,
                 images: Path, report: Report, log: Callable[[Mapping[str, Any]], None] = lambda row: None):
        from prior_bench.weights import new_method

        assert recipe.training is not None
        self.recipe, self.training, self.folder, self.report = recipe, recipe.training, folder, report
        self.dataset, self.seed, self.log = dataset, seed, log
        if self.training.precision != "auto":
            chosen = choose(str(group.precision.device), self.training.precision)
            group = replace(group, precision=chosen)
        self.group = group
        self.studies = training_studies(dataset)
        self.steps = self._steps()
        seed_everything(seed)
        texts = [study.report.text for study in self.studies if study.report is not None]
        self.method = new_method(plugins.load("methods", method_name), recipe, seed, texts)
        seed_everything(seed + group.rank)  # equal weights, different dropout on each rank
        # Weights, two AdamW moments, twice (a new checkpoint is written before the old one goes), and the result.
        size = sum(p.numel() * p.element_size() for p in self.method.parameters())
        check_writable(folder, 7 * size + (1 << 20), "--cache")
        ids = [image.id for study in self.studies for image in study.images]
        self.store = ImageStore.open(dataset, ids, self.method.image_input, images,
                                     report=lambda phase, share: report(phase, share, ""))

    def _steps(self) -> int:
        n, batch, world = len(self.studies), self.training.batch, self.group.world
        if n < 2 * world:
            raise UserError(f"only {n} studies can be trained on", where=f"dataset {self.dataset.name}",
                            expected="training studies with a report and a frontal image")
        if n < batch * world:
            raise UserError(f"the batch of {batch} is larger than the {n} training studies with report and image",
                            where="training.batch", expected=f"at most {n // world}",
                            fix=f"--set training.batch={n // world}")
        return max(1, round(self.training.epochs * (n // (batch * world))))

    def train(self) -> dict[str, Any]:
        """Train from the last checkpoint, or from the start; returns what the provenance says of it."""
        training, group = self.training, self.group
        positions = Positions(len(self.studies), training.batch, self.steps, self.seed, group.rank, group.world)
        samples = Samples(self.method, self.studies, self.store, self.seed)
        stages = Stages(training, self.steps)
        images = training.batch * group.world
        log = None
        if group.rank == 0:
            log = Log(self.folder / LOG, stages, positions.per_epoch, images, self.report, self.log)
        keep = Keep(self.folder, group, log, self.steps)
        last = self.folder / CHECKPOINT
        runner = QuietRunner(
            Objective(self.method, group.precision.device), self.folder, precision=group.precision,
            train_dataloader=self._loader(samples, positions),
            train_cfg={"type": StepLoop, "max_iters": self.steps},
            optim_wrapper=self._optimizer(),
            custom_hooks=[hook for hook in (stages, log, keep) if hook is not None],
            load_from=last if last.is_file() else None, resume=True,
        )
        try:
            with keep.over_interrupts():
                runner.train()
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
        else:
            return self._provenance(keep.seconds, keep.peak_bytes(runner))
        # Outside the handler: the exception's frames hold the failed step's tensors.
        raise self._out_of_memory(runner, samples)

    def _loader(self, samples: Samples, positions: Positions) -> DataLoader:
        # A generator of its own: starting a loader draws a number, which would set a resumed run apart.
        return DataLoader(samples, batch_sampler=positions, collate_fn=self.method.collate,  # type: ignore[arg-type]
                          num_workers=self.training.workers, generator=torch.Generator().manual_seed(self.seed),
                          pin_memory=self.group.precision.device.type == "cuda")

    def _optimizer(self) -> OptimWrapper:
        groups = [{"weight_decay": self.training.weight_decay, "lr_scale": 1.0, **group}
                  for group in self.method.param_groups()]
        if self.training.image_rate != 1:  # else left as they are: the gradient's norm is summed in their order
            groups = [part for group in groups for part in self._image_apart(group)]
        clip = {"max_norm": self.training.clip} if self.training.clip else None
        return OptimWrapper(torch.optim.AdamW(groups, betas=self.training.betas, fused=True), clip_grad=clip)

    def _image_apart(self, group: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A parameter group as two: the image encoder's parameters, at their own rate, and the others."""
        image = {id(p) for name, p in self.method.named_parameters() if name.startswith("image_encoder.")}
        for inside, factor in ((False, 1.0), (True, self.training.image_rate)):
            if params := [p for p in group["params"] if (id(p) in image) == inside]:
                yield {**group, "params": params, "lr_scale": group["lr_scale"] * factor}

    def _provenance(self, seconds: float, peak: int) -> dict[str, Any]:
        rows = read_log(self.folder / LOG)
        return {
            "kind": "pretrain", "dataset": self.dataset.name, "data_digest": self.dataset.digest(), "seed": self.seed,
            "studies": len(self.studies), "images": len(self.store.ids), "steps": self.steps,
            "processes": self.group.world, "precision": self.group.precision.key(), "seconds": round(seconds, 1),
            "images_per_second": round(self.steps * self.training.batch * self.group.world / seconds, 1),
            "peak_memory_bytes": peak, "last": rows[-1] if rows else None,
        }

    def _out_of_memory(self, runner: QuietRunner, samples: Samples) -> UserError:
        last = self.folder / CHECKPOINT
        kept = f"the last checkpoint is kept: {last}" if last.is_file() else "before the first checkpoint"
        batch = self.training.batch
        fits = None
        if self.group.world == 1:  # a trial on one rank alone would wait for the others
            fits = memory.batch_that_fits(batch, lambda size: self._dry_step(runner, samples, size))
        return memory.training_error(batch, fits, kept)

    def _dry_step(self, runner: QuietRunner, samples: Samples, size: int) -> None:
        """Losses and gradients of a smaller batch, thrown away."""
        model = runner.bare_model
        optimizer = runner.optim_wrapper.optimizer
        optimizer.zero_grad(set_to_none=True)
        batch = self.method.collate([samples[0, index] for index in range(size)])
        with torch.random.fork_rng(devices=[]):
            total, _ = model.parse_losses(model(**model.data_preprocessor(batch)))
            total.backward()
            if not optimizer.state:  # AdamW's two moments are made at its first step: they must fit too
                _ = [torch.empty_like(p) for p in self.method.parameters() for _ in range(2)]
        optimizer.zero_grad(set_to_none=True)

    def finish(self, provenance: dict[str, Any]) -> None:
        """Save weights and curves, mark the run complete, and drop what only an unfinished one needs."""
        from prior_bench.figures import draw_losses
        from prior_bench.weights import save_weights

        save_weights(self.folder / "weights", self.method.eval(), self.recipe, provenance)
        draw_losses(read_log(self.folder / LOG), self.folder / "loss_curves.png")
        write_text(self.folder / "done.json", json.dumps(provenance, indent=2))
        (self.folder / CHECKPOINT).unlink(missing_ok=True)

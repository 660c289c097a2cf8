"""MMEngine's Runner without its noise and its unsafe loading: what all training in this project shares.

Pre-training, fine-tuning, segmentation and detection build a `QuietRunner` with the arguments of MMEngine's Runner and
one more, `precision`. It writes nothing by itself (no config dump, log file, visualizer or environment report), leaves
the process alone (start method, thread counts, seeds), puts the model where `precision` says, and keeps checkpoints by
`engine.checkpoint`, so that MMEngine's own loading is never reached. Rates follow plain functions of the step:

    optimizer = torch.optim.AdamW(parameters, lr=5e-4)
    runner = QuietRunner(
        model, folder, precision=precision,
        train_dataloader=loader, train_cfg=dict(by_epoch=False, max_iters=steps, val_interval=steps // 10),
        optim_wrapper=OptimWrapper(optimizer, clip_grad=dict(max_norm=1.0)),
        val_dataloader=validation, val_cfg=dict(), val_evaluator=metric,
        custom_hooks=[Schedule(lambda step: warmup_poly(step, steps, warmup=0.05))],
        default_scope="mmseg",
    )
    runner.train()

Give MMEngine's step-based loops an endless sampler (`mmengine.dataset.InfiniteSampler`): they sleep two seconds
whenever one ends.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info, is_distributed
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel, is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from prior_bench.engine import checkpoint
from prior_bench.engine.precision import Precision

_numbers = itertools.count()  # MMEngine keeps loggers and hubs by experiment name: each runner gets its own

# ------------------------------------------------------------------------------------------ schedules


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Factor of the peak rate at `step` of `steps`: linear over the first `warmup` share, then half a cosine to 0.

    Step 0 has a rate above 0, the last step of the warm-up and the first after it have the peak rate.
    """
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def warmup_poly(step: int, steps: int, warmup: float, power: float = 0.9) -> float:
    """Factor of the peak rate: linear warm-up, then (1 - t) ** power to 0, as segmentation heads are trained."""
    rise = round(warmup * steps)
    if step < rise:
        return (step + 1) / rise
    return (1 - (step - rise) / max(1, steps - rise)) ** power


class Schedule(Hook):
    """Sets the rate of every parameter group before each step: its `initial_lr` (its `lr` when training starts) x
    `factor(step)`. A pure function of the step, so there is nothing to resume."""

    priority = "VERY_HIGH"

    def __init__(self, factor: Callable[[int], float]):
        self.factor = factor

    def before_train(self, runner: Runner) -> None:
        for group in runner.optim_wrapper.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        factor = self.factor(runner.iter)
        for group in runner.optim_wrapper.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


# --------------------------------------------------------------------------------------------- runner


def seed_everything(seed: int) -> None:
    """Seed python, numpy and torch (all devices): once per cell, before the model is built."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


class QuietRunner(Runner):
    """A Runner that prints and writes nothing; see the module's docstring.

    Args:
        model: an MMEngine model (or its config in the registry scope `default_scope`); placed by `precision`, its
            `forward` under autocast both in training and in evaluation, wrapped in DistributedDataParallel where a
            process group exists.
        work_dir: folder for checkpoints, in the cache.
        precision: where and how to compute.
        default_hooks: MMEngine's, all off unless given, except the one that tells samplers the epoch.
        load_from, resume: a checkpoint file of `save_checkpoint`: its weights, or with `resume` all of the run's state.
        others: as in `mmengine.runner.Runner`; `randomness`, `launcher`, `env_cfg`, `visualizer`, `cfg` are not taken.
    """

    def __init__(self, model: Any, work_dir: str | Path, *, precision: Precision,
                 default_hooks: dict[str, Any] | None = None, load_from: str | Path | None = None, **arguments: Any):
        refused = {"randomness", "launcher", "env_cfg", "visualizer", "cfg", "log_level"} & arguments.keys()
        if refused:
            raise TypeError(f"QuietRunner does not take {', '.join(sorted(refused))}")
        self.precision = precision
        self.meta: dict[str, Any] = {}  # of the checkpoint that was resumed
        off = dict.fromkeys(("runtime_info", "timer", "logger", "param_scheduler", "checkpoint"))
        super().__init__(model, str(work_dir), default_hooks=off | (default_hooks or {}),
                         load_from=None if load_from is None else str(load_from),
                         experiment_name=f"prior-bench-{next(_numbers)}", **arguments)

    # What MMEngine would do to the process and the disk when a Runner is built: nothing of it here.

    def setup_env(self, env_cfg: dict[str, Any]) -> None:
        self._distributed = is_distributed()
        self._rank, self._world_size = get_dist_info()
        self._timestamp = ""  # MMEngine makes a folder of this name

    def set_randomness(self, seed: int | None, *_: Any, **__: Any) -> None:
        """Nothing: the caller seeds once, before it builds the model (`seed_everything`)."""
        self._deterministic, self._seed = False, seed

    def build_logger(self, *_: Any, **__: Any) -> MMLogger:
        return MMLogger.get_instance(self._experiment_name, log_level="ERROR")

    def build_visualizer(self, *_: Any, **__: Any) -> Any:
        return SimpleNamespace(dataset_meta=None)  # loops set it, nobody reads it

    def dump_config(self) -> None:
        pass

    def _log_env(self, env_cfg: dict[str, Any]) -> None:
        pass  # it calls nvcc, gcc and git

    def wrap_model(self, model_wrapper_cfg: dict[str, Any] | None, model: nn.Module) -> nn.Module:
        """Place the model, cast its forward, wrap it for distributed training; MMEngine's takes any GPU it finds."""
        device = self.precision.device
        model = autocast_forward(self.precision.place(model), self.precision)
        if not self._distributed:
            return model
        if device.type == "cuda":  # the batch statistics of the global batch, as on one process (no CPU kernel exists)
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        # A stage may leave parts of a model unused, so DDP must look for the parameters that got no gradient.
        return MMDistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None,
                                         find_unused_parameters=True)

    # Checkpoints: ours only.

    @property
    def bare_model(self) -> Any:
        """The model without its distributed wrapper."""
        return self.model.module if is_model_wrapper(self.model) else self.model

    def load_or_resume(self) -> None:
        file = self._load_from  # type: ignore[has-type]
        self._load_from = None  # once, though train, val and test all call this
        if file is not None and self._resume:
            self.resume(file)
        elif file is not None:
            self.load_checkpoint(file)

    def save_checkpoint(self, out_dir: str | Path, filename: str, *_: Any, save_optimizer: bool = True,
                        meta: dict[str, Any] | None = None, by_epoch: bool = False, **__: Any) -> None:
        """Write model, optimiser, random states of all ranks, position and `meta` (JSON-able) to `out_dir/filename`.

        Called by every rank; rank 0 writes. To be called in `after_train_iter`, or between epochs with `by_epoch`.
        """
        content: dict[str, Any] = {
            "random": checkpoint.gather_random_states(self.precision.device),
            "iter": self.iter + (not by_epoch),
            "epoch": self.epoch + bool(by_epoch),
            "meta": meta or {},
        }
        if self._rank != 0:
            return
        content["model"] = self.bare_model.state_dict()
        if save_optimizer:
            content["optimizer"] = self.optim_wrapper.state_dict()
        checkpoint.save(Path(out_dir) / filename, content)

    def load_checkpoint(self, filename: str | Path, *_: Any, strict: bool = True, **__: Any) -> dict[str, Any]:
        """Load the model's weights from a file of `save_checkpoint`; returns the file's whole content."""
        content = checkpoint.load(Path(filename), self.precision.device)
        checkpoint.load_model(self.bare_model, content, Path(filename), strict=strict)
        return content

    def resume(self, filename: str | Path, *_: Any, **__: Any) -> None:
        """Continue from a file of `save_checkpoint`, as if nothing had happened since."""
        content = self.load_checkpoint(filename)
        self.train_loop._iter, self.train_loop._epoch = content["iter"], content["epoch"]
        self.optim_wrapper.load_state_dict(content["optimizer"])
        self.meta = content["meta"]
        checkpoint.set_random_state(content["random"][self._rank], self.precision.device)


def autocast_forward(model: nn.Module, precision: Precision) -> nn.Module:
    """Run the model's `forward` under autocast, on any device; MMEngine's AmpOptimWrapper refuses the CPU."""
    if precision.autocast is None:
        return model
    forward = model.forward

    @functools.wraps(forward)
    def cast(*arguments: Any, **keywords: Any) -> Any:
        with precision.cast():
            return forward(*arguments, **keywords)

    model.forward = cast
    return model

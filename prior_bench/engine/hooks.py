"""What happens around a pre-training step: the stages' rates, the log, the checkpoints."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import current_thread, main_thread
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.hooks import Hook
from torch import Tensor

from prior_bench.engine.pretrain import Report, read_log
from prior_bench.engine.processes import Group
from prior_bench.engine.runner import QuietRunner, warmup_cosine
from prior_bench.errors import UserError
from prior_bench.provenance import peak_memory

if TYPE_CHECKING:
    from prior_bench.recipes import Training

CHECKPOINT = "checkpoint.pt"
CHECKPOINT_SECONDS = 60.0  # the most that a kill can lose
LOG_SECONDS = 1.0  # between two writes to the log; reading a loss makes a GPU wait


class Stages(Hook):
    """Runs the recipe's stages: rate by linear warm-up and cosine inside each, optimiser state afresh at its start.

    PRIOR's authors train so: each of their stages makes its optimiser and its schedule anew. A recipe of one stage is
    the ordinary schedule. The rate of a group is multiplied by its `lr_scale`.
    """

    priority = "VERY_HIGH"

    def __init__(self, training: Training, steps: int):
        self.training, self.steps = training, steps
        stages = [training.stage_at(step / steps) for step in range(steps)]
        self.bounds = {stage: (stages.index(stage), stages.index(stage) + stages.count(stage)) for stage in set(stages)}

    def stage(self, step: int) -> int:
        return self.training.stage_at(step / self.steps)

    def rate(self, step: int) -> float:
        """The rate at a step, before a group's `lr_scale`."""
        start, end = self.bounds[self.stage(step)]
        stage = self.training.stages[self.stage(step)]
        return stage.lr * warmup_cosine(step - start, end - start, stage.warmup)

    def before_train_iter(self, runner: QuietRunner, batch_idx: int, data_batch: Any = None) -> None:
        optimizer = runner.optim_wrapper.optimizer
        if runner.iter == self.bounds[self.stage(runner.iter)][0]:
            optimizer.state.clear()
        rate = self.rate(runner.iter)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        runner.bare_model.progress = runner.iter / self.steps

    def after_train_iter(self, runner: QuietRunner, batch_idx: int, data_batch: Any = None,
                         outputs: Mapping[str, Tensor] | None = None) -> None:
        model: Any = runner.bare_model
        with torch.no_grad():
            model.method.after_step(model.progress)


class Log(Hook):
    """Writes one line of JSON a step, hands it to `also`, and reports progress; all about once a second."""

    def __init__(self, file: Path, stages: Stages, per_epoch: int, images: int, report: Report,
                 also: Callable[[Mapping[str, Any]], None] = lambda row: None):
        self.file, self.stages, self.per_epoch, self.images, self.report = file, stages, per_epoch, images, report
        self.also = also
        self.pending: list[dict[str, Any]] = []
        self.since = 0.0

    def before_train(self, runner: QuietRunner) -> None:
        kept = [row for row in read_log(self.file) if row["step"] < runner.iter]  # later ones will be made again
        self.file.write_text("".join(json.dumps(row) + "\n" for row in kept))
        self.since = perf_counter()

    def after_train_iter(self, runner: QuietRunner, batch_idx: int, data_batch: Any = None,
                         outputs: Mapping[str, Tensor] | None = None) -> None:
        step = runner.iter
        self.pending.append({"step": step, "epoch": step // self.per_epoch, "stage": self.stages.stage(step) + 1,
                             "lr": self.stages.rate(step), **(outputs or {})})
        if perf_counter() - self.since >= LOG_SECONDS:
            self.flush()

    def after_train(self, runner: QuietRunner) -> None:
        self.flush()

    def flush(self) -> None:
        """Write what is pending. UserError where a loss is not finite: from there on nothing is worth keeping."""
        if not self.pending:
            return
        values = iter(torch.stack([value.float().cpu() for row in self.pending for value in row.values()
                                   if isinstance(value, Tensor)]).tolist())
        rows = [{key: next(values) if isinstance(value, Tensor) else value for key, value in row.items()}
                for row in self.pending]
        now = perf_counter()
        rate = len(rows) * self.images / (now - self.since)
        self.pending, self.since = [], now
        for row in rows:
            row["images_per_second"] = round(rate, 2)
            broken = [name for name, value in row.items() if not np.isfinite(value)]
            if broken:
                raise UserError(f"the training diverged: {', '.join(broken)} not finite at step {row['step']}",
                                where=str(self.file),
                                fix="lower the stages' lr, set training.clip, or use --precision fp32")
        with open(self.file, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        for row in rows:
            self.also(row)
        last = rows[-1]
        self.report("pre-training", (last["step"] + 1) / self.stages.steps,
                    f"loss {last['total']:.3f}, {rate:.0f} images/s, stage {last['stage']}")


class Keep(Hook):
    """Keeps a checkpoint: one a minute, one after the last step, and one before Ctrl-C ends the run."""

    priority = "VERY_LOW"

    def __init__(self, folder: Path, group: Group, log: Log | None, steps: int):
        self.folder, self.group, self.log, self.steps = folder, group, log, steps
        self.start = self.saved = 0.0
        self.interrupted = False

    @contextmanager
    def over_interrupts(self) -> Iterator[None]:
        """Let Ctrl-C end the run behind the step, with a checkpoint; a second one ends it at once."""
        before = signal.getsignal(signal.SIGINT)
        if self.group.world > 1 or before is not signal.default_int_handler or current_thread() is not main_thread():
            yield  # ranks would save different steps; and who handles Ctrl-C otherwise goes on to
            return

        def note(number: int, frame: object) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def before_train(self, runner: QuietRunner) -> None:
        own = _how(self.group)
        if runner.meta and runner.meta["how"] != own:
            raise UserError(f"the unfinished run was made with {runner.meta['how']}, and now it would be {own}",
                            where=str(self.folder / CHECKPOINT),
                            fix="continue it in the same way, or delete the file to start again")
        self.saved = perf_counter()
        self.start = self.saved - runner.meta.get("seconds", 0.0)

    @property
    def seconds(self) -> float:
        """Training time so far, over all the pieces of a run that was resumed."""
        return perf_counter() - self.start

    def peak_bytes(self, runner: QuietRunner) -> int:
        """Peak memory so far, over all the pieces."""
        used = peak_memory()["gpu" if self.group.precision.device.type == "cuda" else "process"]
        return max(used, runner.meta.get("peak_bytes", 0))

    def after_train_iter(self, runner: QuietRunner, batch_idx: int, data_batch: Any = None,
                         outputs: Mapping[str, Tensor] | None = None) -> None:
        step = runner.iter + 1
        if step == self.steps or self.interrupted or self._due(step):
            if self.log is not None:
                self.log.flush()
            runner.save_checkpoint(self.folder, CHECKPOINT, meta={
                "how": _how(self.group), "seconds": self.seconds, "peak_bytes": self.peak_bytes(runner)})
            self.saved = perf_counter()
        if self.interrupted:
            raise KeyboardInterrupt

    def _due(self, step: int) -> bool:
        due = perf_counter() - self.saved >= CHECKPOINT_SECONDS
        if self.group.world == 1:
            return due
        return step % 10 == 0 and self.group.first(due)  # clocks differ, and all ranks must save together


def _how(group: Group) -> str:
    device, precision = group.precision.key()
    return f"{precision} on {device} in {group.world} process{'es' if group.world > 1 else ''}"

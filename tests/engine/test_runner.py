"""The quiet runner: prints and writes nothing, touches no seed; schedules against formulas; safe checkpoints."""

from __future__ import annotations

import math
import os
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from torch.utils.data import DataLoader

from prior_bench.engine.precision import choose
from prior_bench.engine.runner import QuietRunner, Schedule, seed_everything, warmup_cosine, warmup_poly
from prior_bench.errors import UserError


class Line(BaseModel):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(3, 1)
        self.kinds: list[torch.dtype] = []

    def forward(self, inputs, mode="tensor"):
        y = self.line(inputs)
        self.kinds.append(y.dtype)
        return {"loss": y.float().square().mean()} if mode == "loss" else [y]


class Count(BaseMetric):
    default_prefix = "toy"

    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return {"count": len(results)}


def runner(folder, precision="fp32", steps=6, model=None, **more):
    model = model or Line()
    data = [{"inputs": torch.full((3,), i / 10)} for i in range(12)]
    loader = DataLoader(data, batch_size=4, sampler=InfiniteSampler(data, shuffle=True, seed=0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return QuietRunner(model, folder, precision=choose("cpu", precision), train_dataloader=loader,
                       train_cfg={"by_epoch": False, "max_iters": steps, "val_interval": 3},
                       val_dataloader=DataLoader(data, batch_size=4), val_cfg={}, val_evaluator=Evaluator(Count()),
                       optim_wrapper=OptimWrapper(optimizer, clip_grad={"max_norm": 1.0}), **more)


def test_quiet(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seed_everything(3)
    threads, environment = torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")
    expected = [random.random(), np.random.random(), torch.rand(1).item()]
    model = Line()
    seed_everything(3)
    run = runner(tmp_path / "work", model=model)
    assert [random.random(), np.random.random(), torch.rand(1).item()] == expected
    before = model.line.weight.detach().clone()
    run.train()
    assert not torch.equal(before, model.line.weight)
    assert capfd.readouterr() == ("", "")
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")] == ["work"]
    assert (torch.get_num_threads(), os.environ.get("OMP_NUM_THREADS")) == (threads, environment)


def test_autocast_in_training_and_evaluation(tmp_path):
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        model = Line()
        runner(tmp_path, precision, model=model).train()
        assert len(model.kinds) == 6 + 2 * 3
        assert set(model.kinds) == {dtype}
        assert model.line.weight.dtype == torch.float32


def test_schedule_sets_every_group(tmp_path):
    seen = []

    class Watch(Schedule):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            super().before_train_iter(runner, batch_idx, data_batch)
            seen.append(runner.optim_wrapper.optimizer.param_groups[0]["lr"])

    runner(tmp_path, custom_hooks=[Watch(lambda step: warmup_cosine(step, 6, 0.5))]).train()
    assert seen == pytest.approx([0.1 / 3, 0.2 / 3, 0.1] + [0.05 * (1 + math.cos(math.pi * t / 3)) for t in range(3)])


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.0), (1, 0.05), (7, 0.05), (100, 0.05), (100, 0.0), (10, 0.99)])
def test_schedules_against_plain_formulas(steps, warmup):
    rise = round(steps * warmup)
    for step in range(steps):
        t = (step - rise) / max(1, steps - rise)
        expected = (step + 1) / rise if step < rise else (1 + math.cos(math.pi * t)) / 2
        assert warmup_cosine(step, steps, warmup) == pytest.approx(expected)
        expected = (step + 1) / rise if step < rise else (1 - t) ** 0.9
        assert warmup_poly(step, steps, warmup) == pytest.approx(expected)
        assert 0 < warmup_cosine(step, steps, warmup) <= 1


def test_saved_weights_are_loaded_and_nothing_unsafe(tmp_path):
    first = runner(tmp_path)
    first.train()
    first.save_checkpoint(tmp_path, "best.pt", save_optimizer=False, by_epoch=True)
    model = Line()
    second = runner(tmp_path, model=model)
    second.load_checkpoint(tmp_path / "best.pt")
    assert torch.equal(model.line.weight, first.bare_model.line.weight)
    torch.save({"state_dict": Line()}, tmp_path / "theirs.pth")
    with pytest.raises(UserError, match="holds code or objects"):
        second.load_checkpoint(tmp_path / "theirs.pth")


def test_arguments_that_would_make_noise_are_refused(tmp_path):
    with pytest.raises(TypeError, match="visualizer"):
        runner(tmp_path, visualizer={"type": "Visualizer"})

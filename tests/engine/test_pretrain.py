"""Pre-training end to end on the toy dataset: keys, stages, log, resume bit for bit, kills, locks, disks, memory."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from math import cos, pi
from pathlib import Path

import numpy as np
import pytest
import torch

from prior_bench import plugins
from prior_bench.engine import checkpoint, hooks, memory, training
from prior_bench.engine import pretrain as engine
from prior_bench.engine.precision import Precision, choose
from prior_bench.engine.pretrain import (
    check_trainable,
    finished,
    pretrain,
    pretrain_key,
    read_log,
    run_folder,
    thinned,
)
from prior_bench.engine.samples import Positions, Samples, is_frontal, training_studies
from prior_bench.errors import UserError
from prior_bench.recipes import Stage
from prior_bench.types import ImageRecord
from prior_bench.weights import load_method, new_method
from prior_bench.weights_folder import weights_digest

FP32 = choose("cpu", "fp32")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def toy_method():
    """The module of toy_method.py, registered as --plugin would."""
    plugins.add_file(HERE / "toy_method.py")
    return sys.modules[plugins.load("methods", "toy-method").__module__]


@pytest.fixture
def train(toy_method, toy, tmp_path):
    """pretrain() of the toy method with some training settings, in a cache of its own or a named one."""

    def run(cache: str = "cache", report=lambda *_: None, precision: Precision = FP32, **settings) -> Path:
        return pretrain("toy-method", toy_method.toy_recipe(**settings), toy, seed=0, precision=precision,
                        cache=tmp_path / cache, report=report, command="the test")

    return run


class StopError(Exception):
    pass


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException) -> None:
    """Raise `error` in the toy method's forward at a step of the run."""
    method = plugins.load("methods", "toy-method")
    losses, calls = method.losses, iter(range(10**6))

    def stopping(self, batch, progress):
        if next(calls) == step:
            raise error
        return losses(self, batch, progress)

    monkeypatch.setattr(method, "losses", stopping)


# ------------------------------------------------------------------------------------------ the run


def test_run_learns_logs_and_saves(train, toy):
    said: list[tuple[str, float, str]] = []
    weights = train(epochs=12, report=lambda *what: said.append(what))
    rows = read_log(weights.parent / "log.jsonl")
    assert [row["step"] for row in rows] == list(range(12 * (80 // 8)))
    assert np.mean([r["global"] for r in rows[-10:]]) < 0.6 * np.mean([r["global"] for r in rows[:10]])
    assert rows[0].keys() == {"step", "epoch", "stage", "lr", "total", "global", "images_per_second"}
    assert rows[-1]["total"] == pytest.approx(rows[-1]["global"] + 0.5 * rows[-1]["late"], rel=1e-5)
    assert rows[-1]["epoch"] == 11
    left = {path.name for path in weights.parent.iterdir()}
    assert left == {"done.json", "lock", "log.jsonl", "loss_curves.png", "weights"}
    phase, share, text = said[-1]
    assert (phase, share) == ("pre-training", 1.0)
    assert "loss" in text
    assert "images/s" in text
    provenance = json.loads((weights / "meta.json").read_text())["provenance"]
    assert provenance["data_digest"] == toy.digest()
    assert provenance["studies"] == 80
    assert provenance["steps"] == 120
    assert provenance["seconds"] > 0
    assert provenance["peak_memory_bytes"] > 1e7
    assert provenance["command"] == "the test"
    assert provenance["versions"]["torch"] == torch.__version__.split("+")[0]


def test_saved_weights_are_the_trained_ones(train, toy_method, toy, tmp_path):
    method = load_method(train())
    assert method.words
    fresh = toy_method.ToyMethod.from_recipe(toy_method.toy_recipe(), [s.report.text for s in training_studies(toy)])
    assert method.words == fresh.words
    assert method.image_encoder[1].num_batches_tracked == 40
    assert method.late.weight.abs().max() <= 0.5


def test_complete_run_is_reused(train, monkeypatch):
    first = train()
    monkeypatch.setattr("prior_bench.engine.training.Run", None)  # building one would fail
    assert train() == first


def test_ctrl_c_keeps_the_step_and_the_same_command_goes_on(train, monkeypatch):
    whole = train("whole")
    monkeypatch.setattr("prior_bench.engine.hooks.LOG_SECONDS", 0.0)

    def press(phase, share, text):
        if phase == "pre-training" and share > 0.5:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)  # in a background job, too
    with pytest.raises(KeyboardInterrupt):
        train("cut", report=press)
    shares: list[float] = []
    again = train("cut", report=lambda phase, share, text: shares.append(share) if phase == "pre-training" else None)
    assert min(shares) > 0.5
    assert weights_digest(again) == weights_digest(whole)


def test_bf16_trains(train):
    rows = read_log(train(precision=choose("cpu", "bf16"), epochs=8).parent / "log.jsonl")
    assert rows[-1]["global"] < rows[0]["global"]


def test_recipe_overrules_precision(toy_method, toy, tmp_path):
    recipe = toy_method.toy_recipe(epochs=1, precision="bf16")
    weights = pretrain("toy-method", recipe, toy, seed=0, precision=FP32, cache=tmp_path)
    assert json.loads((weights.parent / "done.json").read_text())["precision"] == ["cpu", "bf16"]


def test_workers_make_the_same_weights(train):
    assert weights_digest(train("a", epochs=1)) != ""
    one = torch.cat([p.flatten() for p in load_method(train("a", epochs=1)).parameters()])
    two = torch.cat([p.flatten() for p in load_method(train("b", epochs=1, workers=2)).parameters()])
    assert torch.equal(one, two)


# --------------------------------------------------------------------------------------------- keys


def test_key_follows_content(toy_method, toy, toy_class, monkeypatch):
    recipe = toy_method.toy_recipe()
    key = pretrain_key("toy-method", recipe, toy, 0)
    assert key == pretrain_key("toy-method", toy_method.toy_recipe(), toy_class(), 0)
    others = {pretrain_key("toy-method", toy_method.toy_recipe(batch=9), toy, 0),
              pretrain_key("toy-method", recipe, toy, 1),
              pretrain_key("toy-method", recipe, toy_class(exclude=frozenset({"toy-000"})), 0)}
    monkeypatch.setenv("WORLD_SIZE", "2")
    others.add(pretrain_key("toy-method", recipe, toy, 0))
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setattr(engine, "versions", lambda: {"torch": "another"})
    others.add(pretrain_key("toy-method", recipe, toy, 0))
    assert len(others | {key}) == 6


def test_planning_imports_no_torch():
    code = ("import sys; from prior_bench.engine.pretrain import pretrain_key, finished; "
            "assert not {'torch', 'pydantic', 'mmengine', 'rich'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------------- stages, order, samples


def test_stages_against_a_plain_formula(toy_method):
    two = (Stage(share=0.3, lr=1.0, warmup=0.5), Stage(share=0.7, lr=0.1, warmup=0.0))
    stages = hooks.Stages(toy_method.toy_recipe(stages=two).training, 20)
    expected = [(t + 1) / 3 for t in range(3)] + [0.5 * (1 + cos(pi * t / 3)) for t in range(3)]
    expected += [0.1 * 0.5 * (1 + cos(pi * t / 14)) for t in range(14)]
    assert [stages.rate(step) for step in range(20)] == pytest.approx(expected)
    assert [stages.stage(step) for step in range(20)] == [0] * 6 + [1] * 14


def test_stage_bounds_survive_rounding(toy_method):
    training = toy_method.toy_recipe(stages=tuple(Stage(share=s, lr=1) for s in (0.1, 0.2, 0.7))).training
    for steps in (7, 10, 30, 1000):
        bounds = hooks.Stages(training, steps).bounds
        assert bounds[1][0] == -(-steps // 10)
        assert bounds[2] == (-(-3 * steps // 10), steps)


@pytest.mark.parametrize(("settings", "expected"), [({}, (0.9, 0.999)), ({"betas": (0.5, 0.95)}, (0.5, 0.95))])
def test_the_betas_of_the_recipe_are_the_optimisers(settings, expected, train, monkeypatch):
    seen = set()
    monkeypatch.setattr(hooks.Stages, "before_train_iter",
                        lambda self, runner, **_: seen.add(runner.optim_wrapper.optimizer.param_groups[0]["betas"]))
    train(epochs=0.1, **settings)
    assert seen == {expected}


@pytest.mark.parametrize(("own_groups", "expected"), [(True, {1.0: False, 0.5: False, 6.0: True}),
                                                      (False, {1.0: False, 6.0: True})])
def test_the_image_encoder_learns_at_its_own_rate(own_groups, expected, toy_method, train, monkeypatch):
    """Whether a method groups its parameters itself (the toy's text encoder at half the rate) or not."""
    if not own_groups:
        monkeypatch.delattr(toy_method.ToyMethod, "param_groups")
    seen = {}
    before = hooks.Stages.before_train_iter

    def watch(self, runner, **arguments):
        before(self, runner, **arguments)
        names = {id(p): name for name, p in runner.bare_model.method.named_parameters()}
        for group in runner.optim_wrapper.optimizer.param_groups:
            seen[round(group["lr"] / self.rate(runner.iter), 6)] = [names.pop(id(p)) for p in group["params"]]
        assert not names  # each parameter once

    monkeypatch.setattr(hooks.Stages, "before_train_iter", watch)
    train(epochs=0.1, image_rate=6)
    assert {factor: all(n.startswith("image_encoder.") for n in names) for factor, names in seen.items()} == expected


def test_optimiser_starts_afresh_at_a_stage(train, monkeypatch):
    seen = []
    before = hooks.Stages.before_train_iter

    def watch(self, runner, **arguments):
        before(self, runner, **arguments)
        seen.append((runner.iter, bool(runner.optim_wrapper.optimizer.state),
                     [group["lr"] / self.rate(runner.iter) for group in runner.optim_wrapper.optimizer.param_groups]))

    monkeypatch.setattr(hooks.Stages, "before_train_iter", watch)
    train(epochs=2)
    assert [step for step, has_state, _ in seen if not has_state] == [0, 10]
    assert all(scales == pytest.approx([1.0, 0.5]) for _, _, scales in seen)


def test_positions_cover_an_epoch_once_over_ranks():
    ranks = [list(Positions(n=23, batch=5, steps=6, seed=3, rank=r, world=2)) for r in range(2)]
    for epoch in range(3):
        seen = [i for batches in ranks for e, i in (p for b in batches for p in b) if e == epoch]
        assert len(seen) == len(set(seen)) == 20
    assert ranks[0][0] != ranks[0][2]


def test_positions_resume_anywhere():
    whole = list(Positions(n=23, batch=5, steps=11, seed=3))
    for start in (0, 1, 4, 7, 11):
        rest = Positions(n=23, batch=5, steps=11, seed=3)
        rest.start = start
        assert list(rest) == whole[start:]
        assert len(rest) == 11 - start


def test_sample_depends_on_its_position_alone(toy_method, toy, tmp_path):
    from prior_bench.data.images import ImageStore

    studies = training_studies(toy)
    method = toy_method.ToyMethod.from_recipe(toy_method.toy_recipe(), [s.report.text for s in studies])
    store = ImageStore.open(toy, [i.id for s in studies for i in s.images], method.image_input, tmp_path)
    samples = Samples(method, studies, store, seed=5)
    first = [samples[e, i]["image"] for e in range(4) for i in range(3)]
    again = [samples[e, i]["image"] for e in reversed(range(4)) for i in reversed(range(3))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(np.array_equal(first[0], samples[e, 0]["image"]) for e in range(8))


def test_only_training_studies_with_frontal_image_and_report(toy):
    views = {None: True, "PA": True, "AP Supine": True, "ap": True, "L": False, "LATERAL": False, "Axial": False}
    assert {view: is_frontal(ImageRecord("x", view=view)) for view in views} == views
    studies = training_studies(toy)
    studies[0] = replace(studies[0], report=None)
    studies[1] = replace(studies[1], images=(replace(studies[1].images[0], view="L"),))

    class Fewer:
        name, studies = "fewer", []

    Fewer.studies = studies
    assert len(training_studies(Fewer)) == 78
    Fewer.studies = [*studies, replace(studies[5], split="test")]
    with pytest.raises(UserError, match="in training and in test"):
        training_studies(Fewer)


# ------------------------------------------------------------------------------------------- resume


def test_resume_equals_uninterrupted_bit_for_bit(train, toy_method, toy, tmp_path, monkeypatch):
    whole = train("whole")
    monkeypatch.setattr(hooks, "CHECKPOINT_SECONDS", 0.0)
    for stop in (13, 27):  # in the middle of epochs, in both stages
        with monkeypatch.context() as patch:
            stop_at(patch, stop if stop == 13 else 27 - 13, StopError())
            with pytest.raises(StopError):
                train("pieces")
    pieces = train("pieces")
    assert weights_digest(pieces) == weights_digest(whole)
    logs = [read_log(weights.parent / "log.jsonl") for weights in (whole, pieces)]
    assert [{**row, "images_per_second": 0} for row in logs[0]] == [{**row, "images_per_second": 0} for row in logs[1]]
    assert not (pieces.parent / hooks.CHECKPOINT).exists()


def test_resume_goes_back_to_the_last_checkpoint(train, monkeypatch):
    """What was done after the checkpoint is done again, and equal: log rows are neither lost nor doubled."""
    whole = train("whole")
    due = iter([True] + [False] * 1000)
    monkeypatch.setattr(hooks.Keep, "_due", lambda self, step: step == 9 and next(due))
    with monkeypatch.context() as patch:
        stop_at(patch, 21, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            train("pieces")
    pieces = train("pieces")
    assert weights_digest(pieces) == weights_digest(whole)
    assert [row["step"] for row in read_log(pieces.parent / "log.jsonl")] == list(range(40))


def forked(function, *arguments) -> multiprocessing.Process:
    """Start a function in a process of its own; forked, since importing MMEngine takes seconds."""
    process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
    process.start()
    return process


def test_kill_9_and_resume(train, tmp_path, monkeypatch):
    whole = train("whole")
    monkeypatch.setattr(hooks, "CHECKPOINT_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        method = plugins.load("methods", "toy-method")
        step = method.after_step
        patch.setattr(method, "after_step", lambda self, progress: (step(self, progress), time.sleep(0.02)))
        process = forked(train, "killed")
    folder = run_folder(tmp_path / "killed", whole.parent.name)
    while process.is_alive() and not (folder / hooks.CHECKPOINT).is_file():
        time.sleep(0.01)
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert 0 < checkpoint.load(folder / hooks.CHECKPOINT)["iter"] < 40
    assert finished(tmp_path / "killed", whole.parent.name) is None
    assert weights_digest(train("killed")) == weights_digest(whole)


def test_two_ranks_end_with_equal_weights_and_resume(train, toy_method, toy, tmp_path, monkeypatch):
    """Two gloo processes: equal weights on both, one log; a run that was stopped and resumed equals the whole one."""
    ports = free_ports(3)  # one for each process group: here rank 0 itself serves the rendezvous, not torchrun

    def rank(number: int) -> None:
        os.environ |= {"WORLD_SIZE": "2", "RANK": str(number), "LOCAL_RANK": str(number),
                       "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ports[0]}
        ended = []
        inner = training.Run.train

        def watched(self):
            provenance = inner(self)
            ended.append(torch.cat([p.detach().flatten() for p in self.method.parameters()]))
            return provenance

        training.Run.train = watched
        train("whole")
        method = plugins.load("methods", "toy-method")
        step = method.after_step
        method.after_step = stopping
        os.environ["MASTER_PORT"] = ports[1]
        with pytest.raises(StopError):
            train("pieces")
        method.after_step = step
        os.environ["MASTER_PORT"] = ports[2]
        train("pieces")
        assert torch.equal(*ended)
        torch.save(ended[0], tmp_path / f"rank{number}")

    def stopping(self, progress: float) -> None:
        if progress >= 0.6:
            raise StopError

    monkeypatch.setattr(hooks, "CHECKPOINT_SECONDS", 0.0)
    ranks = [forked(rank, number) for number in range(2)]
    for process in ranks:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in ranks] == [0, 0]
    one, two = (torch.load(tmp_path / f"rank{r}", weights_only=True) for r in range(2))
    assert torch.equal(one, two)
    done, = (tmp_path / "whole").glob("pretrain/*/done.json")
    provenance = json.loads(done.read_text())
    assert provenance["processes"] == 2
    assert provenance["steps"] == 4 * (80 // 16)
    assert len(read_log(done.parent / "log.jsonl")) == 20
    texts = [study.report.text for study in training_studies(toy)]
    fresh = new_method(toy_method.ToyMethod, toy_method.toy_recipe(), 0, texts)
    assert not torch.equal(one, torch.cat([p.flatten() for p in fresh.parameters()]))


def free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_resume_refuses_another_precision(train, monkeypatch):
    monkeypatch.setattr(hooks, "CHECKPOINT_SECONDS", 0.0)
    stop_at(monkeypatch, 5, StopError())
    with pytest.raises(StopError):
        train()
    with pytest.raises(UserError, match="fp32 on cpu in 1 process, and now it would be bf16 on cpu"):
        train(precision=choose("cpu", "bf16"))


@pytest.mark.parametrize("damage", ["truncated", "pickle", "architecture"])
def test_bad_checkpoint_is_one_clear_error(train, monkeypatch, damage, tmp_path):
    monkeypatch.setattr(hooks, "CHECKPOINT_SECONDS", 0.0)
    stop_at(monkeypatch, 3, StopError())
    with pytest.raises(StopError):
        train()
    file = next((tmp_path / "cache" / "pretrain").glob("*/" + hooks.CHECKPOINT))
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "pickle":
        torch.save({"format": 1, "model": Evil(tmp_path / "ran")}, file)
    else:
        content = checkpoint.load(file)
        content["model"]["method.late.weight"] = torch.zeros(3, 3)
        checkpoint.save(file, content)
    with pytest.raises(UserError) as caught:
        train()
    assert str(file) in str(caught.value)
    assert "delete" in str(caught.value)
    assert not (tmp_path / "ran").exists()


class Evil:
    """Pickles into a call that would create a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


# --------------------------------------------------------------------------------------------- lock


def test_second_process_waits_and_reuses(train, monkeypatch, tmp_path):
    step = plugins.load("methods", "toy-method").after_step
    started = threading.Event()

    def slow(self, progress):
        started.set()
        time.sleep(0.01)
        step(self, progress)

    monkeypatch.setattr(plugins.load("methods", "toy-method"), "after_step", slow)
    paths, said = [], []
    first = threading.Thread(target=lambda: paths.append(train()))
    first.start()
    assert started.wait(60)
    paths.append(train(report=lambda *what: said.append(what[0])))
    first.join()
    assert paths[0] == paths[1]
    assert said == ["waiting"]
    assert len(read_log(paths[0].parent / "log.jsonl")) == 40


# ------------------------------------------------------------------------------------------ mistakes


def test_batch_larger_than_the_data(train):
    with pytest.raises(UserError, match=r"at most 80[\s\S]*training\.batch=80"):
        train(batch=81)


def test_nothing_to_train(toy_method):
    with pytest.raises(UserError, match="nothing to pre-train"):
        check_trainable("toy-method", toy_method.toy_recipe().model_copy(update={"training": None}))
    with pytest.raises(UserError, match=r"add up to 0\.8"):
        check_trainable("toy-method", toy_method.toy_recipe(stages=(Stage(share=0.8, lr=1.0),)))


def test_divergence_stops_and_keeps_the_checkpoint(train, monkeypatch, tmp_path):
    monkeypatch.setattr(hooks, "CHECKPOINT_SECONDS", 0.0)
    method = plugins.load("methods", "toy-method")
    losses = method.losses

    def diverging(self, batch, progress):
        terms = losses(self, batch, progress)
        return terms if progress < 0.3 else {"global": (1.0, terms["global"][1] * float("nan"))}

    monkeypatch.setattr(method, "losses", diverging)
    with pytest.raises(UserError, match="total, global not finite at step 12"):
        train()
    file = next((tmp_path / "cache" / "pretrain").glob("*/" + hooks.CHECKPOINT))
    assert checkpoint.load(file)["iter"] == 12


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError(),
                                   RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")])
def test_out_of_memory_names_the_batch_that_fits(train, monkeypatch, tmp_path, error):
    monkeypatch.setattr(hooks, "CHECKPOINT_SECONDS", 0.0)
    method = plugins.load("methods", "toy-method")
    losses = method.losses

    def greedy(self, batch, progress):
        if len(batch["images"]) > 3 and progress > 0.2:
            raise error
        return losses(self, batch, progress)

    monkeypatch.setattr(method, "losses", greedy)
    with pytest.raises(UserError) as caught:
        train(batch=16)
    assert "out of memory in training with a batch of 16" in str(caught.value)
    assert "--set training.batch=2" in str(caught.value)
    file = next((tmp_path / "cache" / "pretrain").glob("*/" + hooks.CHECKPOINT))
    assert str(file) in str(caught.value)
    assert checkpoint.load(file)["iter"] == 5


def test_full_disk_is_found_before_training(train, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    monkeypatch.setattr("prior_bench.engine.training.Run.train", None)
    with pytest.raises(UserError, match="disk is nearly full"):
        train()


def test_read_only_cache_is_found_before_training(train, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("prior_bench.engine.training.Run", None)
    with pytest.raises(UserError, match=r"cannot write[\s\S]*--cache"):
        train("file")


def test_disk_that_fills_up_while_training(train, monkeypatch, tmp_path):
    """The checkpoint before is kept, and the run continues from it once there is space."""
    whole = train("whole")
    monkeypatch.setattr(hooks, "CHECKPOINT_SECONDS", 0.0)
    save, calls = torch.save, iter(range(1000))

    def full(content, file):
        if next(calls) == 7:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        save(content, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(UserError, match="No space left"):
            train("full")
    folder = run_folder(tmp_path / "full", whole.parent.name)
    assert sorted(p.name for p in folder.iterdir()) == [hooks.CHECKPOINT, "lock", "log.jsonl"]
    assert checkpoint.load(folder / hooks.CHECKPOINT)["iter"] == 7
    assert weights_digest(train("full")) == weights_digest(whole)


def test_memory_is_found_by_trial():
    tried = []

    def attempt(size):
        tried.append(size)
        if size > 12:
            raise MemoryError

    assert memory.batch_that_fits(100, attempt) == 12
    assert tried == [50, 25, 12]
    assert memory.batch_that_fits(3, attempt) is None


def test_a_thinned_log_keeps_the_mean_of_every_part():
    rows = [{"step": i, "epoch": 0, "stage": 1, "lr": 0.1, "total": float(i)} | ({"late": 2.0} if i >= 60 else {})
            for i in range(100)]
    found = thinned(rows, points=10)
    assert set(found) == {"lr", "total", "late"}
    assert found["total"] == [[10 * k + 5, 10 * k + 4.5] for k in range(10)]
    assert found["late"] == [[10 * k + 5, 2.0] for k in range(6, 10)]
    assert thinned(rows[:3]) == {"lr": [[0, 0.1], [1, 0.1], [2, 0.1]], "total": [[0, 0.0], [1, 1.0], [2, 2.0]]}
    assert thinned([]) == {}


def test_losses_that_are_no_terms_are_told(train, toy_method, monkeypatch):
    monkeypatch.setattr(toy_method.ToyMethod, "losses", lambda self, batch, progress: torch.zeros(()))
    with pytest.raises(TypeError, match=r"`losses` of ToyMethod gives Tensor, and not \{name: \(weight, scalar\)\}"):
        train()


def test_a_method_without_a_view_is_told(train, toy_method, monkeypatch):
    monkeypatch.delattr(toy_method.ToyMethod, "view")
    with pytest.raises(NotImplementedError, match="ToyMethod defines no `view`, which pre-training calls"):
        train()

"""`prior-bench pretrain` on plug-in files: weights, progress in plain lines, reuse, Ctrl-C, mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from prior_bench import plugins
from prior_bench.cli import app
from prior_bench.weights import load_method

TESTS = Path(__file__).parents[1]


@pytest.fixture
def pretrain(tmp_path):
    def call(*options: str):
        command = ["pretrain", "--method", "toy-method", "--dataset", "toy", "--cache", str(tmp_path / "cache"),
                   "--plugin", str(TESTS / "engine" / "toy_method.py"), "--plugin", str(TESTS / "toy.py"),
                   "--device", "cpu", *options]
        return CliRunner().invoke(app, command)

    return call


def test_weights_are_made_copied_and_reused(pretrain, tmp_path):
    first = pretrain("--output", str(tmp_path / "out"))
    assert first.exit_code == 0, first.output
    assert "pre-training 100% loss" in first.output
    assert "images/s" in first.output
    method = load_method(tmp_path / "out")
    assert method.image_encoder[1].num_batches_tracked == 10
    assert (tmp_path / "out" / "log.jsonl").read_text().count("\n") == 10
    again = pretrain()
    assert again.exit_code == 0
    assert "pre-training" not in again.output
    assert "weights: " in again.output
    (tmp_path / "out" / "left.txt").write_text("of earlier weights")
    other = pretrain("--set", "training.epochs=2", "--output", str(tmp_path / "out"))
    assert "pre-training 100% loss" in other.output
    assert (tmp_path / "out" / "log.jsonl").read_text().count("\n") == 20
    assert not (tmp_path / "out" / "left.txt").exists()  # weights are replaced whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "out"]


def test_a_folder_of_other_things_is_not_replaced(pretrain, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    result = pretrain("--output", str(tmp_path / "mine"))
    assert result.exit_code == 2
    assert "holds other files than weights" in result.output
    assert not (tmp_path / "cache" / "pretrain").exists()  # told before anything is trained


def test_of_several_processes_the_first_tells_and_copies(pretrain, monkeypatch, tmp_path):
    pretrain()
    monkeypatch.setenv("RANK", "1")
    result = pretrain("--output", str(tmp_path / "out"))
    assert (result.exit_code, result.output) == (0, "")
    assert not (tmp_path / "out").exists()


def test_losses_go_to_weights_and_biases(pretrain, monkeypatch, tmp_path):
    class Run:
        rows, settings = {}, None

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return None

        def log(self, row, step):
            self.rows[step] = row

    module = ModuleType("wandb")
    module.init = lambda **settings: setattr(Run, "settings", settings) or Run()
    monkeypatch.setitem(sys.modules, "wandb", module)
    assert pretrain("--wandb", "chest").exit_code == 0
    assert (Run.settings["project"], Run.settings["name"]) == ("chest", "toy-method-small-toy-0")
    assert Run.settings["config"]["training"]["batch"]
    (log,) = (tmp_path / "cache" / "pretrain").glob("*/log.jsonl")
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert list(Run.rows) == [row["step"] for row in rows]
    assert all(Run.rows[row["step"]]["total"] == row["total"] for row in rows)
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert "prior-bench[wandb]" in pretrain("--wandb", "chest", "--set", "training.epochs=1").output


def test_interrupt_says_how_to_go_on(pretrain, monkeypatch):
    plugins.add_file(TESTS / "engine" / "toy_method.py")
    monkeypatch.setattr("prior_bench.engine.samples.Samples.__getitem__", interrupt)
    result = pretrain()
    assert result.exit_code == 130
    assert "the last checkpoint is kept, and the same command goes on from there" in result.output
    monkeypatch.undo()
    assert pretrain().exit_code == 0


def interrupt(self, position):
    raise KeyboardInterrupt


@pytest.mark.parametrize(("options", "message"), [
    (["--recipe", "smal"], "did you mean 'small'"),
    (["--set", "training.batch=100"], "--set training.batch=80"),
    (["--set", "training.bach=10"], "training.bach"),
    (["--device", "cuda:7x"], "unknown device"),
    (["--method", "toy-metod"], "did you mean 'toy-method'"),
])
def test_mistakes_are_one_message(pretrain, options, message):
    result = pretrain(*options)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output

"""Checkpoints: content and generators survive, nothing in a file is run, the old file outlives a failed write."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch

from prior_bench.engine import checkpoint
from prior_bench.errors import UserError

CPU = torch.device("cpu")


def draw() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.random(), np.random.standard_normal(), torch.rand(1).item()]


def test_content_and_generators_survive(tmp_path):
    random.gauss(0, 1)  # leaves a second number waiting, as numpy's next line does
    np.random.standard_normal()
    state = checkpoint.random_state(CPU)
    expected = [draw() for _ in range(3)]
    optimiser = {"state": {0: {"step": torch.tensor(3.0)}}, "groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]}
    checkpoint.save(tmp_path / "c.pt", {"random": [state], "model": {"w": torch.arange(3)}, "optimizer": optimiser})
    content = checkpoint.load(tmp_path / "c.pt")
    assert content["model"]["w"].tolist() == [0, 1, 2]
    assert content["optimizer"]["groups"] == optimiser["groups"]
    checkpoint.set_random_state(content["random"][0], CPU)
    assert [draw() for _ in range(3)] == expected
    assert os.listdir(tmp_path) == ["c.pt"]


def test_single_process_gathers_its_own_state():
    states = checkpoint.gather_random_states(CPU)
    assert len(states) == 1
    assert torch.equal(states[0]["torch"], torch.get_rng_state())


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_malicious_pickle_is_refused_and_not_run(tmp_path):
    torch.save({"format": 1, "model": Evil(tmp_path / "ran")}, tmp_path / "c.pt")
    with pytest.raises(UserError, match=r"holds code or objects[\s\S]*c\.pt"):
        checkpoint.load(tmp_path / "c.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04 half a zip"])
def test_damaged_file(tmp_path, content):
    (tmp_path / "c.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"c\.pt"):
        checkpoint.load(tmp_path / "c.pt")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_file(tmp_path, share):
    file = tmp_path / "c.pt"
    checkpoint.save(file, {"model": {"w": torch.zeros(1000)}})
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match="damaged"):
        checkpoint.load(file)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        checkpoint.load(tmp_path / "none.pt")
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    with pytest.raises(UserError, match="not a checkpoint of this version"):
        checkpoint.load(tmp_path / "foreign.pt")


def test_another_architecture(tmp_path):
    with pytest.raises(UserError, match=r"another architecture[\s\S]*c\.pt[\s\S]*bias"):
        checkpoint.load_model(torch.nn.Linear(2, 3), {"model": {"weight": torch.zeros(3, 2)}}, tmp_path / "c.pt")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_failed_write_keeps_the_old_file(tmp_path, monkeypatch, error):
    file = tmp_path / "c.pt"
    checkpoint.save(file, {"iter": 1})

    def full(content, stream):
        stream.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match="could not be written"):
        checkpoint.save(file, {"iter": 2})
    assert checkpoint.load(file)["iter"] == 1
    assert os.listdir(tmp_path) == ["c.pt"]

"""Cells on a Ray cluster of this machine: the same results as in this process, and errors that arrive."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from prior_bench import plugins
from prior_bench.cli import app
from prior_bench.results import result_files

PLUGIN = Path(__file__).parent / "plugin" / "toy_plugin.py"


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "_from_files", {kind: {} for kind in plugins.KINDS})

    def call(output, *options):
        return CliRunner().invoke(app, ["run", "--method", "toy-method,toy-other", "--task", "toy-task", "--dataset",
                                        "toy-data", "--plugin", str(PLUGIN), "--device", "cpu", "--output",
                                        str(tmp_path / output), "--cache", str(tmp_path / "cache"), *options])

    return call


def values(folder):
    found = [json.loads(file.read_text()) for file in result_files(folder)]
    return {(r["cell"]["method"], r["cell"]["fraction"], r["cell"]["subset_seed"]): r["metrics"] for r in found}


def test_a_local_cluster_gives_the_same_results(run, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed (pip install 'prior-bench[ray]')")
    here, there = run("here"), run("there", "--ray", "local")
    assert here.exit_code == there.exit_code == 0, there.output
    assert values(tmp_path / "here") == values(tmp_path / "there")
    assert len(values(tmp_path / "there")) == 10
    assert "[10/10]" in there.output
    assert "nothing to do" in run("there", "--ray", "local").output


def test_without_ray_the_fix_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = run("none", "--ray", "auto")
    assert done.exit_code == 2
    assert "prior-bench[ray]" in done.output

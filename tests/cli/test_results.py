"""The verbs that read a results folder: compare, show, score, submit and leaderboard --from, as a user calls them."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from prior_bench.cli import app

CELL = "prior_zero-shot_zero-shot_phantom_phantom-5x40_p0_82e6233e3cda"
PATTERN = "*_zero-shot_zero-shot_phantom_phantom-5x40_*"
LINEAR = "*_classification_linear_phantom_findings_0.1_s0_*"


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.setenv("PRIOR_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == code, done.output
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return done.output

    return run


def tamper(file):
    content = json.loads(file.read_text())
    content["metrics"][0]["value"] = 0.999
    file.write_text(json.dumps(content))


def test_compare(call, committed):
    committed(PATTERN, LINEAR)
    lines = call("compare", "prior", "random").splitlines()
    assert lines[0].split("  ")[-1].strip() == "runs"
    assert "prior - random" in lines[0]
    assert lines[2].startswith("classification (linear) on phantom/findings, small-long, 10%  auroc_macro")
    assert "<0.001" in lines[2]
    assert "speaks of this checkpoint" in lines[3]
    assert lines[5:] == ["not compared:", "  zero-shot on phantom/phantom-5x40, small-long: "
                                          "random: random has no text encoder"]
    assert "did you mean 'prior'" in call("compare", "pior", "random", code=2)


def test_show(call, committed):
    folder = committed(PATTERN)
    text = call("show", "prior_z")
    for part in (CELL, "prior (small-long), pre-trained on phantom, seed 0", "profile standard, version 1",
                 "auroc_macro", "95 % interval", "images 200", "Mild cardiomegaly.", "torch: 2", "device: "):
        assert part in text
    assert "warning" not in text
    for name in (CELL, f"{CELL}.json", folder / f"{CELL}.parquet"):
        assert call("show", name) == text
    assert call("show", CELL, "--json") == (folder / f"{CELL}.json").read_text()
    assert "not applicable: random has no text encoder" in call("show", "random")


def test_show_warns(call, committed):
    folder = committed(PATTERN)
    tamper(folder / f"{CELL}.json")
    assert "warning: the stored auroc_macro differs" in call("show", CELL)


def test_show_names_the_nearest(call, committed):
    committed(PATTERN)
    assert "did you mean 'prior_zero-shot'" in call("show", "pior_zero-shot", code=2)
    assert "3 cells begin with ''" in call("show", "", code=2)
    assert "the results folder does not exist" in call("show", CELL, "--results", "none", code=2)


def test_score(call, committed):
    folder = committed(PATTERN)
    assert "3 cells, 10 metrics; all are what the predictions give" in call("score", folder)
    tamper(folder / f"{CELL}.json")
    text = call("score", folder, code=1)
    assert f"{CELL}: auroc_macro is stored as 0.999 (" in text
    assert "in 1 of them a number differs" in text
    (folder / f"{CELL}.json").write_text("{")
    assert "not a result" in call("score", folder, code=2)


def test_submit_and_add(call, committed, tmp_path):
    committed(PATTERN)
    assert "wrote results.zip: 3 cells" in call("submit", "results")
    text = call("leaderboard", "new", "--from", "results.zip")
    assert "added 3 cells to new; 0 were there already" in text
    assert "0.931" in (tmp_path / "new" / "LEADERBOARD.md").read_text()
    assert "added 0 cells to new; 3 were there" in call("leaderboard", "new", "--from", "results.zip")
    (tmp_path / "results.zip").write_bytes(b"no zip")
    refused = call("leaderboard", "new", "--from", "results.zip", code=2)
    assert "error: the archive is refused: it is no whole zip file" in refused
    assert "nothing was added" in refused


def test_figures(call, committed, tmp_path):
    committed("prior_classification_*_1_s0_*", "random_classification_*_1_s0_*")
    assert "drawn" in call("leaderboard", "results", "--figures", "drawn")
    assert sorted((f.name.partition("-phantom")[0], f.suffix) for f in (tmp_path / "drawn").iterdir()) == [
        (name, kind) for name in ("labels", "precision-recall", "reliability", "roc") for kind in (".png", ".svg")]
    assert "cannot write" in call("leaderboard", "results", "--figures", "results/leaderboard.csv", code=2)

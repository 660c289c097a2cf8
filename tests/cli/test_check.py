"""`prior-bench check` as a user and as CI call it: exit codes, files, annotations, and mistakes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from prior_bench.cli import app
from prior_bench.leaderboard.gate.exact import golden

ROOT = Path(__file__).parents[2]
FEW = ("--method", "convirt", "--task", "zero-shot", "--device", "cpu")


@pytest.fixture
def call(tmp_path, monkeypatch, ci_cache):
    monkeypatch.setenv("PRIOR_BENCH_CACHE", str(ci_cache))
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)

    def run(*arguments, code=0):
        done = CliRunner().invoke(app, ["check", *map(str, arguments)])
        assert done.exit_code == code, done.output
        assert done.exception is None or isinstance(done.exception, SystemExit)
        return done.output

    return run


@pytest.fixture
def baseline(tmp_path):
    """A copy of the packaged baseline of one method."""
    shutil.copytree(golden.PACKAGED / "convirt", tmp_path / "baseline" / "convirt")
    return tmp_path / "baseline"


def tamper(baseline):
    file = baseline / "convirt" / "cpu-fp32.json"
    content = json.loads(file.read_text())
    content["cells"]["convirt/zero-shot/findings"]["quantities"]["auroc_macro"]["numbers"] = [0.99]
    file.write_text(json.dumps(content))


def test_fine(call):
    text = call(*FEW, "--junit", "out/gate.xml", "--json", "out/gate.json")
    assert "convirt/zero-shot/findings" in text
    assert text.splitlines()[-1].endswith("passed")
    assert "::" not in text
    root = ElementTree.parse("out/gate.xml").getroot()
    cases = list(root.iter("testcase"))
    content = json.loads(Path("out/gate.json").read_text())
    assert len(cases) == len(content["findings"]) > 30
    assert not list(root.iter("failure"))
    assert content["exit_code"] == 0


def test_a_regression(call, baseline, monkeypatch, tmp_path):
    tamper(baseline)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("before\n")
    text = call(*FEW, "--baseline", baseline, "--junit", "gate.xml", code=1)
    (line,) = [line for line in text.splitlines() if line.startswith("::error")]
    title = "exact gate%2C regression%3A convirt/zero-shot/findings"
    assert line.startswith(f"::error title={title}::auroc_macro: expected 0.99")
    (failure,) = ElementTree.parse("gate.xml").getroot().iter("failure")
    assert "expected 0.99" in failure.get("message")
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("before\n### ❌ exact gate")
    assert "| regression" in summary


def test_no_golden_values_of_this_kind(call, baseline):
    (baseline / "convirt" / "cpu-bf16.json").unlink()
    text = call(*FEW, "--precision", "bf16", "--baseline", baseline, code=2)
    assert "not comparable" in text
    assert "cpu-bf16" in text
    assert "prior-bench check --update" in text


@pytest.mark.parametrize(("arguments", "words"), [
    (("--baseline", "nowhere"), "there is no exact baseline"),
    (("--method", "convert"), "did you mean 'convirt'"),
    (("--task", "zeroshot"), "did you mean 'zero-shot'"),
    (("--update",), "an update needs a reason"),
    (("--update", "--reason", "  "), "an update needs a reason"),
    (("--reason", "none"), "a reason belongs to an update"),
    (("--precision", "fp16"), "unknown precision"),
    (("--device", "cuda:99"), "error: "),
    (("--method", "convirt", "--task", "zero-shot", "--junit", "/proc/none/gate.xml"), "cannot write"),
    (("--method", "convirt", "--task", "zero-shot", "--cache", __file__), "cannot write: this is a file"),
    (("--seed", "1"), "the exact gate trains nothing"),
    (("--gate", "statistical", "--seed", "one"), "not a list of numbers"),
    (("--gate", "statistical", "--baseline", "nowhere"), "there is no statistical baseline"),
    (("--gate", "statistical", "--method", "convert"), "did you mean 'convirt'"),
    (("--gate", "statistical", "--method", "gloria", "--task", "zeroshot"), "did you mean 'zero-shot'"),
    (("--gate", "statistical", "--method", "gloria", "--seed", "0"), "compared with itself"),
    (("--gate", "statistical", "--update", "--reason", "none", "--seed", "1"), "needs the deviation between seeds"),
])
def test_mistakes(call, arguments, words):
    assert words in call(*arguments, code=2)


def test_damaged_golden_values(call, baseline):
    file = baseline / "convirt" / "cpu-fp32.json"
    file.write_text(file.read_text()[:1000])
    text = call(*FEW, "--baseline", baseline, code=2)
    assert "error: the baseline is damaged" in text
    assert "fix: restore the file" in text


def test_damaged_checkpoint(call, baseline):
    file = baseline / "convirt" / "weights" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:5000])
    assert "error: the weights file cannot be read" in call(*FEW, "--baseline", baseline, code=2)


def test_workflows_call_what_there_is():
    """Each gate has a step on a CPU and on a GPU, its options are known, and its files are uploaded."""
    command, found = get_command(app).commands["check"], set()
    for file in ("gate.yml", "nightly.yml"):
        for job in yaml.safe_load((ROOT / ".github" / "workflows" / file).read_text())["jobs"].values():
            (run,) = [step["run"] for step in job["steps"] if "run" in step]
            program, _, arguments = run.partition(" -- ")
            assert program == ".ci/run -e gate"
            options = command.make_context("check", arguments.split()).params
            found.add((str(options["gate"]), options["device"]))
            upload = job["steps"][-1]
            assert upload["if"] == "always()"
            assert {Path(options[name]).parent for name in ("junit", "json_")} == {Path(upload["with"]["path"])}
    assert found == {(gate, device) for gate in ("exact", "statistical") for device in ("cpu", "cuda")}

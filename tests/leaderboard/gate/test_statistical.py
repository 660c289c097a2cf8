"""The statistical gate with real pre-training of one method against its packaged baseline: unchanged code passes, what
is broken on purpose is caught at a named cell, and what cannot be compared is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prior_bench import plugins
from prior_bench.data.dataset import LabelTable
from prior_bench.engine.precision import choose
from prior_bench.errors import UserError
from prior_bench.leaderboard.gate import baseline, statistical
from prior_bench.leaderboard.gate.options import Options
from prior_bench.leaderboard.gate.report import Finding, Report
from prior_bench.leaderboard.gate.statistical import cost, seeds, suite
from prior_bench.leaderboard.gate.statistical.seeds import Baseline, Series, SuiteCell

METHOD = "gloria"  # learns most in its seconds


@pytest.fixture
def options(ci_cache: Path) -> Options:
    return Options(choose("cpu", "fp32"), ci_cache, (METHOD,), ("classification", "zero-shot"),
                   baseline=seeds.PACKAGED)


@pytest.fixture(autouse=True)
def shared_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of milliseconds beside other tests: their time is not what is tested here."""
    monkeypatch.setitem(statistical.COST_TOLERANCES, "time", 2.0)


def regressed(report: Report) -> list[Finding]:
    assert report.gate == "statistical"
    return [finding for finding in report.findings if finding.status == "regression"]


def test_unchanged_code_passes(options: Options) -> None:
    report = statistical.check(options)
    assert regressed(report) == []
    assert report.exit_code == 0
    assert set(report.cells()) == {
        f"{METHOD}/{cell}" for cell in (
            "pre-training", "cost", "classification/findings/0.1", "classification/findings/1",
            "zero-shot/findings", "zero-shot/phantom-5x40")}
    assert "a loss of auroc_macro" in report.facts["found with power 80%"]


def test_a_wrong_temperature_is_caught(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """The global loss divides by tau_3 where it should multiply; the local loss keeps its own."""
    from prior_bench.methods.gloria import method

    right = method.info_nce_directions
    monkeypatch.setattr(method, "info_nce_directions", lambda image, text, scale: right(image, text, 1 / scale))
    assert ("gloria/pre-training", "L_global") in {(f.cell, f.what) for f in regressed(statistical.check(options))}


def test_weights_that_are_not_trained_are_caught(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    from prior_bench.engine import hooks

    monkeypatch.setattr(hooks.Stages, "before_train_iter", no_rate(hooks.Stages.before_train_iter))
    assert {"gloria/pre-training", "gloria/zero-shot/findings"} <= {
        f.cell for f in regressed(statistical.check(options))}


def no_rate(before: Callable[..., None]) -> Callable[..., None]:
    def with_rate_zero(self, runner, *args, **kwargs):
        before(self, runner, *args, **kwargs)
        for group in runner.optim_wrapper.param_groups:
            group["lr"] = 0.0

    return with_rate_zero


def test_shifted_labels_are_caught(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """By one image, in training and in test: nothing is left to learn."""
    kind = plugins.load("datasets", baseline.DATASET)
    right = kind.load_labels

    def shifted(self, target):
        table = right(self, target)
        return LabelTable(table.ids, table.classes, np.roll(table.values, 1, axis=0))

    monkeypatch.setattr(kind, "load_labels", shifted)
    found = {f.cell for f in regressed(statistical.check(options))}
    assert {"gloria/classification/findings/1", "gloria/zero-shot/findings"} <= found
    assert "gloria/pre-training" not in found


def test_a_step_that_keeps_more_memory_is_caught(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from prior_bench.methods.gloria.method import Gloria

    right = Gloria._global
    monkeypatch.setattr(Gloria, "_global", lambda self, x: right(self, torch.stack([x.exp()] * 64).log().mean(0)))
    found = SuiteCell({})
    suite._take_cost(found, suite.plan(METHOD, 9, options), 9, options, options.cache / "images")
    stored = baseline.read(Baseline, options.baseline, METHOD, "cpu-fp32").cells["gloria/cost"]
    findings, _ = statistical.judge({"gloria/cost": stored}, {"gloria/cost": found})
    assert "memory" in {f.what for f in findings if f.status == "regression"}


def test_a_method_that_fails_is_a_regression(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    from prior_bench.methods.gloria.method import Gloria

    def broken(self, batch, progress):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Gloria, "losses", broken)
    report = statistical.check(options)
    assert report.exit_code == 1
    assert all("ZeroDivisionError: a bug" in f.reason for f in report.findings)


# ------------------------------------------------------------------------------------- not comparable


def changed(options: Options, tmp_path: Path, change) -> Options:
    """The options with a baseline whose JSON was changed."""
    content = json.loads(baseline.file_of(options.baseline, METHOD, "cpu-fp32").read_text())
    change(content)
    file = baseline.file_of(tmp_path, METHOD, "cpu-fp32")
    file.parent.mkdir()
    file.write_text(json.dumps(content))
    return replace(options, baseline=tmp_path)


@pytest.fixture
def no_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be compared is found before anything is computed."""
    monkeypatch.setattr(suite, "run", lambda *args: pytest.fail("pre-trained for nothing"))


@pytest.mark.usefixtures("no_training")
@pytest.mark.parametrize("name", ["data", "recipe", "protocol"])
def test_other_data_recipe_or_protocol(options: Options, tmp_path: Path, name: str) -> None:
    cell = "gloria/classification/findings/1"
    report = statistical.check(changed(options, tmp_path,
                                       lambda c: c["cells"][cell]["made_from"].update({name: "other"})))
    assert report.exit_code == 2
    assert [(f.cell, f.what) for f in report.findings] == [(cell, name)]


@pytest.mark.usefixtures("no_training")
def test_a_missing_cell_and_an_additional_one(options: Options, tmp_path: Path) -> None:
    def rename(content):
        content["cells"]["gloria/zero-shot/other"] = content["cells"].pop("gloria/zero-shot/phantom-5x40")

    report = statistical.check(changed(options, tmp_path, rename))
    assert report.exit_code == 2
    assert [(f.cell, f.expected, f.found) for f in report.findings] == [
        ("gloria/zero-shot/other", "present", "missing"), ("gloria/zero-shot/phantom-5x40", "missing", "present")]


@pytest.mark.usefixtures("no_training")
def test_another_major_version_of_a_library(options: Options, tmp_path: Path) -> None:
    report = statistical.check(changed(options, tmp_path,
                                       lambda c: c["origin"]["versions"].update(torch="1.13.1")))
    assert report.exit_code == 2
    assert [f.what for f in report.findings] == ["torch"]


@pytest.mark.usefixtures("no_training")
def test_another_precision_has_no_baseline(options: Options) -> None:
    report = statistical.check(replace(options, precision=choose("cpu", "bf16")))
    assert report.exit_code == 2
    assert "cpu-bf16" in report.findings[0].expected
    assert "cpu-fp32" in report.findings[0].found


@pytest.mark.usefixtures("no_training")
def test_a_seed_of_the_baseline_is_refused(options: Options) -> None:
    with pytest.raises(UserError, match="compared with itself"):
        statistical.check(replace(options, seeds=(99, 3)))


@pytest.mark.parametrize(("change", "what"), [
    (lambda c: c["seeds"].append(9), "expected one a seed"), (lambda c: c.update(seeds=[0, 1, 2, 3]), "5 or more"),
    (lambda c: c.update(kind="cuda-bf16"), "kind"),
    (lambda c: c.pop("origin"), "origin"), (lambda c: c.update(schema=99), "schema")])
def test_a_damaged_baseline(options: Options, tmp_path: Path, change, what: str) -> None:
    with pytest.raises(UserError, match=what):
        statistical.check(changed(options, tmp_path, change))


# ------------------------------------------------------------------------------------------ update


def one_cell(values: tuple[float, ...], better="higher") -> dict[str, SuiteCell]:
    return {"m/task/target": SuiteCell({"data": "d"}, {"auroc_macro": Series(better, values)})}


def test_an_update_compares_its_seeds_with_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(choose("cpu", "fp32"), tmp_path, baseline=tmp_path / "baseline", seeds=(0, 1, 2, 3, 4))
    monkeypatch.setattr(baseline, "trainable", lambda: ["m"])
    monkeypatch.setattr(suite, "run", lambda *args: one_cell((0.80, 0.81, 0.82, 0.80, 0.82)))
    assert statistical.update(options, "the first").findings == ()
    first = baseline.file_of(options.baseline, "m", "cpu-fp32").read_bytes()
    monkeypatch.setattr(suite, "run", lambda *args: one_cell((0.40, 0.41, 0.42, 0.40, 0.42)))
    report = statistical.update(options, "labels are shifted, which is meant")
    assert [f.status for f in report.findings] == ["regression"]
    stored = baseline.read(Baseline, options.baseline, "m", "cpu-fp32")
    assert stored.origin.reason == "labels are shifted, which is meant"
    assert stored.cells["m/task/target"].quantities["auroc_macro"].values == (0.40, 0.41, 0.42, 0.40, 0.42)
    monkeypatch.setattr(suite, "run", lambda *args: one_cell((0.80, 0.81, 0.82, 0.80, 0.82)))
    report = statistical.update(options, "the first")
    assert "better" in report.findings[0].reason
    assert report.findings[0].status == "passed"
    assert "m/task/target auroc_macro 0.41 -> 0.81" in report.facts["better than the baseline"]
    assert baseline.file_of(options.baseline, "m", "cpu-fp32").read_bytes() == first  # the same bytes


@pytest.mark.usefixtures("no_training")
def test_a_baseline_that_cannot_be_written_is_found_before(options: Options, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        statistical.update(replace(options, tasks=(), baseline=tmp_path / "file"), "any")


@pytest.mark.usefixtures("no_training")
def test_four_seeds_are_no_baseline(options: Options, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="4 are too few") as caught:
        statistical.update(replace(options, tasks=(), baseline=tmp_path, seeds=(0, 1, 2, 3)), "in a hurry")
    assert caught.value.expected == "5 seeds or more"


def test_what_fails_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(choose("cpu", "fp32"), tmp_path, baseline=tmp_path / "baseline")
    monkeypatch.setattr(baseline, "trainable", lambda: ["m"])
    monkeypatch.setattr(suite, "run", lambda *args: {"m/cost": SuiteCell({}, problem="ZeroDivisionError", broken=True)})
    with pytest.raises(UserError, match="cannot become a baseline"):
        statistical.update(options, "no reason")
    assert baseline.kinds(options.baseline, "m") == []


# -------------------------------------------------------------------------------- the packaged baseline


@pytest.mark.parametrize("method", baseline.trainable())
def test_the_packaged_baseline_belongs_to_this_program(method: str) -> None:
    """Other data, recipes or protocols want a new baseline."""
    stored = baseline.read(Baseline, seeds.PACKAGED, method, "cpu-fp32")
    assert stored is not None
    planned = suite.plan(method, 99, Options(choose("cpu", "fp32"), Path("unused")))
    assert {title: cell.made_from for title, cell in stored.cells.items()} == planned.made_from


def test_kept_bytes_counts_what_autograd_saves() -> None:
    """exp saves its output, a product both factors; parameters and views of what is kept cost nothing."""
    import torch

    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1000))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = (x * self.scale).exp()  # keeps x (its factor is a parameter) and y
            return (y.view(10, 100) * y.view(10, 100)).sum()

    module, x = Two(), torch.randn(1000)
    assert cost.kept_bytes(module, lambda: module(x)) == 2 * 4000

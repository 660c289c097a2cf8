"""The verbs that read a results folder: compare, show, score, submit and leaderboard --from, as a user calls them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pyarrow as pa
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from prior_bench.cli import app, common
from prior_bench.digests import digest_file
from prior_bench.leaderboard.truth import AtHand
from prior_bench.results import read_predictions, read_result, write_result

CELL = "prior_zero-shot_zero-shot_phantom_phantom-5x40_p0_e14635655bc2"
PATTERN = "*_zero-shot_zero-shot_phantom_phantom-5x40_*"
LINEAR = "*_classification_linear_phantom_findings_0.1_s0_*"


@pytest.fixture(autouse=True)
def no_data_set_is_here(monkeypatch):
    """The phantom would be made first; tests/leaderboard/test_truth.py has data sets."""
    monkeypatch.setattr(AtHand, "_open", lambda self, name, left_out: self.missing.update({name: "not here"}))


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
    labels = next(line for line in call("compare", "prior", "random", "--labels").splitlines() if "auroc_edema" in line)
    a, b, difference = (float(value) for value in labels.partition("auroc_edema")[2].split()[:3])
    assert difference == pytest.approx(a - b, abs=0.0011)
    assert "  +0." in labels


def test_compare_two_recipes_of_one_method(call, committed):
    folder = committed(PATTERN)
    result = read_result(folder / f"{CELL}.json")
    write_result(folder, replace(result, cell=replace(result.cell, recipe="ci[training.epochs=1]")),
                 read_predictions(folder, result))
    header, _, line, *_ = call("compare", "prior@small-long", "prior@ci[training.epochs=1]").splitlines()
    assert header.split()[2:5] == ["prior@small-long", "prior@ci[training.epochs=1]", "prior@small-long"]
    assert "small-long and ci[training.epochs=1]  auroc_macro" in line
    assert "expected: two methods, or two recipes of one" in call("compare", "prior", "prior", code=2)


def test_compare_fails_where_nothing_can_be_compared(call, committed):
    committed(PATTERN)
    assert call("compare", "prior", "random", code=2) == (
        "error: nothing can be compared\n  zero-shot on phantom/phantom-5x40, small-long: "
        "random: random has no text encoder\n")


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


def test_show_tells_curves_by_their_ends(call, committed):
    folder = committed(PATTERN)
    curve = read_result(folder / f"{CELL}.json").provenance["weights"]["losses"]["total"]
    (start, first), *_, (stop, last) = curve
    text = call("show", CELL)
    assert f"total: {{points: {len(curve)}, steps: {start} to {stop}, first: {first}, last: {last}}}" in text
    assert len(text.splitlines()) < 150


def test_show_warns(call, committed):
    folder = committed(PATTERN)
    tamper(folder / f"{CELL}.json")
    assert "warning: the stored auroc_macro differs" in call("show", CELL)


def test_show_takes_a_name_as_the_tables_have_it(call, committed):
    folder = committed(PATTERN)
    named = turned_into(folder, method="hf:org/vit_x")
    assert named.startswith("hf-org-vit_x_zero-shot")
    for name in ("hf:org/vit_x", "hf:org/vit_x_zero-shot", named, f"results/{named}.json", f"{named}.parquet"):
        assert call("show", name).splitlines()[0] == named
    assert "unknown beginning of a cell's name: 'hf-org-vit_y'" in call("show", "hf:org/vit_y", code=2)


@pytest.mark.parametrize("name", ["LEADERBOARD.md", "results/LEADERBOARD.md", "results/leaderboard.json", "results",
                                  "results/"])
def test_show_of_what_is_no_cell(call, committed, name):
    folder = committed(PATTERN)
    for file in ("LEADERBOARD.md", "leaderboard.json"):
        (folder / file).write_text("")
    text = call("show", name, code=2)
    path = folder / name.removeprefix("results").removeprefix("/")
    assert f"error: this is no cell but a {'folder' if path == folder else 'file of another kind'}\n" in text
    assert f"where: {path.relative_to(folder.parent)}\n" in text
    assert f"as {CELL}" in text


def test_show_of_a_cell_whose_predictions_are_missing(call, committed):
    folder = committed(PATTERN, LINEAR)
    (folder / f"{CELL}.parquet").unlink()
    text = call("show", CELL)
    assert "warning: the predictions are missing" in text
    value = read_result(folder / f"{CELL}.json").metrics[0].value
    line = next(line for line in text.splitlines() if line.startswith("auroc_macro "))
    assert line.split()[1:3] == [f"{value:.4f}", "-"]
    assert "provenance:" in text
    assert "the predictions" not in call("show", "prior_classification")  # of another cell


def test_show_names_the_nearest(call, committed):
    committed(PATTERN)
    assert "did you mean 'prior_zero-shot'" in call("show", "pior_zero-shot", code=2)
    assert "3 cells begin with ''" in call("show", "", code=2)
    text = call("show", "zzz", code=2)
    assert "unknown beginning of a cell's name: 'zzz'" in text
    assert f"the .json files of results, as {CELL}.json" in text
    assert "the results folder does not exist" in call("show", CELL, "--results", "none", code=2)


def test_score(call, committed):
    folder = committed(PATTERN)
    assert "3 cells, 10 metrics; all are what the predictions give" in call("score", folder)
    tamper(folder / f"{CELL}.json")
    text = call("score", folder, code=1)
    assert f"{CELL}: auroc_macro is stored as 0.999 (" in text
    assert "in 1 of them a number differs" in text


def test_a_broken_result(call, committed):
    """Nothing is dropped from tables without a word; what looks at single cells goes on with the others."""
    folder = committed(PATTERN)
    (folder / f"{CELL}.json").write_text("{")
    for verb in (("leaderboard", folder), ("compare", "prior", "random"), ("submit", folder), ("show", CELL)):
        text = call(*verb, code=2)
        assert "error: not a result: " in text
        assert f"{CELL}.json\n" in text
        assert "fix: the `prior-bench run` that made it makes it anew" in text
    text = call("score", folder, code=1)
    assert f"{CELL}: not a result: " in text
    assert "3 cells, 0 metrics; in 1 of them" in text
    text = call("show", "random")
    assert f"warning: results/{CELL}.json is left out of the draws: not a result: " in text
    assert "not applicable: random has no text encoder" in text


def test_a_file_that_is_no_result_by_its_name(call, committed):
    folder = committed(PATTERN, LINEAR)
    (folder / "foo.json").write_text("[1, 2]")
    said = "warning: results/foo.json is ignored: its name is not that of a cell\n"
    for verb in (("leaderboard", "results"), ("compare", "prior", "random"), ("score", "results"),
                 ("submit", "results")):
        assert said in call(*verb)
    assert said not in call("show", CELL)
    assert "foo" not in (folder / "LEADERBOARD.md").read_text()


@pytest.mark.parametrize(("arguments", "whole"), [(["score", "results"], 3), (["leaderboard"], 3),
                                                  (["compare", "prior", "random"], 2)])
def test_long_work_says_how_far_it_is(call, committed, monkeypatch, arguments, whole):
    committed(LINEAR)
    assert f"of {whole} cells" not in call(*arguments)
    monkeypatch.setattr(common, "PATIENCE", 0.0)
    told = call(*arguments)
    assert f"numbers rebuilt from predictions: 1 of {whole} cells\n" in told
    assert f"{whole} of {whole}" not in told


@pytest.mark.parametrize("write", [
    lambda path: path.write_bytes(b"PAR1 cut"),
    lambda path: pyarrow.parquet.write_table(pa.table({"image": ["a"]}), path),
    lambda path: pyarrow.parquet.write_table(pa.table({"image": ["a"], "group": ["g"]}), path),
])
def test_predictions_that_cannot_be_read(call, committed, write):
    """They are what the digest says, so that reading them is what fails."""
    folder = committed(PATTERN)
    write(folder / f"{CELL}.parquet")
    content = json.loads((folder / f"{CELL}.json").read_text())
    content["provenance"]["predictions"] = digest_file(folder / f"{CELL}.parquet")
    (folder / f"{CELL}.json").write_text(json.dumps(content))
    for verb in (("compare", "prior", "random"), ("show", CELL), ("leaderboard", folder), ("submit", folder)):
        assert "the predictions cannot be scored: " in call(*verb, code=2)
    assert f"{CELL}: the predictions cannot be scored: " in call("score", folder, code=1)


def turned_into(folder, **changes):
    """CELL with another identity, in its own place; returns the new name."""
    result = read_result(folder / f"{CELL}.json")
    result = replace(result, cell=replace(result.cell, **changes))
    (folder / f"{CELL}.parquet").rename(folder / f"{result.cell.name}.parquet")
    (folder / f"{CELL}.json").unlink()
    (folder / f"{result.cell.name}.json").write_text(json.dumps(asdict(result)))
    return result.cell.name


def test_cells_of_a_task_that_is_not_installed(call, committed):
    folder = committed(PATTERN, LINEAR)
    name = turned_into(folder, task="pairing", mode="pairing")
    said = ("1 result of the task 'pairing', which is not installed, is left out; "
            "give its file as --plugin or install its package")
    assert f"warning: {said}\n" in call("leaderboard", folder)
    assert f"- {said}." in (folder / "LEADERBOARD.md").read_text()
    text = call("compare", "prior", "random")
    assert f"warning: {said}\n" in text
    assert "classification (linear) on phantom/findings" in text
    assert "not applicable: random has no text encoder" in call("show", "random_zero")
    reason = "it cannot be recomputed: the task 'pairing' is not installed"
    assert f"{name}: {reason}\n" in call("score", folder, code=1)
    text = call("show", name, code=2)
    assert f"error: {reason}\n  where: {name}\n  fix: give its file as --plugin" in text
    assert reason in call("submit", folder, code=2)


def test_a_cell_of_another_protocol_version(call, committed):
    folder = committed(PATTERN)
    name = turned_into(folder, protocol_version=2)
    reason = "protocol version 2 cannot be recomputed, this program has version 1"
    assert reason in call("show", name, code=2)
    assert reason in call("score", folder, code=1)
    assert reason in call("submit", folder, code=2)
    assert "error: all results of 'prior' are left out" in call("compare", "prior", "random", code=2)
    call("leaderboard", folder)
    assert "1 result of protocol version 2 of zero-shot" in (folder / "LEADERBOARD.md").read_text()


def test_a_folder_without_results(call, tmp_path):
    (tmp_path / "results").mkdir()
    for verb in (("compare", "a", "b"), ("show", "x"), ("score", "results"), ("submit", "results"),
                 ("leaderboard", "results")):
        assert "error: there are no results" in call(*verb, code=2)
    assert not list((tmp_path / "results").iterdir())
    call("leaderboard", "results", "--published")


def test_what_the_system_refuses(call, committed):
    folder = committed(PATTERN)
    (folder / f"{CELL}.json").unlink()
    (folder / f"{CELL}.json").mkdir()
    text = call("leaderboard", folder, code=2)
    assert "error: the system refuses: Is a directory" in text
    assert f"{CELL}.json" in text


def test_submit_replaces_an_archive_and_nothing_else(call, committed, tmp_path):
    committed(PATTERN)
    for _ in range(2):
        call("submit", "results", "--output", "new/own.zip")
    (tmp_path / "notes.txt").write_text("hi")
    assert "error: there is something else already" in call("submit", "results", "--output", "notes.txt", code=2)
    assert (tmp_path / "notes.txt").read_text() == "hi"
    assert "the archive is a folder" in call("leaderboard", "results", "--from", "new", code=2)


def test_submit_and_add(call, committed, tmp_path):
    committed(PATTERN)
    said = call("submit", "results")
    assert "wrote results.zip: 3 cells" in said
    assert "warning: labels were not held against phantom: not here" in said
    text = call("leaderboard", "new", "--from", "results.zip")
    assert "added 3 cells to new; 0 were there already" in text
    assert "warning: labels were not held against phantom: not here" in text
    assert "0.920" in (tmp_path / "new" / "LEADERBOARD.md").read_text()
    assert "added 0 cells to new; 3 were there" in call("leaderboard", "new", "--from", "results.zip")
    (tmp_path / "results.zip").write_bytes(b"no zip")
    refused = call("leaderboard", "new", "--from", "results.zip", code=2)
    assert "error: the archive is refused: it is no whole zip file" in refused
    assert "nothing was added" in refused


def test_figures(call, committed, tmp_path):
    committed("prior_classification_*_1_s0_*", "random_classification_*_1_s0_*")
    assert "drawn" in call("leaderboard", "results", "--figures", "drawn")
    assert sorted((f.stem.partition("-phantom")[0], f.suffix) for f in (tmp_path / "drawn").iterdir()) == [
        (name, kind) for name in ("labels", "pre-training-small-long", "precision-recall", "reliability", "roc")
        for kind in (".png", ".svg")]
    text = call("leaderboard", "results", "--figures", "results/leaderboard.csv", code=2)
    assert "cannot write: this is a file" in text
    assert "expected: a folder" in text

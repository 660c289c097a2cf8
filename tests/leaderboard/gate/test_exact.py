"""The exact gate: unchanged code passes, and each thing that is broken on purpose is caught in a named cell.

One method and few tasks at a time: the whole gate is a step of CI.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from prior_bench import plugins, provenance, recipe_files
from prior_bench.encoders.image import ImageEncoder
from prior_bench.engine.precision import choose
from prior_bench.errors import UserError
from prior_bench.leaderboard.gate import baseline, exact
from prior_bench.leaderboard.gate.baseline import RECIPE, Origin
from prior_bench.leaderboard.gate.exact import checkpoints, golden
from prior_bench.leaderboard.gate.exact.fingerprint import difference, fingerprint
from prior_bench.leaderboard.gate.exact.golden import Golden, GoldenCell
from prior_bench.leaderboard.gate.exact.measure import Measured, Quantity, arrays
from prior_bench.leaderboard.gate.options import Options
from prior_bench.method import Method
from prior_bench.state_files import read_state, write_state
from prior_bench.weights import load_method
from prior_bench.weights_folder import META, WEIGHTS

METHOD = "prior"
DEVIATION = 1e-4  # of noise in the tests of fingerprints


@pytest.fixture
def options(ci_cache):
    """Everything of one method."""
    return Options(choose("cpu", "fp32"), ci_cache, (METHOD,))


def regressions(report):
    return {(f.cell, f.what) for f in report.findings if f.status == "regression"}


# ------------------------------------------------------------------------- things broken on purpose


def rolled_labels(patch):
    kind = plugins.load("datasets", "phantom-ci")
    original = kind.load_labels

    def shifted(self, target):
        table = original(self, target)
        return replace(table, values=np.roll(table.values, 1, axis=0))

    patch.setattr(kind, "load_labels", shifted)


def transposed_map(patch):
    original = ImageEncoder.forward
    patch.setattr(ImageEncoder, "forward", lambda self, images: original(self, images).mT)


def wrong_temperature(patch):
    from prior_bench.methods.prior import method

    original = method.info_nce
    patch.setattr(method, "info_nce", lambda a, b, scale: original(a, b, 1.1 * scale))


def weights_not_loaded(patch):
    from prior_bench import weights

    patch.setattr(weights, "fit_state", weights.coverage_of)


def normalised_twice(patch):
    original = Method.normalise

    def twice(self, images):
        spec = self.image_input
        return (original(self, images) - spec.mean[0]) / spec.std[0]

    patch.setattr(Method, "normalise", twice)


def swapped_prompts(patch):
    """One class takes the positive prompts for the negative ones, where vectors are made: the protocol says nothing."""
    task = plugins.load("tasks", "zero-shot")
    fit = task.fit

    def swapped(self, context, cell):
        kind = type(context.dataset)
        original = kind.prompts

        def prompts(dataset, target):
            found = dict(original(dataset, target))
            if (one := found["effusion"]).negative:
                found["effusion"] = replace(one, positive=one.negative, negative=one.positive)
            return found

        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(kind, "prompts", prompts)
            return fit(self, context, cell)

    patch.setattr(task, "fit", swapped)


def rank_one_too_large(patch):
    from prior_bench.tasks import retrieval

    original = retrieval.ranks
    patch.setattr(retrieval, "ranks", lambda *given, **named: original(*given, **named) + 1)


def flipped_masks(patch):
    kind = plugins.load("datasets", "phantom-ci")
    original = kind.load_mask
    patch.setattr(kind, "load_mask", lambda self, target, id: original(self, target, id)[::-1].copy())


def corners_for_sizes(patch):
    kind = plugins.load("datasets", "phantom-ci")
    original = kind.load_boxes

    def wrong(self, target, id):
        boxes = original(self, target, id)
        return replace(boxes, xyxy=np.concatenate([boxes.xyxy[:, :2], boxes.xyxy[:, 2:] - boxes.xyxy[:, :2]], axis=1))

    patch.setattr(kind, "load_boxes", wrong)


@pytest.mark.parametrize(("sabotage", "task", "cell", "quantity"), [
    (rolled_labels, "classification", "prior/classification/findings", "auroc_macro"),
    (transposed_map, "zero-shot", "prior/images", "map"),
    (wrong_temperature, "zero-shot", "prior/losses", "L_global at 0.99"),
    (weights_not_loaded, "zero-shot", "prior/images", "joint"),
    (normalised_twice, "zero-shot", "prior/images", "input"),
    (swapped_prompts, "zero-shot", "prior/zero-shot/findings", "auroc_effusion"),
    (rank_one_too_large, "retrieval", "prior/retrieval/reports", "image_to_text_mrr"),
    (flipped_masks, "segmentation", "prior/segmentation/lungs", "dice_foreground_image_mean"),
    (corners_for_sizes, "detection", "prior/detection/lesions", "gt_boxes"),
])
def test_sabotage_is_caught(options, monkeypatch, sabotage, task, cell, quantity):
    sabotage(monkeypatch)
    report = exact.check(replace(options, tasks=(task,)))
    assert report.exit_code == 1
    assert (cell, quantity) in regressions(report)
    if sabotage in {swapped_prompts, rank_one_too_large, flipped_masks, corners_for_sizes, wrong_temperature}:
        assert {found for found, _ in regressions(report)} == {cell}  # and nothing else is blamed


def test_unchanged_code_passes(options):
    """The control of all the above: the same method, every task."""
    report = exact.check(options)
    assert report.exit_code == 0, [f.sentence for f in report.findings if f.status != "passed"]
    assert {cell.split("/")[1] for cell in report.cells()} == {
        "images", "texts", "local", "losses", "classification", "zero-shot", "retrieval", "segmentation", "detection"}
    assert report.facts["precision"] == "fp32"


def test_what_crashes_is_a_regression(options, monkeypatch):
    def crash(self, images):
        raise IndexError("no such stage")

    monkeypatch.setattr(ImageEncoder, "pyramid", crash)
    monkeypatch.setattr(plugins.load("tasks", "zero-shot"), "score", crash)
    report = exact.check(replace(options, tasks=("zero-shot",)))
    found = {f.cell: f for f in report.findings if f.status == "regression"}
    assert set(found) == {"prior/images", "prior/zero-shot/findings", "prior/zero-shot/phantom-5x40"}
    assert found["prior/images"].reason == "IndexError: no such stage"


def test_a_number_that_is_none(options, monkeypatch):
    original = Method.normalise
    monkeypatch.setattr(Method, "normalise", lambda self, images: original(self, images) * float("nan"))
    report = exact.check(replace(options, tasks=("zero-shot",)))
    assert report.exit_code == 1
    assert ("prior/images", "joint") in regressions(report)
    assert any(f.cell == "prior/zero-shot/findings" and "not finite" in f.reason for f in report.findings)


# --------------------------------------------------------------------------------- what is compared


def quantity(value, group="features", scale=None):
    return Quantity(group, fingerprint(value), scale)


def stored(**cells):
    origin = Origin("a reason", "2026-01-01", "abc", "cpu", "fp32", {"torch": "2"})
    titles = [title.replace("_", "/") for title in cells or ("m_images",)]
    return Golden(baseline.SCHEMA, "cpu-fp32", origin, {
        title: GoldenCell({"weights": "w"}, {"a": fingerprint(1.0)}) for title in titles})


def compared(options, **cells):
    measured = {title.replace("_", "/"): cell for title, cell in cells.items()}
    return [(f.status, f.cell, f.what) for f in exact.compare(measured, stored(), options)]


def test_what_cannot_be_compared(options):
    fine = Measured({"weights": "w"}, {"a": quantity(1.0)})
    assert compared(options, m_images=fine) == [("passed", "m/images", "a")]
    assert compared(options) == [("not comparable", "m/images", "cell")]
    assert compared(options, m_images=fine, m_texts=fine)[1] == ("not comparable", "m/texts", "cell")
    other = Measured({"weights": "other"}, {"a": quantity(2.0)})
    assert compared(options, m_images=other) == [("not comparable", "m/images", "weights")]
    more = Measured({"weights": "w"}, {"a": quantity(1.0), "b": quantity(1.0)})
    assert ("not comparable", "m/images", "b") in compared(options, m_images=more)
    fewer = Measured({"weights": "w"})
    assert compared(options, m_images=fewer) == [("not comparable", "m/images", "a")]
    assert compared(options, m_images=Measured({}, problem="no text")) == [("not comparable", "m/images", "cell")]
    assert compared(options, m_images=Measured({}, problem="bug", broken=True)) == [("regression", "m/images", "cell")]


def test_an_update_shows_numbers_of_another_protocol(options):
    other = Measured({"weights": "other"}, {"a": quantity(2.0)})
    found = list(exact.compare({"m/images": other}, stored(), options, anyway=True))
    assert [(f.status, f.what) for f in found] == [("not comparable", "weights"), ("regression", "a")]


def test_a_tolerance_is_stated_and_used(options):
    limit = exact.TOLERANCES["fp32"]["features"]
    for share, status in ((0.9, "passed"), (1.1, "regression")):
        cell = Measured({"weights": "w"}, {"a": quantity(1 + share * limit)})
        (finding,) = exact.compare({"m/images": cell}, stored(), options)
        assert finding.status == status
        assert finding.used == pytest.approx(share, rel=1e-3)
        assert (finding.expected, finding.tolerance) == ("1", f"{limit:g} of 1")
    (finding,) = exact.compare({"m/images": Measured({"weights": "w"}, {"a": quantity([1.0, 2.0])})}, stored(), options)
    assert (finding.status, finding.found) == ("regression", "shape 2, 0 undefined")


# ------------------------------------------------------------------------------------- fingerprints


def test_fingerprints_see_order_and_size():
    rng = np.random.default_rng(0)
    array = rng.standard_normal((8, 16, 4, 4))
    same = fingerprint(array)
    assert difference(fingerprint(array.copy()), same)[0] == 0
    for changed in (array.swapaxes(2, 3), array[::-1], array[:, ::-1], np.roll(array, 1, axis=1), -array, 1.01 * array):
        assert difference(fingerprint(changed), same)[0] > 5e-3
    noisy = difference(fingerprint(array + DEVIATION * rng.standard_normal(array.shape)), same)[0]
    assert 0.5 * DEVIATION < noisy < 5 * DEVIATION
    assert difference(fingerprint(100 * array), fingerprint(101 * array))[0] == pytest.approx(
        difference(fingerprint(array), fingerprint(1.01 * array))[0], rel=1e-3)  # in units of the array itself


def test_fingerprints_of_shapes_and_undefined_numbers():
    assert difference(fingerprint(np.ones((2, 3))), fingerprint(np.ones((3, 2))))[0] == np.inf
    assert difference(fingerprint([np.nan, 1.0]), fingerprint([0.0, 1.0]))[0] == np.inf
    assert difference(fingerprint(np.nan), fingerprint(np.nan))[0] == 0
    assert difference(fingerprint(np.zeros((0, 4))), fingerprint(np.zeros((0, 4))))[0] == 0
    assert difference(fingerprint(0.5), fingerprint(0.4), scale=1.0)[0] == pytest.approx(0.1)


def test_arrays_of_a_table():
    import pyarrow as pa

    table = pa.table({"image": ["a", "b"], "score_x": [0.1, None], "score_y": [0.3, 0.4], "tp": [1, 2],
                      "vector": [[1.0, 2.0], [4.0, 3.0]]})
    found = arrays(table)
    assert set(found) == {"score", "tp", "vector"}
    np.testing.assert_array_equal(found["score"], [[0.1, 0.3], [np.nan, 0.4]])
    np.testing.assert_array_equal(found["vector"], [[1, 2], [4, 3]])
    boxes = arrays(pa.table({"boxes": [[[0.0, 0, 2, 2], [2, 2, 4, 4]], []], "scores": [[0.2, 0.9], []]}))
    np.testing.assert_array_equal(boxes["boxes"], [[2, 1, 1, 3, 3], [0, 0, 0, 0, 0]])
    assert boxes["scores"][0].tolist() == [0.9, 0.2, *[0.0] * 8]


# ---------------------------------------------------------------------------------- the baseline


def test_the_packaged_baseline_is_whole():
    """Every method that the recipe trains, on a CPU in both precisions, all five tasks, under 8 MiB."""
    trained = [name for name in plugins.names("methods")
               if recipe_files.read(recipe_files.recipe_file(name)).get(RECIPE, {}).get("training")]
    assert golden.methods(golden.PACKAGED) == trained
    assert len(trained) >= 6
    for name in trained:
        assert {"cpu-fp32", "cpu-bf16"} <= set(baseline.kinds(golden.PACKAGED, name))
        for kind in baseline.kinds(golden.PACKAGED, name):
            found = baseline.read(Golden, golden.PACKAGED, name, kind)
            assert found.origin.reason
            assert {f"{name}/{part}" for part in (
                "images", "texts", "losses", "classification/findings", "zero-shot/findings", "retrieval/reports",
                "segmentation/lungs", "detection/lesions")} <= set(found.cells)
    files = [path for path in golden.PACKAGED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 8 * 2**20


def test_golden_values_survive_writing(tmp_path):
    found = stored(m_images=1, m_texts=1)
    file = baseline.write(tmp_path, "m", "cpu-fp32", asdict(found))
    assert baseline.read(Golden, tmp_path, "m", "cpu-fp32") == found
    assert baseline.read(Golden, tmp_path, "m", "cuda-fp32") is None
    file.rename(tmp_path / "m" / "cuda-fp32.json")
    with pytest.raises(UserError, match="kind: 'cpu-fp32', expected 'cuda-fp32'"):
        baseline.read(Golden, tmp_path, "m", "cuda-fp32")


@pytest.mark.parametrize("damage", [
    lambda text: text[:-20], lambda text: text.replace('"schema": 1', '"schema": 2'),
    lambda text: text.replace("1.0", "NaN", 1), lambda text: text.replace('"undefined"', '"undefind"'),
    lambda text: "[]", lambda text: text.replace("[1.0]", '["1.0"]')])
def test_damaged_golden_values(tmp_path, damage):
    found = stored()
    file = baseline.write(tmp_path, "m", "cpu-fp32", asdict(found))
    file.write_text(damage(file.read_text()))
    with pytest.raises(UserError, match="the baseline is damaged"):
        baseline.read(Golden, tmp_path, "m", "cpu-fp32")


@pytest.fixture
def measured(monkeypatch):
    """Instead of measuring: cells that a test sets."""
    cells = {"convirt/images": Measured({"weights": "w"}, {"a": quantity(1.0)})}
    monkeypatch.setattr(exact, "measure", lambda name, weights, options, scratch: cells)
    return cells


def test_update_keeps_its_reason_and_shows_what_changed(options, measured, tmp_path):
    (tmp_path / "convirt" / "weights").mkdir(parents=True)
    asked = replace(options, methods=("convirt",), baseline=tmp_path)
    assert exact.update(asked, "first").findings == ()
    assert exact.check(asked).exit_code == 0
    measured["convirt/images"].quantities["a"] = quantity(2.0)
    assert exact.check(asked).exit_code == 1
    (finding,) = exact.update(asked, "a better loss").findings
    assert (finding.status, finding.expected, finding.found) == ("regression", "1", "2")
    assert exact.check(asked).exit_code == 0
    origin = baseline.read(Golden, tmp_path, "convirt", "cpu-fp32").origin
    assert origin.reason == "a better loss"
    assert origin.versions["torch"] == torch.__version__.partition("+")[0]
    assert origin.precision == "fp32"
    assert origin.device.startswith("cpu: ")
    (tmp_path / "convirt" / "cpu-fp32.json").write_text("damaged")
    assert exact.update(asked, "mended").findings == ()
    assert exact.check(asked).exit_code == 0


def test_update_refuses_what_fails(options, measured, tmp_path):
    (tmp_path / "convirt" / "weights").mkdir(parents=True)
    measured["convirt/images"].problem = "IndexError: no such stage"
    asked = replace(options, methods=("convirt",), baseline=tmp_path)
    with pytest.raises(UserError, match="what fails cannot become golden"):
        exact.update(asked, "none")
    with pytest.raises(UserError, match="for all tasks"):
        exact.update(replace(asked, tasks=("zero-shot",)), "none")
    assert baseline.kinds(tmp_path, "convirt") == []


def test_an_installed_program_keeps_its_baseline(options, monkeypatch):
    monkeypatch.setattr(provenance, "git_commit", lambda: None)
    with pytest.raises(UserError, match="give --baseline FOLDER"):
        exact.update(options, "none")


def test_a_missing_checkpoint_is_trained(options, monkeypatch, tmp_path):
    """Its matrices become float16, and its folder still loads; what is there stays."""
    packaged = golden.weights_folder(golden.PACKAGED, "convirt")
    trained = tmp_path / "trained"
    trained.mkdir()
    for path in packaged.rglob("*"):
        if path.is_file():
            copy = trained / path.relative_to(packaged)
            copy.parent.mkdir(exist_ok=True)
            copy.write_bytes(path.read_bytes())
    write_state({key: value.float() for key, value in read_state(packaged / WEIGHTS).items()}, trained / WEIGHTS)
    asked = []

    def pretrain(method, recipe, dataset, **named):
        asked.append((method, dataset.name, named["seed"]))
        return trained

    monkeypatch.setattr(checkpoints, "pretrain", pretrain)
    folder = golden.weights_folder(tmp_path / "baseline", "convirt")
    folder.parent.mkdir(parents=True)
    checkpoints.ensure("convirt", folder, options)
    assert asked == [("convirt", "phantom-ci", 0)]
    state = read_state(folder / WEIGHTS)
    assert {v.dtype for v in state.values() if v.dim() > 1} == {torch.float16}
    assert load_method(folder).name == "convirt"
    assert "seconds" not in json.loads((folder / META).read_text())["provenance"]
    checkpoints.ensure("convirt", folder, options)
    assert len(asked) == 1

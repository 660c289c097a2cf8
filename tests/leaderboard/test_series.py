"""Series against scikit-learn and plain loops over the saved Parquet files, of committed and of made results."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import auc, average_precision_score, roc_auc_score

from prior_bench import results
from prior_bench.leaderboard import series
from prior_bench.leaderboard.tables import known

COMMITTED = Path(__file__).parents[2] / "leaderboard" / "results"
FINDINGS = ("cardiomegaly", "effusion", "pneumothorax", "consolidation", "edema", "atelectasis", "nodule", "fracture")


def chart(charts, group, task="classification", target=None):
    (found,) = [c for c in charts if c.group == group and (c.heading is None or c.heading.task == task)
                and (target is None or c.heading.target == target)]
    return found


def line(chart, panel, method):
    (found,) = [one for p in chart.panels if p.title == panel for one in p.lines if one.row.method == method]
    return found


def frames(folder, method, fraction):
    """The saved predictions of a method at a fraction, read without the harness."""
    return [pd.read_parquet(f) for f in sorted(folder.glob(f"{method}_classification_*_{fraction}_s*.parquet"))]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Charts of some committed results of one recipe, and the folder of these results."""
    folder = tmp_path_factory.mktemp("results")
    for result in results.read_results(COMMITTED):
        if result.cell.recipe == "small-long" and result.cell.target in {"findings", "lesions", "opacity"} \
                and result.cell.fraction is not None:
            for file in COMMITTED.glob(f"{result.cell.name}.*"):
                shutil.copy(file, folder)
    return series.charts(known(folder, tmp_path_factory.mktemp("memo")), folder), folder


def test_the_committed_curves_against_scikit_learn(real):
    charts, folder = real
    whole = "100% of the training data"
    for method in ("prior", "random", "thumbnail"):
        (frame,) = frames(folder, method, 1)
        for group, oracle in (("roc", roc_auc_score), ("precision-recall", average_precision_score)):
            areas = {c: oracle(frame[f"label_{c}"], frame[f"score_{c}"]) for c in FINDINGS}
            for label, area in areas.items():
                found = line(chart(charts, group), f"{label}, {whole}", method)
                assert len(found.x) <= 100
                assert auc(found.x, found.y) == pytest.approx(area, abs=4e-3)
                assert f" {area:.3f}" in found.note
            mean = line(chart(charts, group), f"{series.MACRO}, {whole}", method)
            assert auc(mean.x, mean.y) == pytest.approx(np.mean(list(areas.values())), abs=4e-3)
            assert f" {np.mean(list(areas.values())):.3f} [" in mean.note
        runs = frames(folder, method, 0.01)
        assert len(runs) == 3
        area = np.mean([roc_auc_score(f[f"label_{c}"], f[f"score_{c}"]) for f in runs for c in FINDINGS])
        mean = line(chart(charts, "roc"), f"{series.MACRO}, 1% of the training data", method)
        assert auc(mean.x, mean.y) == pytest.approx(area, abs=4e-3)


def test_the_committed_reliability_against_scikit_learn(real):
    charts, folder = real
    (frame,) = frames(folder, "prior", 1)
    expected = calibration_curve(frame["label_edema"], frame["score_edema"], n_bins=15, strategy="quantile")
    found = line(chart(charts, "reliability"), "edema, 100% of the training data", "prior")
    assert sum(found.counts) == len(frame)
    assert set(found.counts) == {len(frame) // 15}
    np.testing.assert_allclose(found.y, expected[0], atol=1e-4)
    np.testing.assert_allclose(found.x, expected[1], atol=1e-4)
    together = line(chart(charts, "reliability"), f"{series.ALL_LABELS}, 1% of the training data", "prior")
    assert sum(together.counts) == 3 * len(frame) * len(FINDINGS)
    error = np.mean([np.abs(np.subtract(*map(np.array, (one.x, one.y)))) @ one.counts / sum(one.counts)
                     for c in FINDINGS for one in [line(chart(charts, "reliability"), f"{c}, 100% of the training data",
                                                        "prior")]])
    assert f"{error:.3f}" in line(chart(charts, "reliability"), f"{series.ALL_LABELS}, 100% of the training data",
                                  "prior").note


def test_the_committed_tables_labels_and_validations(real):
    charts, folder = real
    efficiency = chart(charts, "data efficiency").panels[0].lines
    assert [one.row.method for one in efficiency] == ["prior", "random", "thumbnail"]  # references last
    for one in efficiency:
        assert one.x == (1, 10, 100)
        assert one.counts == (3, 3, 1)
        for fraction, y, low, high in zip((0.01, 0.1, 1), one.y, one.low, one.high, strict=True):
            runs = frames(folder, one.row.method, fraction)
            mean = np.mean([roc_auc_score(f[f"label_{c}"], f[f"score_{c}"]) for f in runs for c in FINDINGS])
            assert y == pytest.approx(mean)
            assert low < y < high
    labels = line(chart(charts, "labels"), "10% of the training data", "random")
    assert labels.x == ("mean", *FINDINGS)
    runs = frames(folder, "random", 0.1)
    assert labels.y[1:] == pytest.approx([np.mean([roc_auc_score(f[f"label_{c}"], f[f"score_{c}"]) for f in runs])
                                          for c in FINDINGS])
    assert labels.y[0] == pytest.approx(np.mean(labels.y[1:]))
    assert chart(charts, "labels").base == 0.5
    boxes = chart(charts, "labels", "detection")
    assert boxes.y == "map_50_95"
    assert boxes.base == 0
    assert line(boxes, "100% of the training data", "prior").x == ("mean", "nodule", "consolidation", "effusion",
                                                                    "cardiomegaly")
    training = chart(charts, "training", "segmentation", "opacity")
    (result,) = [r for r in results.read_results(folder) if r.cell.method == "prior" and r.cell.task == "segmentation"
                 and r.cell.fraction == 1]
    found = line(training, "100% of the training data", "prior")
    history = result.details["validation"]
    assert found.x == tuple(v["step"] for v in history)
    assert found.y == tuple(v["dice_foreground_image_mean"] for v in history)
    assert found.x[found.marked] == result.details["best_step"]
    assert found.y[found.marked] == max(found.y)
    (curves,) = [c for c in charts if c.group == "pre-training"]
    assert curves.track == "small-long"
    assert [panel.title for panel in curves.panels][:2] == ["total", "L_global"]
    total, late = (next(p.lines[0] for p in curves.panels if p.title == name) for name in ("total", "L_proto"))
    assert total.stages == pytest.approx([0.7 * (total.x[-1] + 1), 0.8 * (total.x[-1] + 1)])  # of small-long's recipe
    assert total.stages[0] == pytest.approx(late.x[0], abs=(total.x[1] - total.x[0]))
    assert late.stages == total.stages[1:]


def test_runs_of_several_pre_training_seeds_count_as_in_the_tables(labelled):
    """Two runs of one seed and one of another: the curve's area is the table's mean, not that of the runs."""
    for pretrain, subset, skill in ((0, 0, 0.2), (0, 1, 0.4), (1, 0, 3.0)):
        labelled("ours", skill, fraction=0.1, pretrain=pretrain, subset=subset)
    found = labelled.known()
    (row, entries), = found.tables[0].entries.items()
    mean = entries[0.1].metric("auroc_macro").mean
    each = [r.metrics["auroc_macro"].value for r in entries[0.1].rebuilt]
    assert abs(mean - np.mean(each)) > 0.02
    roc = chart(series.charts(found, labelled.folder), "roc")
    curve = line(roc, f"{series.MACRO}, 10% of the training data", "ours")
    assert auc(curve.x, curve.y) == pytest.approx(mean, abs=2e-3)
    assert not row.reference


def test_one_fraction_is_no_curve_and_scores_are_no_probabilities(labelled):
    labelled("ours", task="zero-shot", fraction=None, probabilities=False)
    charts = series.charts(labelled.known(), labelled.folder)
    assert [c.group for c in charts] == ["labels", "roc", "precision-recall"]
    assert [p.title for p in charts[1].panels] == [series.MACRO, "a", "b", "c"]
    prevalence = [p.guide[0][1] for p in charts[2].panels]
    assert prevalence[0] == pytest.approx(np.mean(prevalence[1:]))


def test_exclusive_classes_are_judged_by_the_class_that_is_guessed(labelled):
    predictions = labelled("ours", exclusive=True)
    charts = series.charts(labelled.known(), labelled.folder)
    frame = predictions.table.to_pandas()
    scores, labels = (frame[[f"{kind}_{c}" for c in "abc"]].to_numpy() for kind in ("score", "label"))
    right = (scores.argmax(1) == labels.argmax(1)).astype(float)
    order = np.argsort(scores.max(1), kind="stable")
    parts = np.array_split(order, 15)
    (panel,) = chart(charts, "reliability").panels
    np.testing.assert_allclose(panel.lines[0].x, [scores.max(1)[p].mean() for p in parts], atol=1e-4)
    assert sum(panel.lines[0].counts) == len(frame)
    assert np.average(panel.lines[0].y, weights=panel.lines[0].counts) == pytest.approx(right.mean(), abs=1e-4)


def test_losses_of_the_weights_are_drawn_once_for_each_seed(labelled):
    """By term, the total first and the learning rate last; what is no number is left out."""
    curves = {"L_a": [[5, 2.0], [15, 1.5]], "total": [[5, 4.0], [15, 3.0]], "lr": [[5, 1e-3], [15, 5e-4]]}
    for subset in (0, 1):
        labelled("ours", fraction=0.1, subset=subset, weights={"losses": curves})
    odd = [[5, 5.0], "x", [15, None], [20, -1e308], [10**300, 1], [25, 2.0]]
    labelled("ours", fraction=0.1, pretrain=1, weights={"losses": {"total": odd}})
    labelled("other", fraction=0.1, weights={"losses": "none"})
    found = chart(series.charts(labelled.known(), labelled.folder), "pre-training")
    assert [p.title for p in found.panels] == ["total", "L_a", "lr"]
    total = found.panels[0].lines
    assert [(one.row.method, one.note, one.x, one.y) for one in total] == [
        ("ours", "seed 0", (5, 15), (4.0, 3.0)), ("ours", "seed 1", (5, 25), (5.0, 2.0))]
    assert len(found.panels[1].lines) == 1


def test_records_of_training_that_make_no_sense_are_left_out(labelled):
    labelled("odd", details={"validation": [{"step": "x", "auroc_macro": 1}, 3, {"step": 2, "auroc_macro": None}]})
    labelled("tuned", details={"validation": [{"step": 2, "auroc_macro": 0.6}, {"step": 4, "auroc_macro": 0.7}],
                               "best_step": 4})
    labelled("probe", details={"validation": {"images": 20}})
    (panel,) = chart(series.charts(labelled.known(), labelled.folder), "training").panels
    (found,) = panel.lines
    assert (found.row.method, found.x, found.y, found.marked) == ("tuned", (2, 4), (0.6, 0.7), 1)


@pytest.mark.parametrize(("recipe", "stages"), [
    ({"training": {"stages": [{"share": 0.7}, {"share": 0.1}, {"share": 0.2}]}}, (70, 80)),
    ({"training": {"stages": [{"share": 1.0}]}}, ()),
    ({"training": {"stages": [{"share": 1e308}, {"share": 1e308}]}}, ()),
    ({"training": {"stages": [{"share": "x"}, 3]}}, ()), ({"training": None}, ()), ("none", ()), (None, ()),
])
def test_where_stages_begin(recipe, stages):
    assert series._stages({"total": [[5, 4.0], [99, 3.0]]}, recipe) == pytest.approx(stages)
    assert series._stages({"total": "none"}, recipe) == ()


def test_nothing_depends_on_the_order_of_results(labelled):
    for method in ("c", "a", "b"):
        for fraction in (0.1, 1.0):
            labelled(method, fraction=fraction)
    found = labelled.known()
    first = series.charts(found, labelled.folder)
    found.tables[0].entries = dict(reversed(found.tables[0].entries.items()))
    assert repr(series.charts(found, labelled.folder)) == repr(first)
    assert all(not math.isnan(v) for c in first for p in c.panels for one in p.lines for v in one.y)

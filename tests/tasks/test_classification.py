"""Classification on the toy dataset: against scikit-learn on the same features; selection, missing labels, draws."""

import json
import math

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from prior_bench.data.splits import training_subset
from prior_bench.engine.finetune import Classifier
from prior_bench.statistics import group_draws, interval
from prior_bench.task import NotApplicable, evaluate
from prior_bench.tasks.classification import PENALTIES, Classification
from prior_bench.types import Target

TASK = Classification()


def by_name(metrics):
    return {m.name: m for m in metrics}


@pytest.fixture
def hidden_test_labels(toy_class):
    """The toy dataset without the labels of its test images: nothing before `attach` may need them."""
    class Hidden(toy_class):
        def load_labels(self, target):
            table = super().load_labels(target)
            test = [i for i, id in enumerate(table.ids) if self.study_of[id].split == "test"]
            table.values[test] = np.nan
            return table

    return Hidden()


def test_plan_and_settings(toy_class):
    plans = list(TASK.plan(toy_class, toy_class.targets["findings"], "linear", (0.01, 0.1, 1.0), None))
    assert [(p.fraction, p.subset_seed) for p in plans] == [(0.01, 0), (0.01, 1), (0.1, 0), (0.1, 1), (1.0, 0)]
    assert [p.subset_seed for p in TASK.plan(toy_class, toy_class.targets["findings"], "linear", (0.1,), (5,))] == [5]
    assert TASK.accepts(toy_class.targets["place"])
    assert not TASK.accepts(Target("set", "exclusive", ("a", "b"), train=False))
    assert not TASK.accepts(toy_class.targets["reports"])
    for mode in TASK.modes:
        json.dumps(TASK.settings(toy_class, toy_class.targets["findings"], mode, "standard"), allow_nan=False)


def test_what_fine_tuning_trains_by_is_in_its_settings_alone(toy_class, pixel_method):
    target = toy_class.targets["findings"]
    linear, finetune = (TASK.settings(toy_class, target, mode, "standard") for mode in TASK.modes)
    head, encoder = Classifier(pixel_method(), 256, 2, exclusive=False, seed=0).rates()
    assert finetune["training"]["head_rate"] == head["lr"]
    assert finetune["training"]["head_rate"] * finetune["training"]["encoder_share"] == encoder["lr"]
    assert {"weight_decay", "warmup", "crop_area", "crop_ratio"} < set(finetune["training"])
    assert "training" not in linear


def test_linear_is_scikit_learn_with_the_chosen_penalty(make_context, toy, cell_of):
    context = make_context(toy)
    cell = cell_of(TASK, toy, "findings", "linear", 1.0)
    outcome = evaluate(TASK, context, cell)
    table, ids = toy.labels("findings"), {s: toy.ids("findings", s) for s in ("train", "validation", "test")}
    features = {s: context.features.images(toy, ids[s]).pooled.astype(float) for s in ids}
    deviation = features["train"].std(axis=0)
    kept = deviation > 1e-6 * np.median(deviation)
    scaler = StandardScaler().fit(features["train"][:, kept])
    penalty = outcome.details["penalty"]
    labels, test_labels = table.rows(ids["train"]), table.rows(ids["test"])
    expected = []
    for c, name in enumerate(table.classes):
        known = ~np.isnan(labels[:, c])
        model = LogisticRegression(C=1 / (known.sum() * penalty), tol=1e-9, max_iter=10_000)
        model.fit(scaler.transform(features["train"][known][:, kept]), labels[known, c])
        found = model.predict_proba(scaler.transform(features["test"][:, kept]))[:, 1]
        np.testing.assert_allclose(outcome.predictions.table.column(f"score_{name}").to_numpy(), found, atol=1e-3)
        known = ~np.isnan(test_labels[:, c])
        expected.append(sk.roc_auc_score(test_labels[known, c], found[known]))
        assert by_name(outcome.metrics)[f"auroc_{name}"].value == pytest.approx(expected[-1], abs=0.01)
    assert by_name(outcome.metrics)["auroc_macro"].value == pytest.approx(np.mean(expected), abs=0.01)
    assert outcome.metrics[0].name == TASK.main_metric
    assert outcome.metrics[0].value > 0.9


def test_every_value_tried_is_kept_and_the_best_one_chosen(make_context, toy, cell_of):
    outcome = evaluate(TASK, make_context(toy), cell_of(TASK, toy, "findings", "linear", 1.0))
    tried = outcome.details["tried"]
    assert [t["penalty"] for t in tried] == list(PENALTIES)
    best = max(t["validation_auroc_macro"] for t in tried)
    assert outcome.details["penalty"] == max(t["penalty"] for t in tried if t["validation_auroc_macro"] == best)
    assert all(t["converged"] for t in tried)
    assert outcome.details["train"]["images"] == len(toy.ids("findings", "train"))
    json.dumps(outcome.details, allow_nan=False)
    json.dumps(outcome.predictions.extra, allow_nan=False)


def test_exclusive_classes(make_context, toy, cell_of):
    outcome = evaluate(TASK, make_context(toy), cell_of(TASK, toy, "place", "linear", 1.0))
    table, metrics, classes = outcome.predictions.table, by_name(outcome.metrics), outcome.predictions.extra["classes"]
    scores = np.stack([table.column(f"score_{c}").to_numpy() for c in classes], axis=1)
    truth = np.stack([table.column(f"label_{c}").to_numpy() for c in classes], axis=1).argmax(1)
    np.testing.assert_allclose(scores.sum(axis=1), 1)
    assert metrics["accuracy"].value == pytest.approx(sk.accuracy_score(truth, scores.argmax(1)))
    assert metrics["balanced_accuracy"].value == pytest.approx(sk.balanced_accuracy_score(truth, scores.argmax(1)))
    assert metrics["auroc_macro"].value == pytest.approx(sk.roc_auc_score(truth, scores, multi_class="ovr"))
    said = scores >= outcome.predictions.extra["thresholds"]
    f1 = sk.f1_score(np.eye(3)[truth], said, average=None)
    assert metrics["f1_macro"].value == pytest.approx(np.mean([v for c, v in zip(classes, f1, strict=True)
                                                               if metrics[f"auroc_{c}"].counts["in_macro"]]))
    assert not metrics["ece"].higher_is_better


def test_small_fractions(make_context, toy, cell_of):
    context = make_context(toy)
    with pytest.raises(NotApplicable, match="too small: 1 training groups"):
        TASK.fit(context, cell_of(TASK, toy, "findings", "linear", 0.01))
    cell = cell_of(TASK, toy, "findings", "linear", 0.1, subset_seed=1)
    fitted = TASK.fit(context, cell)
    subset = training_subset(toy, "findings", 0.1, 1)
    assert fitted.details["train"]["images"] == len(subset)
    labels = toy.labels("findings")
    valid = {s: labels.rows(training_subset(toy, "findings", 0.1, s)) for s in (0, 1)}
    both = {s: (v == 0).any(0) & (v == 1).any(0) for s, v in valid.items()}
    assert fitted.macro_classes == [c for c, a, b in zip(labels.classes, both[0], both[1], strict=True) if a and b]


def test_a_label_without_both_classes_in_the_subset_is_null(make_context, toy_class, cell_of):
    class NoBars(toy_class):
        def load_labels(self, target):
            table = super().load_labels(target)
            train = [i for i, id in enumerate(table.ids) if self.study_of[id].split == "train"]
            table.values[train, 1] = 0
            return table

    dataset = NoBars()
    outcome = evaluate(TASK, make_context(dataset), cell_of(TASK, dataset, "findings", "linear", 1.0))
    metrics = by_name(outcome.metrics)
    assert metrics["auroc_bar"].value is None
    assert "training subset" in metrics["auroc_bar"].reason
    assert outcome.predictions.table.column("score_bar").null_count == outcome.predictions.table.num_rows
    assert metrics["auroc_bar"].counts["in_macro"] == 0
    used = [c for c in ("disc", "cross") if metrics[f"auroc_{c}"].counts["positive_groups"] >= 5]
    assert metrics["auroc_macro"].counts["labels_valid"] == len(used)
    assert metrics["auroc_macro"].value == pytest.approx(np.mean([metrics[f"auroc_{c}"].value for c in used]))
    draws = group_draws(outcome.predictions.table.column("group").to_pylist())
    assert "auroc_bar" not in TASK.replicates(outcome.predictions, draws)


def test_test_labels_are_not_needed_before_attach(make_context, toy, hidden_test_labels, cell_of):
    cell = cell_of(TASK, toy, "findings", "linear", 1.0)
    scores = []
    for dataset in (toy, hidden_test_labels):
        context = make_context(dataset)
        bare = TASK.predict(context, cell, TASK.fit(context, cell))
        assert not [name for name in bare.table.column_names if name.startswith("label_")]
        scores.append(bare.table.to_pydict())
    assert scores[0] == scores[1]


def test_replicates_are_the_metrics_of_resampled_tables(make_context, toy, cell_of):
    context = make_context(toy)
    for target in ("findings", "place"):
        found = evaluate(TASK, context, cell_of(TASK, toy, target, "linear", 1.0)).predictions
        groups = found.table.column("group").to_pylist()
        draws = group_draws(groups, n=25)
        replicates = TASK.replicates(found, draws)
        for draw in range(25):
            rows = np.repeat(np.arange(len(groups)), [draws[g][draw] for g in groups])
            metrics = by_name(TASK.score(type(found)(found.table.take(rows), found.extra)))
            assert set(replicates) == set(metrics) - {"ece"}
            macro = metrics["auroc_macro"].counts["labels_valid"]
            for name, values in replicates.items():
                if name.endswith("_macro") and macro < 3:
                    continue  # the labels of the average are those of the full test set
                expected = metrics[name].value
                np.testing.assert_allclose(values[draw], math.nan if expected is None else expected, err_msg=name)


def test_interval_and_reproducibility(make_context, toy, cell_of):
    cell = cell_of(TASK, toy, "findings", "linear", 1.0)
    first, second = (evaluate(TASK, make_context(toy), cell) for _ in range(2))
    assert first.predictions.table.equals(second.predictions.table)
    draws = group_draws(first.predictions.table.column("group").to_pylist())
    low, high = interval(TASK.replicates(first.predictions, draws)["auroc_macro"])
    assert low <= first.metrics[0].value <= high


def test_finetune_learns_and_leaves_the_method_alone(make_context, toy_class, cell_of):
    from dataclasses import replace

    class Longer(toy_class):
        budget = replace(toy_class.budget, finetune=replace(toy_class.budget.finetune, min_steps=100))

    dataset = Longer()
    context = make_context(dataset)
    key = context.features.key
    outcome = evaluate(TASK, context, cell_of(TASK, dataset, "findings", "finetune", 1.0))
    assert outcome.metrics[0].value > 0.7
    assert outcome.details["steps"] == 100
    assert [v["step"] for v in outcome.details["validation"]] == [50, 100]
    assert outcome.details["best_step"] in (50, 100)
    context.features.__dict__.pop("key")
    assert context.features.key == key
    again = evaluate(TASK, context, cell_of(TASK, dataset, "findings", "finetune", 1.0))
    assert again.predictions.table.equals(outcome.predictions.table)


def test_the_supervised_reference_is_trained_in_linear_mode_too(make_context, toy, cell_of, pixel_method):
    class Scratch(pixel_method):
        trains_on_target = True

    outcome = evaluate(TASK, make_context(toy, Scratch()), cell_of(TASK, toy, "place", "linear", 1.0))
    assert outcome.details["steps"] == 10  # one epoch of 80 images in batches of 8
    assert "penalty" not in outcome.details
    assert by_name(outcome.metrics)["auroc_macro"].value is not None


@pytest.mark.realdata
@pytest.mark.parametrize("target", ["nih14", "rsna_3class"])
def test_real_radiographs_against_scikit_learn_on_the_saved_table(realdata, make_context, cell_of, tmp_path, target):
    from prior_bench.datasets.nih import Nih
    from prior_bench.methods.reference.thumbnail import Thumbnail
    from prior_bench.recipes import ImageEncoderSpec, Recipe

    dataset = Nih(root=realdata / Nih.folder, cache=tmp_path)
    context = make_context(dataset, Thumbnail(Recipe(image=ImageEncoderSpec(size=64))))
    outcome = evaluate(TASK, context, cell_of(TASK, dataset, target, "linear", 1.0))
    metrics, rows = by_name(outcome.metrics), outcome.predictions.table.to_pandas()
    assert list(rows["image"]) == dataset.ids(target, "test")
    aurocs = []
    for name in outcome.predictions.extra["classes"]:
        known = rows[rows[f"label_{name}"].notna()]
        if metrics[f"auroc_{name}"].counts["in_macro"]:
            aurocs.append(sk.roc_auc_score(known[f"label_{name}"], known[f"score_{name}"]))
            assert metrics[f"auroc_{name}"].value == pytest.approx(aurocs[-1])
            assert known.loc[known[f"label_{name}"] == 1, "group"].nunique() >= 5
    assert metrics["auroc_macro"].value == pytest.approx(np.mean(aurocs))

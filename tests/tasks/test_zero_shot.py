"""Zero-shot on the toy dataset: against cosines computed by hand, independence of the batch, prompts in the digest."""

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from prior_bench.data.dataset import Prompts
from prior_bench.method import Method
from prior_bench.statistics import group_draws, interval
from prior_bench.task import NotApplicable, evaluate
from prior_bench.tasks.zero_shot import ZeroShot

TASK = ZeroShot()


def test_plan_is_one_cell_of_targets_with_prompts(toy_class):
    assert TASK.accepts(toy_class.targets["findings"])
    assert not TASK.accepts(toy_class.targets["disc"])
    (plan,) = TASK.plan(toy_class, toy_class.targets["findings"], "zero-shot", (0.01, 1.0), None)
    assert plan.fraction is None


def test_labels_against_cosines_by_hand(make_context, toy, cell_of):
    context = make_context(toy)
    outcome = evaluate(TASK, context, cell_of(TASK, toy, "findings", "zero-shot", None))
    table, metrics = outcome.predictions.table, {m.name: m for m in outcome.metrics}
    ids = table.column("image").to_pylist()
    images = context.features.images(toy, ids).joint
    known_aurocs = []
    for name, prompts in toy.prompts("findings").items():
        positive, negative = context.features.texts([prompts.positive[0], prompts.negative[0]])
        expected = images @ positive - images @ negative
        np.testing.assert_allclose(table.column(f"score_{name}").to_numpy(), expected, atol=1e-6)
        labels = toy.labels("findings").rows(ids)[:, toy.targets["findings"].classes.index(name)]
        known = ~np.isnan(labels)
        auroc = sk.roc_auc_score(labels[known], expected[known])
        assert metrics[f"auroc_{name}"].value == pytest.approx(auroc)
        if metrics[f"auroc_{name}"].counts["in_macro"]:
            known_aurocs.append(auroc)
    assert metrics["auroc_macro"].value == pytest.approx(np.mean(known_aurocs))
    assert metrics["auroc_macro"].value > 0.9
    assert "f1_macro" not in metrics  # no thresholds without training
    assert "ece" not in metrics  # cosines are no probabilities
    draws = group_draws(table.column("group").to_pylist())
    assert interval(TASK.replicates(outcome.predictions, draws)["auroc_macro"])[0] > 0.5


def test_exclusive_classes(make_context, toy, cell_of):
    outcome = evaluate(TASK, make_context(toy), cell_of(TASK, toy, "place", "zero-shot", None))
    metrics = {m.name: m.value for m in outcome.metrics}
    classes = outcome.predictions.extra["classes"]
    scores, truth = (np.stack([outcome.predictions.table.column(f"{kind}_{c}").to_numpy() for c in classes], axis=1)
                     for kind in ("score", "label"))
    truth, guess = truth.argmax(1), scores.argmax(1)
    assert metrics["accuracy"] == pytest.approx(sk.accuracy_score(truth, guess))
    assert metrics["accuracy"] > 0.9
    f1 = sk.f1_score(truth, guess, average=None)
    in_macro = [m.counts["in_macro"] for m in outcome.metrics if m.name in {f"auroc_{c}" for c in classes}]
    assert metrics["f1_macro"] == pytest.approx(np.mean(f1[np.array(in_macro, bool)]))


def test_a_class_vector_is_the_mean_of_its_prompts(make_context, toy_class, cell_of):
    class Ensemble(toy_class):
        def prompts(self, target):
            return {c: Prompts((f"There is a {c}.", f"A {c}, and no more."), (f"No {c} is seen.",))
                    for c in self.targets[target].classes}

    dataset = Ensemble()
    context = make_context(dataset)
    fitted = TASK.fit(context, cell_of(TASK, dataset, "findings", "zero-shot", None))
    two = context.features.texts(["There is a disc.", "A disc, and no more."])
    mean = two.mean(axis=0) / np.linalg.norm(two.mean(axis=0))
    np.testing.assert_allclose(fitted.vectors[0], mean - context.features.texts(["No disc is seen."])[0], atol=1e-6)
    changed, standard = (TASK.settings(kind, kind.targets["findings"], "zero-shot", "standard")
                         for kind in (Ensemble, toy_class))
    assert json.dumps(changed) != json.dumps(standard)


def test_one_image_does_not_depend_on_the_others(make_context, toy, cell_of):
    cell = cell_of(TASK, toy, "findings", "zero-shot", None)
    context = make_context(toy)
    every = TASK.predict(context, cell, TASK.fit(context, cell)).table
    context.features.batch = 3
    context.features.folder = context.features.folder / "other"
    context.features._blocks.clear()
    again = TASK.predict(context, cell, TASK.fit(context, cell)).table
    np.testing.assert_allclose(again.column("score_disc").to_numpy(), every.column("score_disc").to_numpy(), atol=1e-6)


def scores_of(outcome):
    return np.stack([outcome.predictions.table.column(f"score_{c}").to_numpy()
                     for c in outcome.predictions.extra["classes"]], axis=1)


@pytest.mark.parametrize("target", ["findings", "place"])
def test_standard_local_adds_the_local_score_of_every_prompt(make_context, toy, cell_of, target):
    cell = cell_of(TASK, toy, target, "zero-shot", None)
    context = make_context(toy, profile="standard-local")
    context.features.batch = 7
    outcome = evaluate(TASK, context, cell)
    joint = scores_of(evaluate(TASK, make_context(toy), cell))
    ids = outcome.predictions.table.column("image").to_pylist()
    images = context.features.images(toy, ids).joint[:, :3]
    for column, (name, prompts) in enumerate((c, toy.prompts(target)[c]) for c in toy.targets[target].classes):
        positive = np.mean([images @ context.features.texts([s])[0, :3] for s in prompts.positive], axis=0)
        negative = np.mean([images @ context.features.texts([s])[0, :3] for s in prompts.negative] or [0], axis=0)
        expected = joint[:, column] + context.method.local_weight * (positive - negative)
        np.testing.assert_allclose(scores_of(outcome)[:, column], expected, atol=1e-5, err_msg=name)
    standard, local = (TASK.settings(type(toy), toy.targets[target], "zero-shot", p)
                       for p in ("standard", "standard-local"))
    assert standard != local


def test_paper_is_what_the_method_computes(make_context, toy, cell_of, monkeypatch):
    context = make_context(toy, profile="paper")
    outcome = evaluate(TASK, context, cell_of(TASK, toy, "place", "zero-shot", None))
    np.testing.assert_allclose(scores_of(outcome).sum(axis=1), 1, atol=1e-6)
    assert {m.name: m.value for m in outcome.metrics}["accuracy"] > 0.9
    with pytest.raises(NotApplicable, match="exclusive"):
        TASK.fit(context, cell_of(TASK, toy, "findings", "zero-shot", None))
    monkeypatch.setattr("prior_bench.tasks.zero_shot.PAPER_IMAGES", 5)
    with pytest.raises(NotApplicable, match="at most 5 images"):
        TASK.predict(context, cell_of(TASK, toy, "place", "zero-shot", None), None)


def test_a_method_without_local_score_or_protocol(make_context, toy, cell_of, pixel_method):
    class Plain(pixel_method):
        local_score, paper_zero_shot = Method.local_score, Method.paper_zero_shot

    cell = cell_of(TASK, toy, "place", "zero-shot", None)
    for profile, reason in (("standard-local", "no local score"), ("paper", "no zero-shot protocol")):
        context = make_context(toy, Plain(), profile)
        with pytest.raises(NotApplicable, match=reason):
            TASK.predict(context, cell, TASK.fit(context, cell))

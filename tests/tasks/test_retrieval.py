"""Retrieval on the toy dataset: against a plain loop over pairs, shared texts, classes, chance, draws of queries."""

import json

import numpy as np
import pytest

from prior_bench.statistics import group_draws, interval
from prior_bench.task import NotApplicable, Predictions, evaluate
from prior_bench.tasks.retrieval import Retrieval, normalised, text_id
from prior_bench.types import Report, Study, Target

TASK = Retrieval()


@pytest.fixture
def shared_texts(toy_class):
    """The toy dataset with some reports that differ in white space and case alone, and a test-only set of classes."""
    class Shared(toy_class):
        name = "toy-shared"
        targets = dict(toy_class.targets) | {"set": Target("set", "exclusive", toy_class.targets["place"].classes,
                                                           train=False)}

        def load_studies(self):
            studies = []
            for number, study in enumerate(super().load_studies()):
                sentences = tuple(s.upper() + "  " if number % 2 else s for s in study.report.sentences)
                report = None if number % 25 == 24 else Report({"findings": " ".join(sentences)}, sentences)
                studies.append(Study(study.id, study.group, study.split, study.images, report))
            return studies

        def load_labels(self, target):
            return super().load_labels("place" if target == "set" else target)

    return Shared()


def loop(predictions: Predictions, text_to_image=False):
    """Ranks by a loop over the table's rows."""
    rows = predictions.table.to_pylist()
    images, texts = ([r for r in rows if r["kind"] == kind] for kind in ("image", "text"))
    ranks = []
    for query in texts if text_to_image else images:
        gallery = images if text_to_image else texts
        score = [float(np.dot(np.array(query["vector"], float), np.array(item["vector"], float))) for item in gallery]
        positive = [item["text_id"] == query["text_id"] for item in gallery]
        best = max(s for s, p in zip(score, positive, strict=True) if p)
        others = [s for s, p in zip(score, positive, strict=True) if not p]
        ranks.append(1 + sum(s > best for s in others) + sum(s == best for s in others) / 2)
    return np.array(ranks)


def test_which_targets(toy_class, shared_texts):
    assert TASK.accepts(toy_class.targets["reports"])
    assert TASK.accepts(shared_texts.targets["set"])
    assert not TASK.accepts(toy_class.targets["place"])
    json.dumps(TASK.settings(toy_class, toy_class.targets["reports"], "retrieval", "standard"))
    assert len(list(TASK.plan(toy_class, toy_class.targets["reports"], "retrieval", (0.1, 1.0), None))) == 1


@pytest.mark.parametrize("text_to_image", [False, True])
def test_metrics_are_those_of_a_loop(make_context, shared_texts, cell_of, text_to_image):
    outcome = evaluate(TASK, make_context(shared_texts), cell_of(TASK, shared_texts, "reports", "retrieval", None))
    assert outcome.metrics[0].name == TASK.main_metric
    metrics = {m.name: m.value for m in outcome.metrics}
    ranks = loop(outcome.predictions, text_to_image)
    direction = "text_to_image" if text_to_image else "image_to_text"
    for k in (1, 5, 10):
        assert metrics[f"{direction}_recall@{k}"] == pytest.approx(np.mean(ranks <= k))
    assert metrics[f"{direction}_mrr"] == pytest.approx(np.mean(1 / ranks))
    assert metrics[f"{direction}_median_rank"] == np.median(ranks)
    assert metrics[f"{direction}_recall@1"] > 3 * metrics[f"{direction}_recall@1_chance"]


def test_the_gallery_holds_distinct_texts(make_context, shared_texts, cell_of):
    outcome = evaluate(TASK, make_context(shared_texts), cell_of(TASK, shared_texts, "reports", "retrieval", None))
    rows = outcome.predictions.table.to_pylist()
    with_report = [i for i in shared_texts.ids("reports", "test") if shared_texts.study_of[i].report is not None]
    assert [r["id"] for r in rows if r["kind"] == "image"] == with_report
    distinct = {normalised(shared_texts.study_of[i].report.text) for i in with_report}
    assert [r["id"] for r in rows if r["kind"] == "text"] == sorted(text_id(t) for t in distinct)
    assert len(distinct) < len(with_report)
    for row in rows:
        if row["kind"] == "image":
            assert row["text_id"] == text_id(shared_texts.study_of[row["id"]].report.text)
            assert row["group"] == shared_texts.group_of(row["id"])
        else:
            first = min((shared_texts.study_of[i] for i in with_report
                         if text_id(shared_texts.study_of[i].report.text) == row["id"]), key=lambda study: study.id)
            assert row["group"] == first.group


def test_predict_does_not_say_what_belongs_together(make_context, shared_texts, cell_of):
    context, cell = make_context(shared_texts), cell_of(TASK, shared_texts, "reports", "retrieval", None)
    assert TASK.predict(context, cell, TASK.fit(context, cell)).table.column_names == ["kind", "id", "vector"]


def test_chance_is_that_of_random_vectors(make_context, shared_texts, cell_of):
    outcome = evaluate(TASK, make_context(shared_texts), cell_of(TASK, shared_texts, "reports", "retrieval", None))
    metrics = {m.name: m for m in outcome.metrics}
    gallery = metrics["image_to_text_recall@5"].counts["gallery"]
    assert metrics["image_to_text_recall@5_chance"].value == pytest.approx(5 / gallery, rel=0.35)
    assert metrics["image_to_text_median_rank_chance"].value == pytest.approx((gallery + 1) / 2, rel=0.25)


def test_exclusive_classes_against_a_loop(make_context, shared_texts, cell_of):
    outcome = evaluate(TASK, make_context(shared_texts), cell_of(TASK, shared_texts, "set", "retrieval", None))
    assert outcome.metrics[0].name == "image_to_text_precision@5"
    metrics = {m.name: m.value for m in outcome.metrics}
    rows = outcome.predictions.table.to_pylist()
    sides = {kind: [r for r in rows if r["kind"] == kind] for kind in ("image", "text")}
    assert all(len(r["classes"]) == 1 for r in rows)
    for direction, (a, b) in {"image_to_text": ("image", "text"), "text_to_image": ("text", "image")}.items():
        shares = []
        for query in sides[a]:
            score = [np.dot(np.array(query["vector"], float), np.array(item["vector"], float)) for item in sides[b]]
            nearest = [item for item, s in zip(sides[b], score, strict=True) if s == max(score)]
            shares.append(np.mean([item["classes"] == query["classes"] for item in nearest]))
        assert metrics[f"{direction}_precision@1"] == pytest.approx(np.mean(shares))
        assert metrics[f"{direction}_precision@5"] > metrics[f"{direction}_precision@5_chance"]


@pytest.mark.parametrize("target", ["reports", "set"])
def test_replicates_resample_queries_with_the_gallery_fixed(make_context, shared_texts, cell_of, target):
    found = evaluate(TASK, make_context(shared_texts), cell_of(TASK, shared_texts, target, "retrieval", None))
    groups = found.predictions.table.column("group").to_pylist()
    replicates = TASK.replicates(found.predictions, group_draws(groups))
    for metric in found.metrics:
        if metric.name.endswith("_chance"):
            assert metric.name not in replicates
        else:
            low, high = interval(replicates[metric.name])
            assert low <= metric.value <= high
    if target == "reports":
        draws = group_draws(groups, n=10)
        ranks = loop(found.predictions)
        queries = groups[: len(ranks)]
        for draw, value in enumerate(TASK.replicates(found.predictions, draws)["image_to_text_mrr"]):
            rows = np.repeat(np.arange(len(ranks)), [draws[g][draw] for g in queries])
            assert value == pytest.approx(np.mean(1 / ranks[rows]))


def test_not_applicable(make_context, toy_class, shared_texts, cell_of):
    class Silent(toy_class):
        name = "toy-silent"

        def load_studies(self):
            return [Study(s.id, s.group, s.split, s.images) for s in super().load_studies()]

    dataset = Silent()
    with pytest.raises(NotApplicable, match="no reports"):
        TASK.predict(make_context(dataset), cell_of(TASK, dataset, "reports", "retrieval", None), None)


def test_standard_local_ranks_the_nearest_anew(make_context, toy, cell_of, monkeypatch):
    monkeypatch.setattr("prior_bench.tasks.retrieval.RERANKED", 4)
    context = make_context(toy, profile="standard-local")
    context.features.batch = 7
    outcome = evaluate(TASK, context, cell_of(TASK, toy, "reports", "retrieval", None))
    rows = outcome.predictions.table.to_pylist()
    images, texts = ([row for row in rows if row["kind"] == kind] for kind in ("image", "text"))
    wording = {text_id(s.report.text): s.report.text for s in toy.studies if s.report is not None}
    ranks = []
    for image in images:
        cosine = {t["id"]: float(np.float64(image["vector"]) @ np.float64(t["vector"])) for t in texts}
        top = sorted(sorted(cosine), key=lambda id, c=cosine: -c[id])[:4]
        assert image["nearest"] == top
        pixels = context.features.images(toy, [image["id"]]).joint[0, :3]
        local = {id: float(pixels @ context.features.texts([wording[id]])[0, :3]) for id in top}
        np.testing.assert_allclose(image["score"], [cosine[id] + local[id] for id in top], atol=1e-5)
        scores = {**cosine, **{id: 10 + s for id, s in zip(image["nearest"], image["score"], strict=True)}}
        best = scores[image["text_id"]]
        others = [s for id, s in scores.items() if id != image["text_id"]]
        ranks.append(1 + sum(s > best for s in others) + sum(s == best for s in others) / 2)
    metrics = {m.name: m.value for m in outcome.metrics}
    assert metrics["image_to_text_mrr"] == pytest.approx(np.mean(1 / np.array(ranks)))
    assert len(texts[0]["nearest"]) == 4

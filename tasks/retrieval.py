"""Retrieval: image to text and text to image over the whole test gallery, nothing is trained.

The text gallery holds the distinct texts of the target's test studies (white space and case normalised). For report
targets the positive of an image is its study's text, those of a text all images of all studies with it. For sets of
exclusive classes (5x200) what counts is the share of the k nearest with the query's class. Chance is what the same
vectors reach when reports are permuted. The profile `standard-local` ranks the nearest 100 anew, by cosine plus the
method's local score (Method.local_weight times); the others stay behind them in the order of their cosines.

    kind ("image" | "text") | id | vector (float16) | group | text_id | classes
    `standard-local`: nearest (ids of the other kind) | score (float32)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from prior_bench.digests import digest_bytes
from prior_bench.metrics.retrieval import Reranked, nearest, precision_at, ranks, recall_at
from prior_bench.task import Context, NotApplicable, Plan, Predictions, Task
from prior_bench.types import Cell, Metric, Target

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset
    from prior_bench.types import Study

KS = (1, 5, 10)
MAIN = {"report": "recall@10", "exclusive": "precision@5"}
RERANKED = 100
PERMUTATIONS = 20  # of the reports, for chance


class Retrieval(Task):
    """The main metric of sets of exclusive classes is `image_to_text_precision@5`; it comes first there."""

    name: ClassVar[str] = "retrieval"
    title: ClassVar[str] = "Retrieval"
    modes: ClassVar[tuple[str, ...]] = ("retrieval",)
    profiles: ClassVar[tuple[str, ...]] = ("standard", "standard-local")
    needs_text: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = frozenset({"report", "exclusive"})
    wants: ClassVar[str] = "(exclusive ones without training images)"
    main_metric: ClassVar[str] = "image_to_text_recall@10"
    more_metrics: ClassVar[tuple[str, ...]] = (
        "image_to_text_recall@10_chance", "image_to_text_recall@1", "image_to_text_recall@5", "text_to_image_recall@10",
        "text_to_image_recall@10_chance", "image_to_text_precision@1", "image_to_text_precision@5_chance",
        "text_to_image_precision@5", "text_to_image_precision@5_chance")
    row: ClassVar[str] = "id"
    attached: ClassVar[tuple[str, ...]] = ("group", "text_id", "classes")

    def accepts(self, target: Target) -> bool:
        """Reports, and test-only sets of exclusive classes."""
        return target.kind == "report" or (target.kind == "exclusive" and not target.train)

    def plan(self, dataset: type[Dataset], target: Target, mode: str, fractions: Sequence[float],
             seeds: Sequence[int] | None) -> Iterator[Plan]:
        yield Plan(target.name, mode, None)

    def settings(self, dataset: type[Dataset], target: Target, mode: str, profile: str) -> dict[str, Any]:
        found = {"score": "joint cosine", "vectors": "float16", "gallery": "whole test set, distinct texts",
                 "k": KS, "chance_permutations": PERMUTATIONS}
        return found if profile == "standard" else found | {"reranked": RERANKED}

    def fit(self, context: Context, cell: Cell) -> None:
        """Nothing is trained."""

    def predict(self, context: Context, cell: Cell, fitted: None) -> Predictions:
        """Vectors of images and texts, each sorted by its id; which belong together is not said."""
        import pyarrow as pa

        dataset = context.dataset
        ids, texts = _gallery(dataset, cell.target)
        if not texts:
            raise NotApplicable("the studies of this target have no reports")
        joint = context.features.images(dataset, ids, context.report).joint
        if joint is None:
            raise NotApplicable(f"{cell.method} has no joint image vectors")
        vectors = np.concatenate([joint, context.features.texts(list(texts.values()))]).astype(np.float16)
        flat = pa.array(vectors.reshape(-1), pa.float16())
        table = pa.table({
            "kind": ["image"] * len(ids) + ["text"] * len(texts), "id": [*ids, *texts],
            "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]).cast(pa.list_(pa.float16()))})
        if context.profile == "standard-local":
            images, reports = _rerank(context, ids, texts, vectors)
            names = [np.array(list(texts))[images.items], np.array(ids)[reports.items]]
            table = table.append_column("nearest", pa.array([row.tolist() for side in names for row in side],
                                                            pa.list_(pa.string())))
            table = table.append_column("score", pa.array([row for side in (images, reports) for row in side.scores],
                                                          pa.list_(pa.float32())))
        return Predictions(table)

    def rows(self, dataset: Dataset, target: str) -> list[str]:
        ids, texts = _gallery(dataset, target)
        return [*ids, *texts]

    def attach(self, dataset: Dataset, cell: Cell, predictions: Predictions) -> Predictions:
        """Add groups, text ids and classes. A text's group is that of its first study; its classes are all of them."""
        import pyarrow as pa

        target = dataset.target(cell.target)
        kinds, ids = (predictions.table.column(name).to_pylist() for name in ("kind", "id"))
        images = [id for kind, id in zip(kinds, ids, strict=True) if kind == "image"]
        text_of = {id: text_id(_text(dataset.study_of[id])) for id in images}
        classes_of: dict[str, set[str]] = {}
        if target.kind == "exclusive":
            rows = dataset.labels(cell.target).rows(images)
            classes_of = {id: {target.classes[c] for c in np.flatnonzero(row == 1)}
                          for id, row in zip(images, rows, strict=True)}
        groups = {id: dataset.group_of(id) for id in images}
        for id in sorted(images, key=lambda image: dataset.study_of[image].id):
            groups.setdefault(text_of[id], groups[id])
            classes_of.setdefault(text_of[id], set()).update(classes_of.get(id, ()))
        table = predictions.table
        table = table.append_column("group", pa.array([groups[id] for id in ids], pa.string()))
        table = table.append_column("text_id", pa.array([text_of.get(id, id) for id in ids], pa.string()))
        table = table.append_column("classes", pa.array([sorted(classes_of.get(id, ())) for id in ids],
                                                        pa.list_(pa.string())))
        return Predictions(table, {"kind": target.kind, "classes": list(target.classes)})

    def score(self, predictions: Predictions) -> tuple[Metric, ...]:
        images, texts = _read(predictions)
        found = []
        for direction, values in _values(predictions, PERMUTATIONS).items():
            queries, gallery = (images, texts) if direction == "image_to_text" else (texts, images)
            counts = {"queries": len(queries.groups), "gallery": len(gallery.groups)}
            for name, (true, *permuted) in values.items():
                found.append(_metric(f"{direction}_{name}", _summary(name, true), counts))
                chance = float(np.mean([_summary(name, one) for one in permuted]))
                found.append(_metric(f"{direction}_{name}_chance", chance, counts))
        main = f"image_to_text_{MAIN[predictions.extra['kind']]}"
        return tuple(sorted(found, key=lambda metric: metric.name != main))

    def replicates(self, predictions: Predictions, draws: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Queries are drawn by group; the gallery is fixed, and so is chance."""
        from prior_bench.statistics import Bootstrap

        images, texts = _read(predictions)
        bootstrap = {"image_to_text": Bootstrap(images.groups, draws), "text_to_image": Bootstrap(texts.groups, draws)}
        result = {}
        for direction, values in _values(predictions, 0).items():
            for name, (true,) in values.items():
                draw = bootstrap[direction].median if name == "median_rank" else bootstrap[direction].mean
                if np.isfinite(true).all():
                    result[f"{direction}_{name}"] = draw(true)
        return result


def normalised(text: str) -> str:
    """White space and case do not tell texts apart."""
    return " ".join(text.split()).casefold()


def text_id(text: str) -> str:
    return digest_bytes(normalised(text).encode())


def _gallery(dataset: Dataset, target: str) -> tuple[list[str], dict[str, str]]:
    """The test images that have a report, and the distinct texts by text id, both sorted; of equal texts the first
    study's wording."""
    images = [id for id in dataset.ids(target, "test") if dataset.study_of[id].report is not None]
    studies: dict[str, Study] = {(study := dataset.study_of[id]).id: study for id in images}
    found: dict[str, str] = {}
    for _, study in sorted(studies.items()):
        found.setdefault(text_id(_text(study)), _text(study))
    return images, dict(sorted(found.items()))


def _text(study: Study) -> str:
    assert study.report is not None
    return study.report.text


def _rerank(context: Context, ids: Sequence[str], texts: Mapping[str, str],
            vectors: np.ndarray) -> tuple[Reranked, Reranked]:
    """The nearest texts of each image and images of each text, with cosine plus local score."""
    of_images, of_texts = vectors[: len(ids)], vectors[len(ids) :]
    found = nearest(of_images, of_texts, RERANKED), nearest(of_texts, of_images, RERANKED)
    wanted: list[set[int]] = [set(row) for row in found[0].tolist()]
    for text, row in enumerate(found[1].tolist()):
        for image in row:
            wanted[image].add(text)
    columns = [np.array(sorted(some)) for some in wanted]
    local = context.features.local_scores(context.dataset, ids, list(texts.values()), columns, context.report)
    if local is None:
        raise NotApplicable(f"{context.method.name} has no local score")
    weight = context.method.local_weight

    def score(image: int, text: int) -> float:
        cosine = of_images[image].astype(np.float64) @ of_texts[text].astype(np.float64)
        return float(cosine + weight * local[image][np.searchsorted(columns[image], text)])

    return (Reranked(found[0], np.array([[score(i, t) for t in row] for i, row in enumerate(found[0])], np.float32)),
            Reranked(found[1], np.array([[score(i, t) for i in row] for t, row in enumerate(found[1])], np.float32)))


@dataclass(frozen=True, slots=True)
class _Side:
    """The images, or the texts, of a predictions table."""

    vectors: np.ndarray  # (N, D) float16
    groups: list[str]
    text: np.ndarray  # (N,) index of its text
    classes: np.ndarray  # (N, C) bool
    reranked: Reranked | None  # items of the other side

    def relabelled(self, order: np.ndarray) -> _Side:
        """The same vectors with the texts' labels in another order (texts only)."""
        return replace(self, text=self.text[order], classes=self.classes[order])


def _read(predictions: Predictions) -> tuple[_Side, _Side]:
    """Images and texts."""
    table = predictions.table
    kinds = np.array(table.column("kind").to_pylist())
    ids = np.array(table.column("id").to_pylist())
    place = {kind: {id: i for i, id in enumerate(ids[kinds == kind].tolist())} for kind in ("image", "text")}
    sides = []
    for kind in ("image", "text"):
        part = table.filter(kinds == kind)
        flat = part.column("vector").combine_chunks().flatten().to_numpy(zero_copy_only=False)
        named = part.column("classes").to_pylist()
        classes = np.array([[c in names for c in predictions.extra["classes"]] for names in named], bool)
        text = np.array([place["text"][id] for id in part.column("text_id").to_pylist()])
        reranked = None
        if "nearest" in part.column_names:
            other = place["text" if kind == "image" else "image"]
            items = np.array([[other[id] for id in row] for row in part.column("nearest").to_pylist()])
            reranked = Reranked(items, np.array(part.column("score").to_pylist()))
        sides.append(_Side(flat.reshape(part.num_rows, -1), part.column("group").to_pylist(), text, classes, reranked))
    return sides[0], sides[1]


def _values(predictions: Predictions, permutations: int) -> dict[str, dict[str, np.ndarray]]:
    """By direction and metric the queries' values (1 + permutations, Q): the true ones, then of permuted reports."""
    images, texts = _read(predictions)
    rng = np.random.default_rng(0)
    orders = [np.arange(len(texts.text)), *(rng.permutation(len(texts.text)) for _ in range(permutations))]
    labelled = [texts.relabelled(order) for order in orders]
    return {
        "image_to_text": _query_values(images, texts, [(images, one) for one in labelled], predictions.extra["kind"]),
        "text_to_image": _query_values(texts, images, [(one, images) for one in labelled], predictions.extra["kind"]),
    }


def _query_values(queries: _Side, gallery: _Side, labellings: list[tuple[_Side, _Side]],
                  kind: str) -> dict[str, np.ndarray]:
    if kind == "exclusive":
        classes = [(q.classes, g.classes) for q, g in labellings]
        found = precision_at(queries.vectors, gallery.vectors, classes, KS, queries.reranked)
        return {f"precision@{k}": found[:, :, j] for j, k in enumerate(KS)}
    rank = ranks(queries.vectors, gallery.vectors, [(q.text, g.text) for q, g in labellings],
                 queries.reranked)
    return {f"recall@{k}": recall_at(rank, k) for k in KS} | {"mrr": 1 / rank, "median_rank": rank}


def _summary(name: str, values: np.ndarray) -> float:
    return float(np.median(values) if name == "median_rank" else np.mean(values))


def _metric(name: str, value: float, counts: dict[str, int]) -> Metric:
    if np.isnan(value):
        return Metric(name, None, reason="the gallery holds fewer than k items", counts=counts)
    if "median_rank" in name:
        return Metric(name, value, higher_is_better=False, range=(1.0, float(counts["gallery"])), counts=counts)
    return Metric(name, value, counts=counts)

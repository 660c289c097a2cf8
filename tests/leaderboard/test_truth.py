"""Labels, groups, masks, boxes and texts in predictions are the data set's, whatever numbers follow from others."""

from __future__ import annotations

import json
import zipfile
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import pytest

from prior_bench import label_scores, plugins, results
from prior_bench.digests import digest_json
from prior_bench.errors import UserError
from prior_bench.leaderboard import archive
from prior_bench.leaderboard.rebuild import problems
from prior_bench.leaderboard.truth import AtHand, check, manifest
from prior_bench.metrics.overlap import encode_mask
from prior_bench.task import Predictions
from prior_bench.types import Cell, Result

CASES = [("classification", "findings"), ("zero-shot", "place"), ("retrieval", "reports"), ("segmentation", "disc"),
         ("detection", "shapes")]


@pytest.fixture(autouse=True)
def toy_at_hand(toy_class, monkeypatch):
    monkeypatch.setitem(plugins._from_files["datasets"], "toy", toy_class)


def bare(name, target, toy):
    """Predictions as `predict` leaves them, of a method that guesses."""
    task, rng = plugins.load("tasks", name)(), np.random.default_rng(0)
    ids, spec = task.rows(toy, target), toy.target(target)
    if name in {"classification", "zero-shot"}:
        return label_scores.predictions(ids, spec.classes, rng.random((len(ids), 3)), probabilities=False,
                                        exclusive=spec.kind == "exclusive")
    if name == "retrieval":
        vectors = rng.normal(size=(len(ids), 4)).astype(np.float16).tolist()
        return Predictions(pa.table({"kind": ["image" if id.startswith("toy-") else "text" for id in ids], "id": ids,
                                     "vector": pa.array(vectors, pa.list_(pa.float16()))}))
    if name == "segmentation":
        masks = [encode_mask(rng.random((64, 64)) > 0.8) for _ in ids]
        return Predictions(pa.table({"image": ids, "height": pa.array([64] * len(ids), pa.int32()),
                                     "width": pa.array([64] * len(ids), pa.int32()), "prediction": masks}))
    boxes = pa.array([[[5, 5, 40, 40]]] * len(ids), pa.list_(pa.list_(pa.float32())))
    return Predictions(pa.table({"image": ids, "boxes": boxes,
                                 "scores": pa.array([[0.5]] * len(ids), pa.list_(pa.float32())),
                                 "labels": pa.array([[0]] * len(ids), pa.list_(pa.int16()))}),
                       {"classes": list(spec.classes)})


@pytest.fixture
def store(toy, tmp_path):
    """Stores a cell with its numbers, after an edit of its table; returns the folder and the result."""

    def make(name, target, edit=lambda table: table, **changes):
        task = plugins.load("tasks", name)()
        settings = digest_json(task.settings(type(toy), toy.target(target), task.modes[0], "standard"))
        cell = replace(Cell("ours", "small", "phantom", 0, "w", name, task.version, "standard", task.modes[0], settings,
                            "toy", toy.digest(), target, None), **changes)
        folder = tmp_path / "results"
        labelled = task.attach(toy, cell, bare(name, target, toy))
        edited = Predictions(edit(labelled.table), labelled.extra)
        results.write_result(folder, Result(cell, "done", task.score(edited)), edited)
        return folder, results.read_result(results.result_path(folder, cell))

    return make


def with_column(name, change):
    """An edit of one column: `change` takes and returns its values."""

    def edit(table):
        column = pa.array(change(table.column(name).to_pylist()), table.schema.field(name).type)
        return table.set_column(table.column_names.index(name), name, column)

    return edit


def first(value):
    """A change of the first value."""
    return lambda values: [value, *values[1:]]


@pytest.mark.parametrize(("name", "target"), CASES)
def test_what_a_task_wrote_is_accepted(store, toy, name, target):
    folder, result = store(name, target)
    at_hand = AtHand()
    assert check(folder, [result], at_hand) == (manifest(toy, [target]),)
    assert at_hand.missing == {}


@pytest.mark.parametrize(("case", "edit", "reason"), [
    (0, with_column("label_disc", lambda v: [1 - v[0], *v[1:]]), "label_disc is not that of toy in 1 of 27"),
    (0, with_column("label_bar", lambda v: v[::-1]), "label_bar is not that of toy in"),
    (0, with_column("group", first("alone")), "group is not that of toy in 1 of 27 rows"),
    (0, lambda table: table.slice(1), "not of the test set of toy/findings"),
    (0, lambda table: pa.concat_tables([table, table.slice(0, 1)]), "not of the test set of toy/findings"),
    (0, with_column("image", first("another")), "not of the test set of toy/findings"),
    (0, lambda table: table.append_column("label_more", table.column("label_disc")), "other columns"),
    (1, with_column("label_upper", lambda v: [1 - v[0], *v[1:]]), "label_upper is not that of toy in 1"),
    (2, with_column("text_id", lambda v: [v[1], *v[1:]]), "text_id is not that of toy in 1"),
    (2, with_column("classes", first(["x"])), "classes is not that of toy in 1"),
    (3, with_column("fp", first(0)), "fp is not that of toy in 1"),
    (3, with_column("truth", lambda v: [v[1], *v[1:]]), "truth is not that of toy in 1"),
    (3, with_column("height", first(10**6)), "toy does not fit the predictions: ValueError: toy-"),
    (4, with_column("gt_boxes", lambda values: [[[5, 5, 40, 40]] * len(v) for v in values]),
     "gt_boxes is not that of toy in"),
    (4, with_column("gt_labels", lambda values: [[0] * len(v) for v in values]),
     "gt_labels is not that of toy in"),
])
def test_changed_truth_is_refused_though_the_numbers_follow(store, case, edit, reason):
    folder, result = store(*CASES[case], edit)
    assert problems(folder, result) == []
    with pytest.raises(UserError, match=reason):
        check(folder, [result], AtHand())


def test_another_version_of_the_data_is_refused(store):
    folder, result = store(*CASES[0], data_digest="older")
    with pytest.raises(UserError, match=r"another version of toy .*\(digest older, here"):
        check(folder, [result], AtHand())


def test_cells_without_predictions_are_of_the_data_too(store):
    folder, result = store(*CASES[0], data_digest="older")
    with pytest.raises(UserError, match="another version of toy"):
        check(folder, [replace(result, status="not_applicable")], AtHand())


def test_data_that_is_not_here_is_told(store, monkeypatch):
    folder, result = store(*CASES[0], with_column("label_disc", lambda v: v[::-1]))
    monkeypatch.delitem(plugins._from_files["datasets"], "toy")
    at_hand = AtHand()
    assert check(folder, [result], at_hand) == ()
    assert list(at_hand.missing) == ["toy"]


def test_images_that_were_left_out(store, toy, toy_class):
    out = toy.ids("findings", "test")[0]
    fewer = toy_class(exclude=frozenset([out]))
    folder, result = store(*CASES[0], lambda table: table.slice(1), data_digest=fewer.digest())
    result.provenance["excluded_images"] = [out]
    assert check(folder, [result], AtHand()) == (manifest(fewer, ["findings"]),)


def test_a_manifest_tells_versions_apart_and_nothing_else(toy, toy_class):
    targets = [target for _, target in CASES]
    found = manifest(toy, targets)
    assert manifest(toy_class(), reversed(targets)) == found
    assert (found.splits["test"].images, found.splits["test"].groups) == (27, 24)
    text = json.dumps(asdict(found))
    assert not [id for id in toy.records if id in text]

    class Moved(toy_class):
        def load_labels(self, target):
            table = super().load_labels(target)
            return replace(table, values=1 - table.values)

        def load_mask(self, target, image_id):
            return 1 - super().load_mask(target, image_id)

    other = manifest(Moved(), targets)
    assert {t for t in targets if other.truth[t] != found.truth[t]} == {"findings", "place", "disc"}
    assert other.splits == found.splits


# -------------------------------------------------------------------------------------------- archives


def rezipped(path, change):
    with zipfile.ZipFile(path) as packed:
        files = {name: packed.read(name) for name in packed.namelist()}
    content = json.loads(files[archive.MANIFEST])
    change(content)
    with zipfile.ZipFile(path, "w") as packed:
        for name, data in (files | {archive.MANIFEST: json.dumps(content).encode()}).items():
            packed.writestr(name, data)


def test_an_archive_with_changed_labels_is_refused(store, tmp_path, monkeypatch):
    folder, _ = store(*CASES[0], with_column("label_disc", lambda v: v[::-1]))
    with pytest.raises(UserError, match="label_disc is not that of toy"):
        archive.pack(folder, tmp_path / "a.zip", AtHand())
    assert not (tmp_path / "a.zip").exists()
    with monkeypatch.context() as elsewhere:
        elsewhere.delitem(plugins._from_files["datasets"], "toy")
        assert list(archive.pack(folder, tmp_path / "a.zip", AtHand()).unchecked) == ["toy"]
    with pytest.raises(UserError, match="the archive is refused: label_disc is not that of toy") as error:
        archive.add([tmp_path / "a.zip"], tmp_path / "new", AtHand())
    assert f"{results.result_files(folder)[0].stem}.parquet" in str(error.value)
    assert list((tmp_path / "new").iterdir()) == []


def test_manifests_of_data_sets(store, toy, tmp_path):
    folder, _ = store(*CASES[0])
    store(*CASES[3])
    path = tmp_path / "a.zip"
    archive.pack(folder, path, AtHand())
    with zipfile.ZipFile(path) as packed:
        (stored,) = json.loads(packed.read(archive.MANIFEST))["data"]
    assert stored == asdict(manifest(toy, ["disc", "findings"]))
    rezipped(path, lambda content: content["data"][0]["splits"]["train"].update(groups=1))
    with pytest.raises(UserError, match="its manifest of toy is not that of the data set"):
        archive.add([path], tmp_path / "new", AtHand())
    rezipped(path, lambda content: content["data"][0].update(truth={"disc": 1}))
    with pytest.raises(UserError, match=r"not a manifest: data\[0\].truth.disc: 1, expected str"):
        archive.add([path], tmp_path / "new", AtHand())


@pytest.mark.parametrize(("changes", "expected"), [
    ({"settings_digest": "0" * 32}, "expected: settings "), ({"mode": "none"}, "a target, mode and profile"),
    ({"profile": "mine"}, "a target, mode and profile"), ({"task": "segmentation"}, "a target, mode and profile"),
])
def test_archives_of_other_settings_are_refused(store, toy, tmp_path, monkeypatch, changes, expected):
    """One such cell could take the place of all results of its table."""
    folder, result = store(*CASES[0])
    forged = replace(result.cell, method="forged", **changes)
    results.write_result(folder, Result(forged, "not_applicable"), None)
    reason = r"the settings are not those that this program has for \S+ on toy/findings"
    with pytest.raises(UserError, match=reason) as error:
        archive.pack(folder, tmp_path / "a.zip", AtHand())
    assert expected in str(error.value)
    with monkeypatch.context() as careless:
        careless.setattr(archive, "settings_digest", lambda cell: None)
        archive.pack(folder, tmp_path / "a.zip", AtHand())
    with pytest.raises(UserError, match=f"the archive is refused: {reason}") as error:
        archive.add([tmp_path / "a.zip"], tmp_path / "new", AtHand())
    for part in (forged.name, expected, "nothing was added"):
        assert part in str(error.value)
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("changes", [{"protocol_version": 7}, {"dataset": "elsewhere"}])
def test_settings_that_cannot_be_told_are_believed(store, tmp_path, changes):
    folder, result = store(*CASES[0])
    cell = replace(result.cell, settings_digest="s", **changes)
    results.write_result(folder, Result(cell, "not_applicable"), None)
    assert archive.pack(folder, tmp_path / "a.zip", AtHand()).cells == 2
    assert archive.add([tmp_path / "a.zip"], tmp_path / "new", AtHand()).cells == 2


def test_archives_without_manifests_of_data_sets_are_read(store, tmp_path):
    folder, _ = store(*CASES[0])
    path = tmp_path / "a.zip"
    archive.pack(folder, path, AtHand())
    rezipped(path, lambda content: (content.pop("data"), content.update(schema=1)))
    assert archive.add([path], tmp_path / "new", AtHand()) == archive.Done(1, 0, {})
    rezipped(path, lambda content: content.update(schema=3))
    with pytest.raises(UserError, match="version 3, this program reads version 1 and 2"):
        archive.add([path], tmp_path / "new", AtHand())

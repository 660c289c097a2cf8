"""Examples: the right images by the rule, outlines and boxes at the right pixels, and what is left out says so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from prior_bench import plugins, results
from prior_bench.grid import Request, open_dataset
from prior_bench.leaderboard.page import examples
from prior_bench.leaderboard.tables import known
from prior_bench.metrics.overlap import encode_mask
from prior_bench.task import Predictions
from prior_bench.tasks.retrieval import text_id
from prior_bench.types import Cell, Result

SIDE = 64  # of the toy images; four pixels of a tile are one of theirs


class Store:
    """Stores predictions on the toy data set, labelled by the task itself."""

    def __init__(self, folder, dataset):
        self.folder, self.dataset, self.memo = folder / "results", dataset, folder / "memo"
        self.assets, self.cache = folder / "assets", folder / "cache"
        self.digest = open_dataset("toy", Request([], cache=self.cache)).digest

    def __call__(self, method, task, target, predictions, fraction=None, **changes):
        kind = plugins.load("tasks", task)
        cell = replace(Cell(method, "small", "phantom", 0, f"w{method}", task, kind.version, "standard", kind.modes[0],
                            "s", "toy", self.digest, target, fraction), **changes)
        whole = kind().attach(self.dataset, cell, predictions)
        results.write_result(self.folder, Result(cell, "done", tuple(kind().score(whole)),
                                                 provenance={"finished": "2026-01-01"}), whole)

    def write(self, **options):
        return examples.write(known(self.folder, self.memo), self.folder, self.assets, None, self.cache, **options)


@pytest.fixture
def store(tmp_path, toy, toy_class, monkeypatch):
    monkeypatch.setitem(plugins._from_files["datasets"], "toy", toy_class)
    return Store(tmp_path, toy)


def cut(k):
    """Lines that are missing in the k-th image beside those that a method always misses."""
    return (2 * k + 3) % 5


def masks(toy, shrink):
    """The truth of every test image without its first lines, and so with a Dice of its own."""
    rows = []
    for k, id in enumerate(toy.ids("disc", "test")):
        mask = toy.load_mask("disc", id) == 1
        lines = np.flatnonzero(mask.any(axis=1))
        mask[lines[: shrink + cut(k)]] = False
        rows.append({"image": id, "height": SIDE, "width": SIDE, "prediction": encode_mask(mask)})
    return Predictions(pa.Table.from_pylist(rows))


def pixels(store, example):
    with Image.open(store.assets / example.image) as picture:
        return np.asarray(picture.convert("RGB"))


def tile(picture, k):
    """The k-th tile of a sheet, without its words."""
    height = examples.TILE + examples.LINE + examples.GAP
    y = examples.GAP + k // examples.COLUMNS * height
    x = examples.GAP + k % examples.COLUMNS * (examples.TILE + examples.GAP)
    return picture[y : y + examples.TILE, x : x + examples.TILE]


def is_colour(picture, colour):
    return (picture == colour).all(axis=2)


def test_outlines_lie_on_the_edges_of_the_masks(store, toy):
    store("good", "segmentation", "disc", masks(toy, 1), 0.1)
    store("poor", "segmentation", "disc", masks(toy, 4), 0.1)
    found, notes = store.write()
    assert notes == []
    with_disc = [id for id in toy.ids("disc", "test") if (toy.load_mask("disc", id) == 1).any()]
    assert f"Image {with_disc[0]} (the first by id of {len(with_disc)} test images with foreground)" in found[0].caption
    assert [e.title.rpartition(": ")[2] for e in found] == ["the first by id", "the median case", "the best case"]
    picture = pixels(store, found[0])
    assert not is_colour(tile(picture, 0), examples.TRUTH).any()
    scale = examples.TILE // SIDE
    truth = np.kron(toy.load_mask("disc", with_disc[0]) == 1, np.ones((scale, scale), bool))
    row = toy.ids("disc", "test").index(with_disc[0])
    for k, shrink in ((1, 1), (2, 4)):
        lines = np.flatnonzero(truth.any(axis=1))
        predicted = truth.copy()
        predicted[lines[: scale * (shrink + cut(row))]] = False
        orange = is_colour(tile(picture, k), examples.FOUND)
        blue = is_colour(tile(picture, k), examples.TRUTH)
        inner = predicted & ~orange
        assert (orange & ~predicted).sum() == 0
        assert orange.any() == predicted.any()
        edge = predicted & ~(np.roll(predicted, 1, 0) & np.roll(predicted, -1, 0) & np.roll(predicted, 1, 1)
                             & np.roll(predicted, -1, 1))
        np.testing.assert_array_equal(orange, edge)
        assert blue.any()
        assert not (blue & ~truth).any()
        assert inner.any()


def test_the_median_and_the_best_are_those_of_the_mean_score(store, toy):
    store("good", "segmentation", "disc", masks(toy, 1), 0.1)
    store("poor", "segmentation", "disc", masks(toy, 4), 0.1)
    found, _ = store.write()
    scores = {}
    for id in toy.ids("disc", "test"):
        mask, k = toy.load_mask("disc", id) == 1, toy.ids("disc", "test").index(id)
        if mask.any():
            dice = []
            for shrink in (1, 4):
                kept = mask.copy()
                kept[np.flatnonzero(mask.any(axis=1))[: shrink + cut(k)]] = False
                dice.append(2 * kept.sum() / (kept.sum() + mask.sum()))
            scores[id] = np.mean(dice)
    by_score = sorted(scores, key=lambda id: (-scores[id], id))
    chosen = [e.caption.split()[1] for e in found]
    assert chosen == [min(scores), by_score[len(by_score) // 2], by_score[0]]
    assert all("by the methods' mean Dice" in e.caption for e in found[1:])
    assert "good 0." in found[0].alt


def test_boxes_lie_where_they_were_predicted(store, toy):
    ids = toy.ids("shapes", "test")
    rows = [{"image": id, "boxes": [[8.0, 20.0, 24.0, 40.0], [0.0, 0.0, 5.0, 5.0]],
             "scores": [0.9, examples.SHOWN_SCORE / 2], "labels": [0, 1]} for id in ids]
    store("ours", "detection", "shapes", Predictions(pa.Table.from_pylist(rows), {"classes": ["disc", "bar", "cross"]}),
          1.0)
    found, _ = store.write()
    first = next(id for id in ids if len(toy.load_boxes("shapes", id).labels))
    assert f"Image {first} " in found[0].caption
    orange = is_colour(tile(pixels(store, found[0]), 1), examples.FOUND)
    scale = examples.TILE / SIDE
    lines = orange.sum(axis=1)
    assert lines[int(20 * scale)] >= 16 * scale  # the upper edge
    assert orange[int(22 * scale) : int(38 * scale), int(8 * scale)].all()
    assert orange[int(22 * scale) : int(38 * scale), int(24 * scale)].all()
    assert not orange[: int(6 * scale), : int(6 * scale)].any()  # its score is too low
    blue = is_colour(tile(pixels(store, found[0]), 1), examples.TRUTH)
    for left, top, right, bottom in toy.load_boxes("shapes", first).xyxy * scale:
        assert blue[round((top + bottom) / 2), [round(left) + 1, round(right) - 1]].sum() >= 1
    truth = len(toy.load_boxes("shapes", first).labels)
    assert f"of {truth} found" in found[0].alt


def vectors(toy, ids, own, noise, seed):
    """Joint vectors (unit length) of images near their report's."""
    rng = np.random.default_rng(seed)
    texts = sorted(set(own))
    of_texts = rng.normal(size=(len(texts), 16))
    of_images = of_texts[[texts.index(t) for t in own]] + noise * rng.normal(size=(len(ids), 16))
    both = np.concatenate([of_images, of_texts])
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    return Predictions(pa.table({
        "kind": ["image"] * len(ids) + ["text"] * len(texts), "id": [*ids, *texts],
        "vector": pa.array(both.astype(np.float16).tolist(), pa.list_(pa.float16()))})), both


def test_the_nearest_reports_and_the_rank_of_the_own(store, toy):
    ids = toy.ids("reports", "test")
    report = {id: toy.study_of[id].report.text for id in ids}
    own = [text_id(report[id]) for id in ids]
    texts = sorted(set(own))
    wording = {text_id(text): text for text in report.values()}
    made = {}
    for seed, method in enumerate(("ours", "theirs")):
        predictions, made[method] = vectors(toy, ids, own, 0.6, seed)
        store(method, "retrieval", "reports", predictions)
    found, notes = store.write()
    assert notes == []
    for example in found:
        k = ids.index(example.caption.split()[1])
        assert example.report == report[ids[k]]
        for answer in example.answers:
            both = made[answer.method].astype(np.float16).astype(float)
            similar = both[len(ids) :] @ both[k]
            order = np.argsort(-similar, kind="stable")
            assert answer.reports == tuple((wording[texts[i]], texts[i] == own[k]) for i in order[: examples.TOP])
            assert answer.rank == 1 + list(order).index(texts.index(own[k]))
        shown = np.asarray(toy.read_image(toy.records[ids[k]]).resize((examples.TILE,) * 2, Image.Resampling.BILINEAR))
        assert np.abs(pixels(store, example).astype(int)[..., 0] - shown).max() <= 1  # 128 greys


def test_real_images_are_left_out_unless_they_are_asked_for(store, toy, toy_class, monkeypatch):
    class Real(toy_class):
        needs_root = True

        @classmethod
        def find_root(cls, data_root=None):
            return data_root

    store("good", "segmentation", "disc", masks(toy, 1), 0.1)
    monkeypatch.setitem(plugins._from_files["datasets"], "toy", Real)
    found, (note,) = store.write()
    assert found == []
    assert "may not be passed on freely; --examples-of toy draws them" in note
    assert not store.assets.exists()
    found, notes = store.write(also=["toy"])
    assert len(found) == 3
    assert notes == []


def test_what_is_not_at_hand_is_a_note(store, toy, toy_class, monkeypatch):
    store("good", "segmentation", "disc", masks(toy, 1), 0.1, data_digest="another")
    found, (note,) = store.write()
    assert found == []
    assert "the data at hand are not those of the results" in note
    monkeypatch.delitem(plugins._from_files["datasets"], "toy")
    found, (note,) = store.write()
    assert found == []
    assert "unknown dataset 'toy'" in note


def test_an_image_that_cannot_be_read_is_a_note(store, toy, toy_class, monkeypatch):
    from prior_bench.errors import UserError

    class Broken(toy_class):
        def read_image(self, record):
            raise UserError("the image cannot be used: the file is empty", where=record.id)

    store("good", "segmentation", "disc", masks(toy, 1), 0.1)
    monkeypatch.setitem(plugins._from_files["datasets"], "toy", Broken)
    found, (note,) = store.write()
    assert found == []
    assert "the file is empty" in note


def test_equal_results_give_equal_bytes(store, toy):
    store("good", "segmentation", "disc", masks(toy, 1), 0.1)
    first = {e.image: (store.assets / e.image).read_bytes() for e in store.write()[0]}
    assert {e.image: (store.assets / e.image).read_bytes() for e in store.write()[0]} == first

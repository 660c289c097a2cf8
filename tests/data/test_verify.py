"""data verify: leaks, near-duplicates and broken values are found and named; a sound dataset has no errors."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from prior_bench.data.dataset import Boxes, LabelTable
from prior_bench.data.images import BadImage
from prior_bench.data.verify import NEAR, difference_hash, find_alike, summary, verify
from prior_bench.errors import UserError
from prior_bench.types import Report


def errors(dataset, **options):
    return [f for f in verify(dataset, **options) if f.severity == "error"]


def test_a_sound_dataset(toy):
    found = verify(toy)
    assert [f for f in found if f.severity != "info"] == []
    assert summary(found) == [f"{len(found)} info"]


def test_patient_in_two_splits(toy_class):
    class Leaking(toy_class):
        def load_studies(self):
            return [replace(s, group="same") if i in {0, 120} else s for i, s in enumerate(super().load_studies())]

    assert any("patient leaks" in f.what and f.where == "group same" for f in errors(Leaking()))


def smooth_picture():
    """Like a radiograph, and unlike the toy's noise, it keeps its gradients when it is resized."""
    coarse = np.random.default_rng(0).integers(0, 255, (9, 9), np.uint8)
    return Image.fromarray(coarse).resize((300, 300), Image.Resampling.BICUBIC)


def test_copies_of_one_image(toy_class):
    """A copy at another size and brightness in another split is an error, in the same split a warning."""
    class Copied(toy_class):
        def read_image(self, record):
            ids = sorted(self.records)
            if record.id not in {ids[10], ids[20], ids[-1]}:
                return super().read_image(record)
            picture = smooth_picture()
            return picture if record.id == ids[10] else picture.resize((97, 90)).point(lambda v: v * 0.8)

    dataset = Copied()
    ids = sorted(dataset.records)
    found = [f for f in verify(dataset) if "near-duplicates" in f.what]
    assert {(f.severity, f.where) for f in found} == {
        ("warning", f"{ids[10]} and {ids[20]}"), ("error", f"{ids[10]} and {ids[-1]}"),
        ("error", f"{ids[20]} and {ids[-1]}")}
    assert not [f for f in verify(dataset, near_duplicates=False) if "near-duplicates" in f.what]


def test_what_several_targets_miss_is_said_once(toy_class):
    class Incomplete(toy_class):
        def load_labels(self, target):
            raise UserError("a table of the dataset is missing", where="labels.csv")

    assert [f.where for f in errors(Incomplete())].count("labels.csv") == 1


def test_broken_values_are_named(toy_class):
    class Broken(toy_class):
        def load_labels(self, target):
            table = super().load_labels(target)
            values = table.values.copy()
            values[3, 0] = 2
            return LabelTable(table.ids, table.classes, values)

        def load_mask(self, target, image_id):
            mask = super().load_mask(target, image_id)
            return mask[:-1] if image_id == "toy-005" else mask * 7 if image_id == "toy-001" else mask

        def load_boxes(self, target, image_id):
            return Boxes(np.array([[1, 1, 90, 9]], np.float32), np.array([5])) if image_id == "toy-002" else (
                super().load_boxes(target, image_id))

        def load_studies(self):
            return [replace(s, report=Report({}, ())) if s.id == "study-toy-004" else s for s in super().load_studies()]

        def read_image(self, record):
            if record.id == "toy-006":
                raise BadImage("toy-006.png", "the file is empty", "copy it again")
            return super().read_image(record)

    found = errors(Broken())
    text = "\n".join(f"{f.what} | {f.where}" for f in found)
    for expected in ("labels other than 0, 1 and missing: [2.0, ", "findings of toy-003", "not exactly one class",
                     "the mask has (63, 64) pixels, its image (64, 64) (height, width) | disc of toy-005",
                     "[1.0, 1.0, 90.0, 9.0] is not inside 64 x 64 pixels | shapes of toy-002", "do not fit the boxes",
                     "the report is empty | reports of toy-004", "the file is empty", "toy-006.png"):
        assert expected in text, expected


def test_unreadable_table_ends_the_walk(toy_class):
    from prior_bench.errors import UserError

    class Torn(toy_class):
        def load_studies(self):
            raise UserError("the table lacks a column", where="table.csv", expected="one more")

    (finding,) = verify(Torn())
    assert (finding.what, finding.where) == ("the table lacks a column (expected: one more)", "table.csv")


@given(st.integers(0, 10_000))
def test_alike_equals_all_pairs(seed):
    """Sorting by band finds exactly the pairs that comparing all pairs finds."""
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 256, (6, 32), np.uint8)
    table = base[rng.integers(0, 6, 30)]
    bits = np.unpackbits(table, axis=1)
    for row in bits:
        row[rng.choice(256, rng.integers(0, 12), replace=False)] ^= 1
    hashes = {f"{i:02d}": h for i, h in enumerate(np.packbits(bits, axis=1))}
    want = [(a, b, int((bits[int(a)] != bits[int(b)]).sum())) for a in hashes for b in hashes if a < b]
    assert find_alike(hashes) == [p for p in want if p[2] <= NEAR]


def test_alike_with_many_equal():
    same = difference_hash(Image.new("L", (50, 50)))
    assert len(find_alike({str(i): same for i in range(40)})) == 40 * 39 / 2
    assert find_alike({"one": same}) == []


@pytest.mark.realdata
def test_real_duplicates_stay_in_one_group(realdata):
    """The pairs that near_duplicates.csv lists are found, and each lies inside one leak group."""
    import csv

    from prior_bench.datasets.covid_chestxray import CovidChestXray

    dataset = CovidChestXray(CovidChestXray.find_root(realdata))
    with open(realdata / "near_duplicates.csv", encoding="utf-8", newline="") as f:
        listed = {tuple(sorted((r["path_a"].split("/")[-1], r["path_b"].split("/")[-1]))) for r in csv.DictReader(f)}
    hashes = {i: difference_hash(dataset.read_image(r)) for i, r in dataset.records.items()}
    found = {(a, b) for a, b, _ in find_alike(hashes)}
    assert found == listed
    assert all(dataset.group_of(a) == dataset.group_of(b) for a, b in found)

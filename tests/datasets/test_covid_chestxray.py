"""covid-chestxray: what is decided on purpose, on a small copy of the owners' layout and on the real files."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from prior_bench.datasets.covid_chestxray import FINDINGS, CovidChestXray
from prior_bench.errors import UserError

HEADER = ("patientid", "offset", "sex", "finding", "view", "modality", "folder", "filename", "clinical_notes")
ROWS = [
    ("1", "0", "F", "Pneumonia/Viral/COVID-19", "PA", "X-ray", "images", "a.jpg", "Fever. Opacity of 1.5 cm."),
    ("1", "0", "F", "COVID-19", "L", "X-ray", "images", "a-side.jpg", "Fever. Opacity of 1.5 cm."),
    ("1", "0", "F", "COVID-19", "AP", "X-ray", "images", "a-2.jpg", "Fever. Opacity of 1.5 cm."),
    ("1", "4", "F", "COVID-19, ARDS", "AP Supine", "X-ray", "images", "b.jpg", "Fever. Opacity of 1.5 cm."),
    ("2", "", "M", "todo", "", "X-ray", "images", "c.png", ""),
    ("3", "", "M", "No Finding", "?", "X-ray", "images", "d.png", "Normal."),
    ("3", "", "M", "Klebsiella", "Axial", "CT", "volumes", "e.nii.gz", "CT."),
]


def write(root, rows=ROWS, header=HEADER):
    with open(root / "metadata.csv", "w", encoding="utf-8", newline="") as f:
        csv.writer(f).writerows([header, *rows])


@pytest.fixture
def root(tmp_path):
    """The owners' layout in small: RGB and grey images, a mask with ignored pixels, lung boxes."""
    root = tmp_path / "covid_chestxray"
    for folder in ("images", "masks_lungs_v7", "annotations"):
        (root / folder).mkdir(parents=True)
    write(root)
    for row in ROWS[:-1]:
        mode = "RGB" if row[7] == "a.jpg" else "L"
        Image.new(mode, (40, 30), (200, 100, 50) if mode == "RGB" else 90).save(root / "images" / row[7])
    mask = np.zeros((30, 40), np.uint8)
    mask[5:10], mask[20:] = 255, 127
    Image.fromarray(mask).save(root / "masks_lungs_v7" / "a.png")
    coco = {"images": [{"id": 1, "file_name": "a.jpg", "width": 80, "height": 60}],
            "categories": [{"id": 1, "name": "Right Lung"}, {"id": 2, "name": "Left Lung"}],
            "annotations": [{"image_id": 1, "category_id": 2, "bbox": [40, 10, 20, 30]}]}
    (root / "annotations/lung_boxes_generalblockchain.coco.json").write_text(json.dumps(coco))
    return root


def test_studies(root):
    dataset = CovidChestXray(root)
    got = {s.id: [i.id for i in s.images] for s in dataset.studies}
    assert got == {"1/a.jpg": ["a.jpg", "a-2.jpg"], "1/b.jpg": ["b.jpg"], "2/c.png": ["c.png"], "3/d.png": ["d.png"]}
    assert dataset.records["c.png"].view is None
    assert dataset.records["d.png"].view is None
    assert dataset.records["b.jpg"].view == "AP Supine"
    assert dataset.study_of["a.jpg"].report.sentences == ("Fever.", "Opacity of 1.5 cm.")
    assert dataset.study_of["c.png"].report is None
    assert len({(s.group, s.split) for s in dataset.studies if s.group == "1"}) == 1


def test_left_out(root):
    Image.new("L", (4, 4)).save(root / "images" / "stray.png")
    reasons = [(where.rpartition("/")[2], why) for where, why in CovidChestXray(root).left_out()]
    assert reasons == [("metadata.csv, line 3: a-side.jpg", "lateral view"),
                       ("metadata.csv, line 8: e.nii.gz", "not an X-ray image (CT)"),
                       ("stray.png", "metadata.csv has no row for it")]


def test_targets(root):
    dataset = CovidChestXray(root)
    ids = {t: sorted(i for s in ("train", "validation", "test") for i in dataset.ids(t, s)) for t in dataset.targets}
    assert ids == {"covid_notes": ["a-2.jpg", "a.jpg", "b.jpg", "d.png"], "lungs": ["a.jpg"], "lung_boxes": ["a.jpg"],
                   "covid": ["a-2.jpg", "a.jpg", "b.jpg", "d.png"]}
    assert not dataset.targets["covid"].default
    mask = dataset.load_mask("lungs", "a.jpg")
    assert {int(v): int((mask == v).sum()) for v in np.unique(mask)} == {0: 600, 1: 200, 255: 400}
    boxes = dataset.load_boxes("lung_boxes", "a.jpg")
    np.testing.assert_allclose(boxes.xyxy, [[20, 5, 30, 20]])  # declared at 80 x 60, stored at 40 x 30
    assert boxes.labels.tolist() == [1]


def test_findings_imply_their_parents(root):
    table = CovidChestXray(root).labels("covid")
    positive = {id: {f for f, v in zip(FINDINGS, table.rows([id])[0], strict=True) if v == 1} for id in table.ids}
    covid = {"Pneumonia", "Viral Pneumonia", "COVID-19"}
    assert positive == {"a.jpg": covid, "a-2.jpg": covid, "b.jpg": covid | {"ARDS"}, "d.png": {"No Finding"}}


@pytest.mark.parametrize(("column", "value", "where"), [
    ("finding", "Covid19", "line 2"), ("filename", "b.jpg", "line 5")])
def test_bad_values(root, column, value, where):
    rows = [list(r) for r in ROWS]
    rows[0][HEADER.index(column)] = value
    write(root, rows)
    with pytest.raises(UserError, match=f"'{column}' holds '{value}'") as error:
        CovidChestXray(root).labels("covid")
    assert error.value.where.endswith(where)


def test_missing_column(root):
    write(root, [r[:-1] for r in ROWS], HEADER[:-1])
    with pytest.raises(UserError, match="lacks the column 'clinical_notes'"):
        _ = CovidChestXray(root).studies


def test_missing_annotations(root):
    (root / "masks_lungs_v7" / "a.png").unlink()
    with pytest.raises(UserError, match="lung masks"):
        CovidChestXray(root).ids("lungs", "train")
    (root / "annotations/lung_boxes_generalblockchain.coco.json").unlink()
    with pytest.raises(UserError, match="annotation file"):
        CovidChestXray(root).ids("lung_boxes", "train")


def test_index_gives_split_and_group(root):
    lines = [f"covid_chestxray/images/{r[7]},covid_chestxray,{'val' if r[0] == '1' else 'test'},g{r[0]}" for r in ROWS]
    (root.parent / "index.csv").write_text("path,dataset,split,leak_group\n" + "\n".join(lines[:-1]))
    dataset = CovidChestXray(root)
    assert {(s.group, s.split) for s in dataset.studies} == {("g1", "validation"), ("g2", "test"), ("g3", "test")}
    (root.parent / "index.csv").write_text("path,dataset,split,leak_group\n" + "\n".join(lines[1:]))
    with pytest.raises(UserError, match=r"'filename' holds 'a.jpg'"):
        _ = CovidChestXray(root).studies


def test_digest_follows_content(root, tmp_path):
    first = CovidChestXray(root, cache=tmp_path / "memo").digest()
    assert CovidChestXray(root).digest() == first
    assert CovidChestXray(root, exclude=frozenset({"a.jpg"})).digest() != first
    write(root, ROWS[:-1])
    second = CovidChestXray(root, cache=tmp_path / "memo").digest()
    Image.new("L", (4, 4)).save(root / "images" / "c.png")
    assert len({first, second, CovidChestXray(root).digest()}) == 3


# ----------------------------------------------------------------------------------------- real files


@pytest.fixture(scope="module")
def real(realdata):
    return CovidChestXray(CovidChestXray.find_root(realdata))


@pytest.mark.realdata
def test_real_counts(real, realdata):
    """400 images less 42 lateral ones; the published counts of tasks.json where laterals play no part."""
    assert len(real.records) == 358
    assert len(real.left_out()) == 42
    counts = {t: [len(real.ids(t, s)) for s in ("train", "validation", "test")] for t in real.targets}
    published = {t["name"]: list(t["splits"].values()) for t in json.loads((realdata / "tasks.json").read_text())}
    assert counts["lungs"] == published["lung_segmentation_v7"]
    assert counts["lung_boxes"] == published["lung_box_detection"]
    assert counts["covid_notes"] == [170, 35, 49]
    assert len({r.text for s in real.studies if (r := s.report)}) == 233  # two differ in punctuation


@pytest.mark.realdata
def test_real_groups_stay_in_one_split(real):
    splits = {}
    for study in real.studies:
        splits.setdefault(study.group, set()).add(study.split)
    assert all(len(s) == 1 for s in splits.values())


@pytest.mark.realdata
def test_real_labels_agree_with_the_derived_table(real, realdata):
    table = real.labels("covid")
    with open(realdata / "covid_chestxray/labels.csv", encoding="utf-8", newline="") as f:
        derived = {r["filename"]: r for r in csv.DictReader(f)}
    for id in real.records:
        blank = derived[id]["Pneumonia"] == ""
        assert blank == (id not in table.ids)
        if not blank:
            assert table.rows([id])[0].tolist() == [float(derived[id][c]) for c in FINDINGS]


@pytest.mark.realdata
def test_real_masks_and_boxes(real):
    masked = [i for s in ("train", "validation", "test") for i in real.ids("lungs", s)]
    kinds = Counter(tuple(np.unique(real.load_mask("lungs", i)).tolist()) for i in masked)
    assert kinds == {(0, 1): 178, (0, 1, 255): 14}
    boxed = [i for s in ("train", "validation", "test") for i in real.ids("lung_boxes", s)]
    assert sum(len(real.load_boxes("lung_boxes", i).labels) for i in boxed) == 706

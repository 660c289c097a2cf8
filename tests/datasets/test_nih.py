"""nih: headers cut by commas, label spellings, official lists, RSNA's tables; on a small copy and on the real files."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from prior_bench.datasets.nih import FINDINGS, Nih
from prior_bench.errors import UserError

ENTRY = "Image Index,Finding Labels,Follow-up #,Patient ID,View Position,OriginalImage[Width,Height],Spacing[x,y]"
ROWS = [f"{p:08d}_{k:03d}.png,{labels},{k},{p},PA,2000,2000,0.1,0.1"
        for p, k, labels in ((1, 0, "Cardiomegaly|Effusion"), (1, 1, "No Finding"), (2, 0, "Infiltrate"), (3, 0, ""),
                             (4, 0, "Hernia"))]
NAMES = [r.split(",")[0] for r in ROWS]


def entry(root, rows=ROWS, header=ENTRY):
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join([header, *rows]))


@pytest.fixture
def root(tmp_path):
    """The owners' layout in small; images of 64 px stand for the 1024 px that were annotated."""
    root = tmp_path / "nih"
    (root / "images").mkdir(parents=True)
    (root / "rsna").mkdir()
    entry(root)
    for name in NAMES:
        Image.new("L", (64, 64), 90).save(root / "images" / name)
    (root / "BBox_List_2017.csv").write_text(
        f"Image Index,Finding Label,Bbox [x,y,w,h],,,\n{NAMES[2]},Infiltrate,512,256,128,64\n")
    (root / "rsna/rsna_to_nih.csv").write_text(f"patientId,nih_image,match_mse\np1,{NAMES[0]},1\np2,{NAMES[1]},1\n")
    (root / "rsna/stage_2_detailed_class_info.csv").write_text(
        "patientId,class\np1,Lung Opacity\np1,Lung Opacity\np2,Normal\nelsewhere,Normal\n")
    (root / "rsna/stage_2_train_labels.csv").write_text(
        "patientId,x,y,width,height,Target\np1,0,0,512,256,1\np1,512,512,512,512,1\np2,,,,,0\nelsewhere,,,,,0\n")
    return root


def all_ids(dataset, target):
    return sorted(i for s in ("train", "validation", "test") for i in dataset.ids(target, s))


@pytest.mark.parametrize("header", [ENTRY, ENTRY.replace(" ", "_").replace("[", "").replace("]", "")])
def test_labels(root, header):
    entry(root, header=header)
    dataset = Nih(root)
    table = dataset.labels("nih14")
    positive = {id: {f for f, v in zip(FINDINGS, table.rows([id])[0], strict=True) if v == 1} for id in table.ids}
    assert positive == {NAMES[0]: {"Cardiomegaly", "Effusion"}, NAMES[1]: set(), NAMES[2]: {"Infiltration"},
                        NAMES[4]: {"Hernia"}}  # NAMES[3] has a blank label: missing, not negative
    assert len(dataset.records) == 5
    assert dataset.group_of(NAMES[0]) == dataset.group_of(NAMES[1]) == "1"


def test_rsna_covers_only_its_images(root):
    dataset = Nih(root)
    assert all_ids(dataset, "rsna_3class") == all_ids(dataset, "rsna_opacity") == NAMES[:2]
    assert dataset.labels("rsna_3class").rows(NAMES[:2]).tolist() == [[0, 0, 1], [1, 0, 0]]
    np.testing.assert_allclose(dataset.load_boxes("rsna_opacity", NAMES[0]).xyxy, [[0, 0, 32, 16], [32, 32, 64, 64]])
    assert dataset.load_boxes("rsna_opacity", NAMES[1]).xyxy.shape == (0, 4)
    assert sorted(why for _, why in dataset.left_out()) == ["rsna_to_nih.csv gives no image for it"] * 2


def test_bounding_boxes(root):
    dataset = Nih(root)
    assert all_ids(dataset, "nih_boxes") == [NAMES[2]]
    boxes = dataset.load_boxes("nih_boxes", NAMES[2])
    np.testing.assert_allclose(boxes.xyxy, [[32, 16, 40, 20]])
    assert dataset.targets["nih_boxes"].classes[boxes.labels[0]] == "Infiltration"


@pytest.mark.parametrize(("file", "old", "new", "what"), [
    ("Data_Entry_2017_v2020.csv", "Hernia", "Hernias", "'Finding Labels' holds 'Hernias'"),
    ("Data_Entry_2017_v2020.csv", "No Finding", "No Finding|Edema", r"No Finding\|Edema"),
    ("Data_Entry_2017_v2020.csv", "00000001_001", "00000001_000", "'Image Index' holds '00000001_000.png'"),
    ("Data_Entry_2017_v2020.csv", "Patient ID", "Person", "lacks the column 'Patient ID'"),
    ("BBox_List_2017.csv", "Infiltrate", "Infusion", "'Finding Label' holds 'Infusion'"),
    ("BBox_List_2017.csv", "512,256", "1000,256", "leaves its image"),
    ("BBox_List_2017.csv", "512,256", "a,256", r"'Bbox \[x' holds 'a'"),
    ("rsna/stage_2_detailed_class_info.csv", "p2,Normal", "p2,Fine", "'class' holds 'Fine'"),
    ("rsna/stage_2_detailed_class_info.csv", "p2,Normal", "p1,Normal", "'class' holds 'Normal'"),
    ("rsna/stage_2_train_labels.csv", "p2,,,,,0", "p2,,,,,1", "'Target' holds '1'"),
    ("rsna/stage_2_train_labels.csv", "p2,,,,,0", "p2,,,,,2", "'Target' holds '2'"),
    ("rsna/stage_2_train_labels.csv", "512,512,512,512,1", "512,512,0,512,1", "no area"),
    ("rsna/rsna_to_nih.csv", "p2", "p1", "'patientId' holds 'p1'"),
])
def test_bad_values(root, file, old, new, what):
    path = root / file
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=what) as error:
        walk(Nih(root))
    assert file in error.value.where
    assert error.value.fix


def walk(dataset):
    for target, spec in dataset.targets.items():
        for id in all_ids(dataset, target):
            if spec.kind == "boxes":
                dataset.load_boxes(target, id)


def test_missing_tables(root):
    (root / "rsna/rsna_to_nih.csv").unlink()
    with pytest.raises(UserError, match="table of the dataset is missing"):
        Nih(root).labels("rsna_3class")
    (root / "Data_Entry_2017_v2020.csv").unlink()
    with pytest.raises(UserError, match="table of the dataset is missing") as error:
        _ = Nih(root).studies
    assert "Data_Entry_2017.csv" in error.value.where


def test_missing_image_is_met_when_decoding(root):
    """So that `--max-bad-images` can leave it out."""
    (root / "images" / NAMES[4]).unlink()
    dataset = Nih(root)
    with pytest.raises(UserError, match="does not exist"):
        dataset.read_image(dataset.records[NAMES[4]])


def test_images_in_numbered_folders(root):
    (root / "images_001").mkdir()
    (root / "images").rename(root / "images_001" / "images")
    dataset = Nih(root)
    assert dataset.read_image(dataset.records[NAMES[0]]).size == (64, 64)


def test_official_lists(root):
    many = [f"{p:08d}_000.png,Edema,0,{p},PA,1,1,0.1,0.1" for p in range(10, 50)]
    entry(root, ROWS + many)
    names = NAMES + [r.split(",")[0] for r in many]
    (root / "train_val_list.txt").write_text("\n".join(names[:2] + names[3:40]))
    (root / "test_list.txt").write_text("\n".join([names[2], *names[40:]]))
    dataset = Nih(root)
    split = {i: dataset.study_of[i].split for i in names}
    assert {i for i in names if split[i] == "test"} == {names[2], *names[40:]}
    assert split[names[0]] == split[names[1]]
    assert sum(s == "validation" for s in split.values()) in {4, 5, 6}
    (root / "test_list.txt").write_text("\n".join([names[1], names[2], *names[40:]]))
    with pytest.raises(UserError, match="patient 1 is in both"):
        _ = Nih(root).studies
    (root / "test_list.txt").write_text("\n".join(names[40:]))
    with pytest.raises(UserError, match="patient 2 is in neither"):
        _ = Nih(root).studies


@pytest.mark.parametrize("target", ["nih14", "rsna_3class"])
def test_prompts(target):
    dataset = Nih()
    prompts = dataset.prompts(target)
    assert list(prompts) == list(dataset.targets[target].classes)
    assert all(p.positive for p in prompts.values())
    assert all(bool(p.negative) == (target == "nih14") for p in prompts.values())


def test_prompts_of_boxes():
    with pytest.raises(UserError, match="has no prompts"):
        Nih().prompts("rsna_opacity")


# ----------------------------------------------------------------------------------------- real files


@pytest.fixture(scope="module")
def real(realdata):
    return Nih(Nih.find_root(realdata))


@pytest.mark.realdata
def test_real_counts(real, realdata):
    published = {t["name"]: t for t in json.loads((realdata / "tasks.json").read_text())}
    for target, name in (("nih14", "nih14_multilabel"), ("rsna_3class", "rsna_3class"),
                         ("rsna_opacity", "rsna_opacity_detection"), ("nih_boxes", "nih_bbox_detection")):
        counts = [len(real.ids(target, s)) for s in ("train", "validation", "test")]
        assert counts == list(published[name]["splits"].values()), target
    boxes = [len(real.load_boxes("rsna_opacity", i).labels) for i in all_ids(real, "rsna_opacity")]
    assert (sum(boxes), sum(n > 0 for n in boxes)) == (37, 29)
    positives = dict(zip(FINDINGS, real.labels("nih14").values.sum(0).tolist(), strict=True))
    expected = published["nih14_multilabel"]["positives"]
    assert positives == {f: expected[f] for f in FINDINGS}


@pytest.mark.realdata
def test_real_labels_agree_with_the_derived_table(real, realdata):
    with open(realdata / "nih/labels.csv", encoding="utf-8", newline="") as f:
        derived = {r["Image Index"]: [float(r[c]) for c in FINDINGS] for r in csv.DictReader(f)}
    table = real.labels("nih14")
    assert set(derived) == set(table.ids)
    np.testing.assert_array_equal(table.rows(list(derived)), list(derived.values()))


@pytest.mark.realdata
@pytest.mark.parametrize(("target", "file"), [("rsna_opacity", "rsna_pneumonia"), ("nih_boxes", "bbox_list_2017")])
def test_real_boxes_agree_with_the_derived_coco(real, realdata, target, file):
    """Our scaling from 1024 px to the stored 320 px against boxes that others scaled."""
    coco = json.loads((realdata / f"nih/annotations/{file}.coco.json").read_text())
    name = {i["id"]: i["file_name"] for i in coco["images"]}
    want = {}
    for a in coco["annotations"]:
        x, y, w, h = a["bbox"]
        want.setdefault(name[a["image_id"]], []).append([x, y, x + w, y + h])
    for id in all_ids(real, target):
        got, expected = real.load_boxes(target, id).xyxy.tolist(), want.get(id, [])
        assert len(got) == len(expected)
        np.testing.assert_allclose(sorted(got), sorted(expected), atol=0.02)


@pytest.mark.realdata
def test_real_digest_is_quick_and_stable(real, tmp_path):
    from time import perf_counter

    first = Nih(real.root, cache=tmp_path).digest()
    start = perf_counter()
    assert Nih(real.root, cache=tmp_path).digest() == first == real.digest()
    assert perf_counter() - start < 2  # about 0.02 s

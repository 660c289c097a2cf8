"""Readers of tables, masks, boxes and prompts: every bad value gives an error that names file, row, column and fix."""

import json

import numpy as np
import pytest
from PIL import Image

from prior_bench.data import readers
from prior_bench.errors import UserError


def table(tmp_path, text, encoding="utf-8"):
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode(encoding))
    return path


def test_table_with_renamed_headers_and_a_byte_order_mark(tmp_path):
    path = table(tmp_path, '\ufeffImage_Index, PATIENT ID ,"Bbox [x",y\na.png,1,"2, 3", x \n\n')
    rows = readers.read_table(path, ("Image Index", "Patient ID", "Bbox [x", "y"), key="Image Index")
    assert [dict(r.values) for r in rows] == [{"Image Index": "a.png", "Patient ID": "1", "Bbox [x": "2, 3", "y": "x"}]
    assert rows[0].line == 2


@pytest.mark.parametrize(("text", "encoding", "what", "where"), [
    ("id,b\n1,2\n", "utf-8", "lacks the column 'a'", "table.csv"),
    ("id,a\n1,2\n2,3\n1,4\n", "utf-8", "'id' holds '1'", "line 4"),
    ("id,a\n,2\n", "utf-8", "'id' holds ''", "line 2"),
    ("id,a\n1,é\n", "latin1", "not UTF-8 text: byte 0xe9", "table.csv"),
    ("id,a\n1\n", "utf-8", "the row has 1 values", "line 2"),
    ('id,a\n1,"2', "utf-8", "no valid csv", "table.csv"),
    ("", "utf-8", "lacks the column 'id' and 'a'", "table.csv"),
])
def test_bad_tables(tmp_path, text, encoding, what, where):
    with pytest.raises(UserError, match=what) as error:
        readers.read_table(table(tmp_path, text, encoding), ("id", "a"), key="id")
    assert where in error.value.where
    assert error.value.fix


def test_missing_table(tmp_path):
    with pytest.raises(UserError, match="missing"):
        readers.read_table(tmp_path / "none.csv", ("id",))


def test_numbers(tmp_path):
    row, blank, word, infinite = readers.read_table(table(tmp_path, "a,b\n1.5,x\n,x\nten,x\ninf,x\n"), ("a", "b"))
    assert row.number("a") == 1.5
    assert blank.number("a") is None
    for bad in (word, infinite):
        with pytest.raises(UserError, match="'a' holds"):
            bad.number("a")
    with pytest.raises(UserError, match="'b' holds 'x'") as error:
        readers.check_value(row, "b", ("y", "z"))
    assert error.value.expected == "one of y, z"


def test_index(tmp_path):
    root = tmp_path / "mine"
    assert readers.read_index(root) is None
    header = "path,dataset,split,leak_group\n"
    (tmp_path / "index.csv").write_text(header + "mine/images/a.png,mine,val,p1\nother/images/b.png,other,train,p2\n")
    assert readers.read_index(root) == {"a.png": ("validation", "p1")}
    assert readers.read_index(tmp_path / "third") is None
    (tmp_path / "index.csv").write_text(header + "mine/images/a.png,mine,dev,p1\n")
    with pytest.raises(UserError, match="'split' holds 'dev'"):
        readers.read_index(root)


def test_masks(tmp_path):
    path = tmp_path / "m.png"
    Image.fromarray(np.array([[0, 127, 255]], np.uint8)).save(path)
    values = {0: 0, 127: 255, 255: 1}
    np.testing.assert_array_equal(readers.read_mask(path, (1, 3), values), [[0, 255, 1]])
    with pytest.raises(UserError, match="the mask has 1 x 3 pixels, its image 2 x 6"):
        readers.read_mask(path, (2, 6), values)
    with pytest.raises(UserError, match=r"grey values \[127\]"):
        readers.read_mask(path, (1, 3), {0: 0, 255: 1})
    with pytest.raises(UserError, match="does not exist"):
        readers.read_mask(tmp_path / "none.png", (1, 3), values)


def test_boxes_are_scaled_to_the_stored_image():
    got = readers.place_boxes([[102.4, 204.8, 512, 256]], (1024, 1024), (320, 640), "here")
    np.testing.assert_allclose(got, [[64, 64, 384, 144]], rtol=1e-5)
    assert readers.place_boxes([], (10, 10), (10, 10), "here").shape == (0, 4)


def test_boxes_that_stick_out():
    inside = readers.place_boxes([[-0.9, 0, 101.5, 50]], (50, 100), (50, 100), "here")  # rounding: cut
    np.testing.assert_allclose(inside, [[0, 0, 100, 50]])
    for box, what in (([90, 0, 20, 10], "leaves its image"), ([-5, 0, 10, 10], "leaves its image"),
                      ([500, 500, 10, 10], "leaves its image"), ([5, 5, 0, 3], "no area")):
        with pytest.raises(UserError, match=what) as error:
            readers.place_boxes([box], (50, 100), (50, 100), "boxes.json, a.png")
        assert error.value.where == "boxes.json, a.png"


COCO = {"categories": [{"id": 7, "name": "b"}, {"id": 3, "name": "a"}, {"id": 9, "name": "other"}],
        "images": [{"id": 1, "file_name": "x.png", "width": 20, "height": 10},
                   {"id": 2, "file_name": "y.png", "width": 5, "height": 5}],
        "annotations": [{"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]},
                        {"image_id": 1, "category_id": 9, "bbox": [0, 0, 1, 1]}]}


def test_coco(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(COCO))
    found = readers.read_coco(path, ("a", "b"))
    assert found["x.png"].size == (10, 20)
    assert found["x.png"].xywh.tolist() == [[1, 2, 3, 4]]
    assert found["x.png"].labels.tolist() == [1]
    assert found["y.png"].xywh.shape == (0, 4)


LOST = {"image_id": 5, "category_id": 7, "bbox": [1, 2, 3, 4]}  # of an image that is not listed


@pytest.mark.parametrize("content", ["{", "[]", '{"images": []}', json.dumps(COCO | {"annotations": [LOST]})])
def test_bad_coco(tmp_path, content):
    path = tmp_path / "c.json"
    path.write_text(content)
    with pytest.raises(UserError, match="COCO") as error:
        readers.read_coco(path, ("a", "b"))
    assert error.value.where == str(path)


def test_missing_coco(tmp_path):
    with pytest.raises(UserError, match="missing"):
        readers.read_coco(tmp_path / "c.json", ("a",))


def test_fingerprint_follows_content(tmp_path):
    path = table(tmp_path, "a\n1\n")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"123")

    def taken():
        files = readers.list_files(tmp_path / "images")
        return readers.fingerprint([path, tmp_path / "none.csv"], files, tmp_path / "memo")

    first = taken()
    assert taken() == first
    assert first["files"] == [["a.png", 3]]
    assert list(first["tables"]) == ["table.csv"]
    path.write_text("a\n2\n3\n")
    second = taken()
    (tmp_path / "images" / "a.png").write_bytes(b"1234")
    assert len({str(first), str(second), str(taken())}) == 3


def test_prompts(tmp_path):
    path = tmp_path / "p.yaml"
    path.write_text("source: made up\nt:\n  A: {positive: [yes, so], negative: [none]}\n  B: {positive: [b]}\n")
    found = readers.read_prompts(path)
    assert found["t"]["B"].negative == ()
    assert list(found) == ["t"]

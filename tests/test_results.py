"""The result store: what is written is read back, nothing half-written counts, the schema is strict."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prior_bench import results
from prior_bench.errors import UserError
from prior_bench.task import Predictions
from prior_bench.types import Cell, Metric, Result

CELL = Cell("prior", "small", "phantom", 0, "w", "classification", 1, "standard", "linear", "s",
            "phantom", "d", "findings", 0.1)
METRICS = (Metric("auroc_macro", 0.75, counts={"images": 3}), Metric("f1", None, reason="no positives"))
RESULT = Result(CELL, "done", METRICS,
                details={"penalty": [1e-6, 1.0]}, provenance={"seconds": {"fit": 1.5}})


def predictions() -> Predictions:
    table = pa.table({"image": ["a", "b"], "group": ["g", "g"], "score": [0.1, 0.9]})
    return Predictions(table, {"thresholds": [0.5]})


def test_round_trip(tmp_path):
    path = results.write_result(tmp_path, RESULT, predictions())
    (again,) = results.read_results(tmp_path)
    assert path.name == f"{CELL.name}.json"
    assert replace(again, provenance={}) == replace(RESULT, provenance={})
    read = results.read_predictions(tmp_path, again)
    assert read.table.equals(predictions().table)
    assert read.extra == {"thresholds": [0.5]}
    assert results.is_done(tmp_path, CELL)
    assert not [p for p in tmp_path.iterdir() if p.suffix == ".tmp"]


def test_not_applicable_has_no_predictions(tmp_path):
    result = Result(CELL, "not_applicable", reason="too small")
    results.write_result(tmp_path, result, None)
    assert next(results.read_results(tmp_path)).reason == "too small"
    with pytest.raises(ValueError, match="predictions exactly when"):
        results.write_result(tmp_path, result, predictions())


def test_predictions_come_first(tmp_path, monkeypatch):
    """A kill between the two files leaves a cell that is not done."""
    names = []
    write = results.write_file
    monkeypatch.setattr(results, "write_file", lambda path, *more, **named: (names.append(path.suffix),
                                                                             write(path, *more, **named)))
    results.write_result(tmp_path, RESULT, predictions())
    assert names == [".parquet", ".json"]


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "{}"])
def test_a_broken_result_is_not_done(tmp_path, text):
    path = results.write_result(tmp_path, RESULT, predictions())
    path.write_text(text)
    assert not results.is_done(tmp_path, CELL)
    results.write_result(tmp_path, RESULT, predictions())
    assert results.is_done(tmp_path, CELL)


def test_a_result_under_the_name_of_another_cell_is_not_done(tmp_path):
    other = replace(CELL, fraction=1.0)
    results.write_result(tmp_path, RESULT, predictions())
    for path in (results.result_path, results.predictions_path):
        path(tmp_path, CELL).rename(path(tmp_path, other))
    assert not results.is_done(tmp_path, other)


def test_failure_while_writing_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        results.write_result(tmp_path, RESULT, predictions())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("change", "message"), [
    (lambda r: r | {"extra": 1}, "unknown field 'extra'"),
    (lambda r: r | {"cell": r["cell"] | {"colour": "red"}}, "unknown field 'cell.colour'"),
    (lambda r: {k: v for k, v in r.items() if k != "status"}, "missing field 'status'"),
    (lambda r: r | {"schema": 2}, "version 2, this program reads version 1"),
    (lambda r: r | {"status": "fine"}, "'fine', expected one of 'done'"),
    (lambda r: r | {"cell": r["cell"] | {"pretrain_seed": "0"}}, "cell.pretrain_seed: '0', expected int"),
    (lambda r: r | {"cell": r["cell"] | {"pretrain_seed": True}}, "expected int"),
    (lambda r: r | {"metrics": [r["metrics"][0] | {"value": "x"}]}, r"metrics\[0\].value: 'x', expected a number"),
    (lambda r: r | {"metrics": [r["metrics"][0] | {"range": [0.0]}]}, r"metrics\[0\].range"),
    (lambda r: r | {"metrics": {}}, "expected a list"),
    (lambda r: r | {"reason": "\ud800"}, "surrogates not allowed"),
    (lambda r: r | {"provenance": {"method": "x"}}, "provenance.method: 'x', expected an object"),
    (lambda r: r | {"provenance": {"method": {"note": 1}}}, "provenance.method.note: 1, expected str"),
    (lambda r: r | {"provenance": {"notes": 1}}, "provenance.notes: 1, expected a list"),
    (lambda r: r | {"provenance": {"notes": [None]}}, r"provenance.notes\[0\]: None, expected str"),
    (lambda r: r | {"provenance": {"excluded_images": 3}}, "provenance.excluded_images: 3, expected a list"),
    (lambda r: r | {"provenance": {"weights": 1}}, "provenance.weights: 1, expected an object"),
    (lambda r: r | {"provenance": {"recipe": []}}, r"provenance.recipe: \[\], expected an object"),
    (lambda r: r | {"provenance": {"finished": None}}, "provenance.finished: None, expected str"),
    (lambda r: r | {"provenance": {"finished": "26 May"}}, "provenance.finished: '26 May', expected a time as in"),
    (lambda r: [r], "version None"),
])
def test_strict_schema(tmp_path, change, message):
    path = results.write_result(tmp_path, RESULT, predictions())
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=message) as error:
        results.read_result(path)
    assert path.name in str(error.value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" * 400, "-" + "1" * 400,
                                    "1" * 5000])
def test_no_nan_or_infinity_is_read(tmp_path, number):
    path = results.write_result(tmp_path, RESULT, predictions())
    path.write_text(path.read_text().replace("0.75", number))
    with pytest.raises(UserError, match="is not allowed"):
        results.read_result(path)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\udce4".encode("utf-8", "surrogatepass").decode("latin-1")])
def test_damaged_file_is_named(tmp_path, text):
    path = results.write_result(tmp_path, RESULT, predictions())
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match="not a result"):
        results.read_result(path)


def test_times_are_compared_whatever_their_zone_and_form():
    """As texts they would stand in another order."""
    texts = ["2026-01-01T01:00+02:00", "2026-01-01", "2026-01-01T00:30:00Z", "20260101T013000+00:00",
             "2026-W01-4T02:00:00+00:00", "2026-01-01T01:30-01:00"]
    times = [results.finished(replace(RESULT, provenance={"finished": text})) for text in texts]
    assert times == sorted(set(times))
    assert results.finished(RESULT) < times[0]


def test_nan_metric_is_a_bug(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write_result(tmp_path, replace(RESULT, metrics=(Metric("auroc", math.nan),)), predictions())
    assert not results.is_done(tmp_path, CELL)


def test_renamed_result_is_refused(tmp_path):
    path = results.write_result(tmp_path, RESULT, predictions())
    with pytest.raises(UserError, match="does not match its cell"):
        results.read_result(path.rename(tmp_path / "other.json"))


def test_predictions_of_another_result_are_refused(tmp_path):
    results.write_result(tmp_path, RESULT, predictions())
    other = replace(CELL, fraction=1.0)
    results.write_result(tmp_path, replace(RESULT, cell=other), Predictions(predictions().table.slice(1)))
    results.predictions_path(tmp_path, other).replace(results.predictions_path(tmp_path, CELL))
    with pytest.raises(UserError, match="another digest"):
        results.read_predictions(tmp_path, results.read_result(results.result_path(tmp_path, CELL)))


def test_missing_predictions_and_folder(tmp_path):
    path = results.write_result(tmp_path, RESULT, predictions())
    results.predictions_path(tmp_path, CELL).unlink()
    with pytest.raises(UserError, match="are missing"):
        results.read_predictions(tmp_path, results.read_result(path))
    with pytest.raises(UserError, match="does not exist"):
        list(results.read_results(tmp_path / "none"))


def test_lock_excludes_a_second_worker(tmp_path):
    from filelock import Timeout

    with results.cell_lock(tmp_path, CELL), pytest.raises(Timeout):
        results.cell_lock(tmp_path, CELL).acquire(timeout=0)
    results.cell_lock(tmp_path, CELL).acquire(timeout=0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2**53, 2**53) | st.floats(allow_nan=True) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)


@given(value=json_values)
def test_jsonable_is_strict_json(value):
    text = json.dumps(results.jsonable(value), allow_nan=False)
    assert json.loads(text) == results.jsonable(value)


def test_jsonable_converts_numpy():
    values = {"a": np.float32(0.5), "b": np.array([1.0, np.nan]), 3: np.int64(2), "c": (1, 2), "d": np.bool_(True)}
    assert results.jsonable(values) == {"a": 0.5, "b": [1.0, None], "3": 2, "c": [1, 2], "d": True}
    with pytest.raises(TypeError, match="object cannot be stored"):
        results.jsonable(object())

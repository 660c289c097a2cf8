"""Published numbers stand apart: with protocol and source, a warning, and no rank."""

import csv
import json
from pathlib import Path

from prior_bench.leaderboard import files, published

FILE = Path(published.__file__).with_name("results.csv")


def test_every_number_is_read_as_printed():
    numbers = published.read()
    rows = list(csv.DictReader(FILE.open(encoding="utf-8")))
    assert [(n.value, n.std, n.method) for n in numbers] == [(r["value"], r["std"], r["method"]) for r in rows]
    assert [n.as_dict()["value"] for n in numbers] == [float(r["value"]) for r in rows]
    assert all(n.protocol and n.source and n.status in ("paper", "reprint") for n in numbers)


def test_every_number_is_shown_under_its_protocol_and_source():
    shown = list(published.sheets(published.read()))
    assert sum(bool(cell.text) for sheet in shown for line in sheet.lines for cell in line.cells) == \
        len(published.read())
    titles = {line.label for sheet in shown for line in sheet.lines if not line.cells}
    assert titles == {f"{n.protocol}; {n.source}" for n in published.read()}
    assert not any(cell.bold for sheet in shown for line in sheet.lines for cell in line.cells)


def test_only_on_request_and_never_among_the_results(tmp_path):
    (tmp_path / "results").mkdir()
    assert files.write(tmp_path / "results", tmp_path / "without", tmp_path / "memo") == []
    (warning,) = files.write(tmp_path / "results", tmp_path / "with", tmp_path / "memo", with_published=True)
    assert "protocols differ" in warning
    for name in (files.MARKDOWN, files.LATEX):
        assert "protocols differ" in (tmp_path / "with" / name).read_text()
        assert "Published" not in (tmp_path / "without" / name).read_text()
    assert (tmp_path / "with" / files.CSV).read_bytes() == (tmp_path / "without" / files.CSV).read_bytes()
    content = json.loads((tmp_path / "with" / files.JSON).read_text())
    assert len(content["published"]) == len(published.read())
    assert content["tables"] == content["overviews"] == []

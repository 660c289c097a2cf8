"""What the gate says, in every form: verdicts, exit codes, and the escaping that each reader needs."""

from __future__ import annotations

import json
from xml.etree import ElementTree

import pytest

from prior_bench.leaderboard.gate.report import (
    Finding,
    Report,
    as_annotations,
    as_json,
    as_junit,
    as_markdown,
    as_text,
)

PASSED = Finding("exact", "prior/images", "map", "passed", "mean 1", "mean 1", "0.001 of 2", used=0.25)
WORSE = Finding("exact", "prior/losses", "L_global at 0", "regression", "3.5", "4.5", "0.001 of 3.5", used=285.7)
OTHER = Finding("exact", "mgca/local", "weights", "not comparable", "aa", "bb", reason="other weights; run `--update`")
NASTY = Finding("exact", "a,b:c%/<&\"'>", "1%\r\nof|it", "regression", "x\x00\x1b", "*y*", reason="::error::\nbad, 5 %")


@pytest.mark.parametrize(("findings", "code"), [
    ((PASSED,), 0), ((PASSED, WORSE), 1), ((PASSED, OTHER), 2), ((PASSED, OTHER, WORSE), 1), ((), 2)])
def test_exit_codes(findings, code):
    assert Report("exact", findings).exit_code == code


def test_text_names_what_regressed():
    text = as_text(Report("exact", (PASSED, WORSE, OTHER), {"device": "cpu"}))
    lines = text.splitlines()
    assert any(line.split() == ["prior/images", "1", "passed", "25%", "map"] for line in lines)
    first = next(line for line in lines if line.startswith("regression"))  # the worst kind stands first
    assert lines.index(first) < next(i for i, line in enumerate(lines) if line.startswith("not comparable"))
    for part in ("prior/losses", "L_global at 0", "3.5", "4.5", "0.001 of 3.5"):
        assert part in first
    assert "device: cpu" in text
    assert lines[-1] == "exact gate: 3 quantities of 3 cells: 1 regressed, 1 could not be compared, 1 passed"
    assert as_text(Report("exact", ())) == "exact gate: nothing was compared"


def test_junit():
    root = ElementTree.fromstring(as_junit(Report("exact", (PASSED, WORSE, OTHER, NASTY))))
    suites = root.findall("testsuite")
    assert [suite.get("name") for suite in suites] == ["exact: prior/images", "exact: prior/losses",
                                                       "exact: mgca/local", "exact: a,b:c%/<&\"'>"]
    assert [(s.get("tests"), s.get("failures"), s.get("errors")) for s in suites] == [
        ("1", "0", "0"), ("1", "1", "0"), ("1", "0", "1"), ("1", "1", "0")]
    passed, worse, other, nasty = (suite.find("testcase") for suite in suites)
    assert len(passed) == 0
    assert worse.get("classname") == "exact.prior/losses"
    assert "found 4.5" in worse.find("failure").get("message")
    assert "other weights" in other.find("error").get("message")
    assert "expected x??" in nasty.find("failure").get("message")


def unescape(command):
    """What GitHub's runner makes of a workflow command: properties and message."""
    head, _, message = command.removeprefix("::error ").partition("::")
    name, _, title = head.partition("=")
    assert name == "title"
    for code, character in (("%0D", "\r"), ("%0A", "\n"), ("%3A", ":"), ("%2C", ",")):
        title = title.replace(code, character)
    return title.replace("%25", "%"), message.replace("%0D", "\r").replace("%0A", "\n").replace("%25", "%")


def test_annotations_are_escaped():
    lines = as_annotations(Report("exact", (PASSED, WORSE, OTHER, NASTY)))
    assert len(lines) == 3
    assert all("\n" not in line and "\r" not in line and line.startswith("::error title=") for line in lines)
    title, message = unescape(lines[-1])
    assert title == "exact gate, regression: a,b:c%/<&\"'>"
    assert message == NASTY.sentence
    assert "," not in lines[-1].removeprefix("::error ").partition("::")[0]
    assert unescape(lines[0]) == ("exact gate, regression: prior/losses", WORSE.sentence)


def test_an_annotation_is_short():
    many = tuple(Finding("exact", "prior/losses", f"term {i}", "regression") for i in range(20))
    (line,) = as_annotations(Report("exact", many))
    assert unescape(line)[1].splitlines()[-1] == "and 12 more"


def test_markdown_keeps_its_tables():
    text = as_markdown(Report("exact", (PASSED, NASTY), {"device": "a|b"}))
    assert text.startswith("### ❌ exact gate: 2 quantities")
    rows = [line for line in text.splitlines() if line.startswith("| regression")]
    assert len(rows) == 1  # its line breaks are gone
    assert rows[0].replace("\\|", "").count("|") == 8
    assert "\\*y\\*" in rows[0]
    assert "\\<&" in rows[0]
    assert "a\\|b" in text
    assert as_markdown(Report("exact", (PASSED,))).startswith("### ✅")
    assert as_markdown(Report("exact", (OTHER,))).startswith("### ⚠️")


def test_json():
    content = json.loads(as_json(Report("exact", (PASSED, WORSE), {"device": "cpu"})))
    assert content["exit_code"] == 1
    assert content["facts"] == {"device": "cpu"}
    assert content["findings"][1] == {"gate": "exact", "cell": "prior/losses", "what": "L_global at 0",
                                      "status": "regression", "expected": "3.5", "found": "4.5",
                                      "tolerance": "0.001 of 3.5", "reason": "", "used": 285.7}

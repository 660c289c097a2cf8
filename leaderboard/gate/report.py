"""What a gate found, and how it is said: a table for people; JUnit, annotations and a step summary for CI; JSON.

Every writer is a pure function of the Report. The exit code is 1 where something regressed; else 2 where something
could not be compared, or nothing was; else 0.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal
from xml.etree import ElementTree

from tabulate import tabulate

Status = Literal["passed", "regression", "not comparable"]
_WORST: tuple[Status, ...] = ("regression", "not comparable", "passed")
_VERBS: dict[Status, str] = {
    "regression": "regressed", "not comparable": "could not be compared", "passed": "passed"}
_LINES = 8  # findings that one annotation shows; more are counted


@dataclass(frozen=True, slots=True)
class Finding:
    """One number, or one group of numbers, of a cell against the baseline.

    `cell` says where ("prior/zero-shot/findings"), `what` which quantity ("auroc_macro"). `reason` says in a sentence
    what is wrong, and where it could not be compared what to do. `used` is the share of the tolerance that the
    difference takes: above 1 is a regression.
    """

    gate: str
    cell: str
    what: str
    status: Status
    expected: str = ""
    found: str = ""
    tolerance: str = ""
    reason: str = ""
    used: float | None = None

    @property
    def sentence(self) -> str:
        """All of it on one line."""
        numbers = [f"{name} {text}" for name, text in (("expected", self.expected), ("found", self.found),
                                                       ("tolerance", self.tolerance)) if text]
        return f"{self.what}: " + "; ".join(part for part in (self.reason, ", ".join(numbers)) if part)


@dataclass(frozen=True, slots=True)
class Report:
    """The findings of one gate, and facts about the run ("device", "seconds", ...) for its head."""

    gate: str
    findings: tuple[Finding, ...]
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        statuses = {finding.status for finding in self.findings}
        if "regression" in statuses:
            return 1
        return 0 if statuses == {"passed"} else 2

    @property
    def verdict(self) -> str:
        """One line: how much was compared, and what came of it."""
        counts = Counter(finding.status for finding in self.findings)
        parts = [f"{counts[status]} {_VERBS[status]}" for status in _WORST if counts[status]]
        cells = len({finding.cell for finding in self.findings})
        return (f"{self.gate} gate: {len(self.findings)} quantities of {cells} cells: {', '.join(parts)}" if parts
                else f"{self.gate} gate: nothing was compared")

    def cells(self) -> dict[str, list[Finding]]:
        """Findings by cell, in the order of their first."""
        found: dict[str, list[Finding]] = {}
        for finding in self.findings:
            found.setdefault(finding.cell, []).append(finding)
        return found


def failed(findings: Sequence[Finding]) -> list[Finding]:
    """Those that did not pass, the worst kind first."""
    return sorted((f for f in findings if f.status != "passed"), key=lambda f: _WORST.index(f.status))


# ------------------------------------------------------------------------------------------ for people


def as_text(report: Report) -> str:
    """A line for each cell, then every finding that did not pass, the facts and the verdict."""
    parts = [tabulate(_rows(report), headers=_HEADER, tablefmt="simple", disable_numparse=True)] * bool(report.findings)
    wrong = failed(report.findings)
    if wrong:
        rows = [[f.status, f.cell, f.what, f.expected, f.found, f.tolerance, f.reason] for f in wrong]
        parts.append(tabulate(rows, tablefmt="simple", disable_numparse=True,
                              headers=["", "cell", "quantity", "expected", "found", "tolerance", ""]))
    parts += ["\n".join(f"{name}: {text}" for name, text in report.facts.items())] if report.facts else []
    return "\n\n".join([*parts, report.verdict])


_HEADER = ("cell", "quantities", "status", "tolerance used", "by")


def _rows(report: Report) -> list[list[str]]:
    """One line a cell: how many quantities, the worst status, and which of them took most of its tolerance."""
    rows = []
    for cell, findings in report.cells().items():
        status = min((f.status for f in findings), key=_WORST.index)
        most = max(findings, key=lambda f: -1.0 if f.used is None else f.used)
        used = ["", ""] if most.used is None else [f"{most.used:.0%}" if most.used < 100 else "> 9999%", most.what]
        rows.append([cell, str(len(findings)), status, *used])
    return rows


# ---------------------------------------------------------------------------------------------- for CI


def as_junit(report: Report) -> str:
    """JUnit XML: a suite a cell, a case a quantity; a regression is a failure, what cannot be compared an error."""
    root = ElementTree.Element("testsuites", name=f"prior-bench check, {report.gate} gate")
    for cell, findings in report.cells().items():
        counts = Counter(finding.status for finding in findings)
        suite = ElementTree.SubElement(root, "testsuite", name=_xml(f"{report.gate}: {cell}"), tests=str(len(findings)),
                                       failures=str(counts["regression"]), errors=str(counts["not comparable"]))
        for finding in findings:
            case = ElementTree.SubElement(suite, "testcase", classname=_xml(f"{report.gate}.{cell}"),
                                          name=_xml(finding.what))
            if finding.status != "passed":
                kind = "failure" if finding.status == "regression" else "error"
                ElementTree.SubElement(case, kind, type=finding.status, message=_xml(finding.sentence))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _xml(text: str) -> str:
    """Without the characters that XML 1.0 cannot hold, escaped or not."""
    return re.sub(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "?", text)


def as_annotations(report: Report) -> list[str]:
    """GitHub's workflow commands, one a cell that did not pass: GitHub shows ten a step."""
    lines = []
    for cell, findings in report.cells().items():
        wrong = failed(findings)
        if wrong:
            more = [f"and {len(wrong) - _LINES} more"] if len(wrong) > _LINES else []
            message = "\n".join([*(finding.sentence for finding in wrong[:_LINES]), *more])
            title = f"{report.gate} gate, {wrong[0].status}: {cell}"
            lines.append(f"::error title={_property(title)}::{_data(message)}")
    return lines


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def as_markdown(report: Report) -> str:
    """The step summary: the verdict, what did not pass, and the cells folded away."""
    mark = {0: "✅", 1: "❌", 2: "⚠️"}[report.exit_code]
    parts = [f"### {mark} {_cell(report.verdict)}"]
    wrong = failed(report.findings)
    if wrong:
        rows = [[f.status, f.cell, f.what, f.expected, f.found, f.tolerance, f.reason] for f in wrong]
        parts.append(_table(["", "cell", "quantity", "expected", "found", "tolerance", ""], rows))
    parts.append(f"<details><summary>All cells</summary>\n\n{_table(_HEADER, _rows(report))}\n\n</details>")
    parts += [", ".join(f"{name}: {_cell(text)}" for name, text in report.facts.items())] if report.facts else []
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return tabulate([[_cell(text) for text in row] for row in rows], headers=header, tablefmt="github",
                    disable_numparse=True)


def _cell(text: str) -> str:
    """Text that Markdown shows as it stands, inside a table."""
    escaped = re.sub(r"([\\`*_|<>\[\]~#])", r"\\\1", text)
    return re.sub(r"\s*[\r\n]+\s*", " ", escaped)


def as_json(report: Report) -> str:
    content = {"schema": 1, "gate": report.gate, "exit_code": report.exit_code, "verdict": report.verdict,
               "facts": report.facts, "findings": [asdict(finding) for finding in report.findings]}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

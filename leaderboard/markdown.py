"""LEADERBOARD.md: sheets in GitHub's Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tabulate import tabulate

from prior_bench.leaderboard.sheets import INTRODUCTION, Line, Sheet, Shown


def markdown(sheets: Iterable[Sheet], notes: Sequence[str]) -> str:
    """The whole page; `notes` say what was left out."""
    paragraphs = ["# Leaderboard", *INTRODUCTION]
    if notes:
        paragraphs.append("\n".join(f"- {_escape(note)}." for note in notes))
    section = ""
    for sheet in sheets:
        if sheet.section != section:
            section = sheet.section
            paragraphs.append(f"## {_escape(section)}")
        paragraphs += [_escape(sheet.caption), _table(sheet), *map(_escape, sheet.footnotes)]
    return "\n\n".join(paragraphs) + "\n"


def _table(sheet: Sheet) -> str:
    width = len(sheet.header) - 1
    body = [[_label(line), *(map(_cell, line.cells) if line.cells else [""] * width)] for line in sheet.lines]
    return tabulate(body, headers=[_escape(h) for h in sheet.header], tablefmt="github", disable_numparse=True)


def _label(line: Line) -> str:
    return f"*{_escape(line.label)}*" if line.aside or not line.cells else _escape(line.label)


def _cell(cell: Shown) -> str:
    text = f"**{cell.text}**" if cell.bold else cell.text
    return " ".join(_escape(part) if part is not text else part for part in (text, cell.interval, cell.after) if part)


def _escape(text: str) -> str:
    return "".join("\\" + c if c in "*|<" else c for c in text)

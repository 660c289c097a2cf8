"""leaderboard.tex: sheets as LaTeX tables with booktabs, one `table` each, to be taken into a paper with \\input.

It compiles with pdflatex. Letters beyond Latin ones, if a name has any, need XeLaTeX or LuaLaTeX.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from prior_bench.leaderboard.sheets import Line, Sheet, Shown

PREAMBLE = r"% Written by `prior-bench leaderboard`. Needs \usepackage{booktabs} and \usepackage{graphicx}."
NARROW = 12  # characters of a line of a header; longer names are broken after an underscore
WIDE = 60  # characters of a title
_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
            "<": r"$<$", ">": r"$>$", "|": r"\textbar{}",
            **{c: "\\" + c for c in "&%$#_{}"}}


def latex(sheets: Iterable[Sheet]) -> str:
    """All tables. Labels follow from what a table is about, so that references outlive other tables."""
    seen: Counter[str] = Counter()
    tables = [PREAMBLE]
    for sheet in sheets:
        about = re.sub("[^a-z0-9]+", "-", sheet.section.partition(": profile")[0].lower()).strip("-")
        seen[about] += 1
        tables.append(_table(sheet, about if seen[about] == 1 else f"{about}-{seen[about]}"))
    return "\n\n".join(tables) + "\n"


def _table(sheet: Sheet, label: str) -> str:
    rows = [_row(line, len(sheet.header)) for line in sheet.lines]
    rules = [r"\midrule" if not line.cells and above is not None and above.cells else ""
             for above, line in zip([None, *sheet.lines], sheet.lines, strict=False)]
    notes = r" \\".join(map(_first, sheet.footnotes))
    below = [rf"\par\smallskip\raggedright\footnotesize {notes}"]
    return "\n".join([
        r"\begin{table}[tbp]", r"\centering\small\setlength{\tabcolsep}{4pt}",
        rf"\caption{{{_breakable(f'{sheet.section}. {sheet.caption}')}}}",
        rf"\label{{tab:{label}}}", r"\par\smallskip",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{{'l' * len(sheet.header)}}}", r"\toprule",
        " & ".join(map(_header, sheet.header)) + r" \\", r"\midrule",
        *(line for pair in zip(rules, rows, strict=True) for line in pair if line),
        r"\bottomrule", r"\end{tabular}}", *(below if sheet.footnotes else []), r"\end{table}"])


def _header(name: str) -> str:
    """A name of a column, on as many lines as keep it narrow."""
    lines = [""]
    for part in re.findall("[^_]*_|[^_]+", name):
        if lines[-1] and len(lines[-1] + part) > NARROW:
            lines.append("")
        lines[-1] += part
    if len(lines) == 1:
        return escape(name)
    return r"\begin{tabular}[b]{@{}l@{}}" + r" \\ ".join(map(escape, lines)) + r"\end{tabular}"


def _row(line: Line, columns: int) -> str:
    if not line.cells:  # a title, of several lines rather than wider than the page
        kind = "l" if len(line.label) < WIDE else r"p{.95\linewidth}"
        return rf"\multicolumn{{{columns}}}{{{kind}}}{{\raggedright\emph{{{escape(line.label)}}}}} \\"
    label = rf"\emph{{{escape(line.label)}}}" if line.aside else _first(line.label)
    return " & ".join([label, *map(_cell, line.cells)]) + r" \\"


def _cell(cell: Shown) -> str:
    text = rf"\textbf{{{escape(cell.text)}}}" if cell.bold else escape(cell.text)
    small = " ".join(escape(part) for part in (cell.interval, cell.after) if part)
    return f"{text} {{\\footnotesize {small}}}" if small else text


def _first(text: str) -> str:
    r"""Text at the start of a line: a \\ before it would take a bracket or a star for its own."""
    return "{}" * text.lstrip().startswith(("[", "*")) + escape(text)


def _breakable(text: str) -> str:
    """Text in which a line may end after an underscore."""
    return escape(text).replace(r"\_", r"\_\allowbreak ")


def escape(text: str) -> str:
    """Text for LaTeX, on one line and with its hyphens; what stands between backticks is code."""
    escaped = "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))
    return re.sub(r"`([^`]*)`", r"\\texttt{\1}", re.sub("-(?=-)", "-{}", escaped))

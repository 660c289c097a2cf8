"""leaderboard.tex: sheets as LaTeX tables with booktabs, one `table` each, to be taken into a paper with \\input."""

from __future__ import annotations

import re
from collections.abc import Iterable

from prior_bench.leaderboard.sheets import Line, Sheet, Shown

PREAMBLE = r"% Written by `prior-bench leaderboard`. Needs \usepackage{booktabs} and, for wide tables, graphicx."
_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
            "<": r"$<$", ">": r"$>$", **{c: "\\" + c for c in "&%$#_{}"}}


def latex(sheets: Iterable[Sheet]) -> str:
    """All tables."""
    return "\n\n".join([PREAMBLE, *(_table(sheet, number) for number, sheet in enumerate(sheets, start=1))]) + "\n"


def _table(sheet: Sheet, number: int) -> str:
    rows = [_row(line, len(sheet.header)) for line in sheet.lines]
    rules = [r"\midrule" if not line.cells and above is not None and above.cells else ""
             for above, line in zip([None, *sheet.lines], sheet.lines, strict=False)]
    below = [rf"\par\smallskip\raggedright\footnotesize {' '.join(map(escape, sheet.footnotes))}"]
    return "\n".join([
        r"\begin{table}[tbp]", r"\centering", rf"\caption{{{escape(sheet.section)}. {escape(sheet.caption)}}}",
        rf"\label{{tab:prior-bench-{number}}}", r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{'l' * (len(sheet.header) - 1)}}}", r"\toprule",
        " & ".join(escape(name) for name in sheet.header) + r" \\", r"\midrule",
        *(line for pair in zip(rules, rows, strict=True) for line in pair if line),
        r"\bottomrule", r"\end{tabular}}", *(below if sheet.footnotes else []), r"\end{table}"])


def _row(line: Line, columns: int) -> str:
    if not line.cells:
        return rf"\multicolumn{{{columns}}}{{l}}{{\emph{{{escape(line.label)}}}}} \\"
    label = rf"\emph{{{escape(line.label)}}}" if line.aside else escape(line.label)
    return " & ".join([label, *map(_cell, line.cells)]) + r" \\"


def _cell(cell: Shown) -> str:
    text = rf"\textbf{{{escape(cell.text)}}}" if cell.bold else escape(cell.text)
    small = " ".join(escape(part) for part in (cell.interval, cell.after) if part)
    return f"{text} {{\\footnotesize {small}}}" if small else text


def escape(text: str) -> str:
    """Text for LaTeX; what stands between backticks is code."""
    escaped = "".join(_SPECIAL.get(character, character) for character in text)
    return re.sub(r"`([^`]*)`", r"\\texttt{\1}", escaped)

"""LaTeX: every character is safe, environments and columns match."""

import re

from hypothesis import given
from hypothesis import strategies as st

from prior_bench.leaderboard.latex import escape, latex
from prior_bench.leaderboard.sheets import Line, Sheet, Shown

BACK = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"$\pm$": "±", "$<$": "<",
        "$>$": ">", **{"\\" + c: c for c in "&%$#_{}"}}


@given(st.text(st.characters(exclude_characters="`", exclude_categories=["Cs"])))
def test_escaping_can_be_undone(text):
    """So no character is lost, and none that LaTeX acts on is left bare."""
    parts = re.split("|".join(re.escape(k) for k in sorted(BACK, key=len, reverse=True)), escape(text))
    assert not set("".join(parts)) & set(r"\~^±<>&%$#_{}")
    undone = re.sub("|".join(re.escape(k) for k in sorted(BACK, key=len, reverse=True)),
                    lambda found: BACK[found.group()], escape(text))
    assert undone == text


def test_code():
    assert escape("`auroc_macro`, 95 %") == r"\texttt{auroc\_macro}, 95 \%"


def test_a_table_by_hand():
    sheet = Sheet("task on data: profile standard", "`a_b`.", ["method", "1%", "10%"],
                  [Line("track small"), Line("ours", (Shown("0.5", "[0.4, 0.6]", "rank 1", bold=True), Shown("-"))),
                   Line("references"), Line("random", (Shown("0.4"), Shown("not run")))], ["[1] too small"])
    text = latex([sheet, sheet])
    body = text.split(r"\midrule", 1)[1].split(r"\bottomrule")[0].strip().splitlines()
    assert body == [r"\multicolumn{3}{l}{\emph{track small}} \\",
                    r"ours & \textbf{0.5} {\footnotesize [0.4, 0.6] rank 1} & - \\",
                    r"\midrule",
                    r"\multicolumn{3}{l}{\emph{references}} \\",
                    r"random & 0.4 & not run \\"]
    assert r"\caption{task on data: profile standard. \texttt{a\_b}.}" in text
    assert text.count("{") == text.count("}")
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 2
    assert re.findall(r"\\label\{(.*)\}", text) == ["tab:prior-bench-1", "tab:prior-bench-2"]

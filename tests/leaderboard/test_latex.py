"""LaTeX: every character is safe, environments and columns match, and pdflatex, where it is, makes pages of it."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prior_bench.leaderboard import published
from prior_bench.leaderboard.latex import escape, latex
from prior_bench.leaderboard.sheets import Line, Sheet, Shown

COMMITTED = Path(__file__).parents[2] / "leaderboard"
BACK = {r"\textbackslash{}": "\\", r"\textasciitilde{}": "~", r"\textasciicircum{}": "^", r"$\pm$": "±", "$<$": "<",
        "$>$": ">", r"\textbar{}": "|", "-{}": "-", **{"\\" + c: c for c in "&%$#_{}"}}


@given(st.text(st.characters(exclude_characters="`", exclude_categories=["Cs"])))
def test_escaping_can_be_undone(text):
    """So no character is lost, and none that LaTeX acts on is left bare."""
    parts = re.split("|".join(re.escape(k) for k in sorted(BACK, key=len, reverse=True)), escape(text))
    assert not set("".join(parts)) & set(r"\~^±<>|&%$#_{}")
    assert "--" not in escape(text)
    undone = re.sub("|".join(re.escape(k) for k in sorted(BACK, key=len, reverse=True)),
                    lambda found: BACK[found.group()], escape(text))
    assert undone == " ".join(text.split())  # a blank line would end the paragraph


def test_code():
    assert escape("`auroc_macro`, 95 %") == r"\texttt{auroc\_macro}, 95 \%"


def test_a_table_by_hand():
    sheet = Sheet("task on data: profile standard", "`a_b`.", ["method", "1%", "10%"],
                  [Line("track small"), Line("ours", (Shown("0.5", "[0.4, 0.6]", "rank 1", bold=True), Shown("-"))),
                   Line("references"), Line("random", (Shown("0.4"), Shown("not run")))], ["[1] too small"])
    text = latex([sheet, sheet])
    body = text.split(r"\midrule", 1)[1].split(r"\bottomrule")[0].strip().splitlines()
    assert body == [r"\multicolumn{3}{l}{\raggedright\emph{track small}} \\",
                    r"ours & \textbf{0.5} {\footnotesize [0.4, 0.6] rank 1} & - \\",
                    r"\midrule",
                    r"\multicolumn{3}{l}{\raggedright\emph{references}} \\",
                    r"random & 0.4 & not run \\"]
    assert r"\caption{task on data: profile standard. \texttt{a\_\allowbreak b}.}" in text
    assert text.count("{") == text.count("}")
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 2
    assert re.findall(r"\\label\{(.*)\}", text) == ["tab:task-on-data", "tab:task-on-data-2"]


def test_names_of_columns_are_broken_and_starts_of_lines_are_safe():
    lines = [Line("[x]", (Shown("1"),)), Line("*y", (Shown("2"),))]
    sheet = Sheet("s", "c", ["method", "image_to_text_recall@10_chance"], lines, ["[1] why", "* y: note."])
    text = latex([sheet])
    assert r"\begin{tabular}[b]{@{}l@{}}image\_to\_ \\ text\_ \\ recall@10\_ \\ chance\end{tabular}" in text
    assert "\n{}[x] & 1" in text
    assert "\n{}*y & 2" in text
    assert r"\footnotesize {}[1] why \\{}* y: note." in text


ODD = r"a_b & 50% #1 $x$ ~ ^ \ { } | < > ± -- [z] * `code_1` ' \" " + "long " * 20


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
@pytest.mark.parametrize("content", ["odd", "committed", "published"])
def test_pdflatex_makes_pages_of_it(tmp_path, content):
    """In an article with nothing but the packages that the first line names; no error and nothing beyond the margin."""
    odd = Sheet(f"{ODD}: profile p", ODD, [ODD, "a_very_long_name_of_a_metric@10"],
                [Line(f"track {ODD}"), Line(ODD, (Shown(ODD, "[0.1, 0.2]", ODD, bold=True),)),
                 Line("*", (Shown("[1]"),), aside=True), Line("references"), Line("[r]", (Shown(),))], [ODD, "[1] x"])
    text = {"odd": lambda: latex([odd, odd]), "published": lambda: latex(published.sheets(published.read())),
            "committed": lambda: (COMMITTED / "leaderboard.tex").read_text()}[content]()
    packages = "".join(re.findall(r"\\usepackage\{\w+\}", text.splitlines()[0]))
    (tmp_path / "leaderboard.tex").write_text(text)
    (tmp_path / "paper.tex").write_text(
        rf"\documentclass{{article}}{packages}\begin{{document}}\input{{leaderboard}}\end{{document}}")
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "paper"],
                          cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Overfull" not in done.stdout
    assert (tmp_path / "paper.pdf").stat().st_size > 10_000

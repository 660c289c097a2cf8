"""The files of a leaderboard, written from a results folder and from nothing else. Equal results give equal bytes."""

from __future__ import annotations

from pathlib import Path

from prior_bench.files import write_text
from prior_bench.leaderboard import figures, page, published
from prior_bench.leaderboard.latex import latex
from prior_bench.leaderboard.markdown import markdown
from prior_bench.leaderboard.rebuild import Tell
from prior_bench.leaderboard.records import as_json, comma_separated
from prior_bench.leaderboard.sheets import sheets
from prior_bench.leaderboard.tables import known
from prior_bench.results import LEADERBOARD_JSON

MARKDOWN, CSV, JSON, LATEX = "LEADERBOARD.md", "leaderboard.csv", LEADERBOARD_JSON, "leaderboard.tex"
FILES = (CSV, JSON, LATEX, MARKDOWN)


def write(folder: Path, output: Path, memo: Path, with_published: bool = False, site: page.Site | None = None,
          drawings: Path | None = None, tell: Tell = lambda done, whole: None) -> list[str]:
    """Write all files into `output` from the results in `folder`; returns warnings.

    Args:
        memo: where rebuilt numbers are remembered by content.
        with_published: add what papers print, apart from the results.
        site: where the page goes, if it is wanted.
        drawings: where the plots go as pictures, if they are wanted.
        tell: called after each result that was rebuilt.
    """
    if site is not None:
        page.check(site.output)  # before all the work
    found = known(folder, memo, tell)
    printed = published.read() if with_published else []
    shown = [*sheets(found), *published.sheets(printed)]
    texts = (comma_separated(found), as_json(found, printed), latex(shown), markdown(shown, found.notes))
    output.mkdir(parents=True, exist_ok=True)
    for name, text in zip(FILES, texts, strict=True):
        write_text(output / name, text)
    if drawings is not None:
        figures.write(found, folder, drawings)
    left_out = page.write(found, folder, site, printed) if site is not None else []
    return found.warnings + left_out + [f"published numbers: {published.WARNING}"] * with_published

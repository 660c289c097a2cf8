"""The page: a static site with tables, plots and examples, written from the tables and predictions of a results folder.

It opens from disk and offline: HTML from `index.html` (Jinja2, all text escaped), `page.css`, `page.js`, and data in
scripts, because a page from disk cannot fetch JSON. The script of a section's provenance, or of a plot, is loaded when
it is asked for. Equal results give equal bytes.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import unescape
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from PIL import Image

import prior_bench
from prior_bench.errors import UserError
from prior_bench.files import write_text
from prior_bench.leaderboard import published as published_numbers
from prior_bench.leaderboard import sheets
from prior_bench.leaderboard.page import examples, plots, provenance, view
from prior_bench.leaderboard.published import Published
from prior_bench.leaderboard.styles import Style, styles
from prior_bench.leaderboard.tables import Known

INDEX = "index.html"
ASSETS, DATA, IMAGES = "assets", "data", "images"
OWN_FILES = ("page.css", "page.js")
WIDE = ("labels", "roc", "precision-recall", "reliability")  # plots that need the whole width
MARK = '<meta name="generator" content="prior-bench'


@dataclass(frozen=True, slots=True)
class Site:
    """Where a page goes and what its pictures are drawn from: the caches and `data_root` of `prior-bench run`, and the
    data sets whose real images may be drawn."""

    output: Path
    cache: Path
    data_root: Path | None = None
    examples_of: tuple[str, ...] = ()


def write(known: Known, folder: Path, site: Site, printed: Sequence[Published] = ()) -> list[str]:
    """Write the site in place of an earlier one; returns notes on what was left out.

    Args:
        folder: the results that the tables are of; plots and examples read their predictions.
        printed: what papers print, shown apart and never ranked.
    """
    output = site.output
    check(output)
    figures = plots.figures(known, folder)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as drawn:
        shown, left_out = examples.write(known, folder, Path(drawn), site.data_root, site.cache, site.examples_of)
        sizes = {one.image: Image.open(Path(drawn) / one.image).size for one in shown}
        page = view.page(known, figures, shown)
        # The index first: it marks the folder as ours, should this be killed.
        notes = [*known.notes, *known.warnings, *left_out]
        write_text(output / INDEX, _html(page, notes, styles(known), sizes, printed))
        for name in (ASSETS, DATA, IMAGES):
            shutil.rmtree(output / name, ignore_errors=True)
        for name in (ASSETS, IMAGES, f"{DATA}/plots"):
            (output / name).mkdir(parents=True)
        for name in sizes:
            shutil.copyfile(Path(drawn) / name, output / IMAGES / name)
    for name in OWN_FILES:
        write_text(output / ASSETS / name, (resources(__package__) / name).read_text(encoding="utf-8"))
    shutil.copyfile(plotly_script(), output / ASSETS / "plotly.min.js")
    for section in page.sections:
        _write_data(output, section.id, provenance.of_section(section))
    for plot in figures:
        _write_data(output, f"plots/{plot.id}", plot.figure)
    _write_data(output, "page", {
        "views": {section.id: _views(section) for section in page.sections},
        "overviews": {one.id: provenance.of_overview(one) for one in page.overviews},
        "published": [provenance.of_published(number) for number in printed],
    })
    return left_out


def plotly_script() -> Path:
    """plotly.js as the Python package brings it."""
    return Path(str(resources("plotly") / "package_data" / "plotly.min.js"))


def check(output: Path) -> None:
    """A page replaces an earlier one and nothing else: a folder with other files is a UserError."""
    index = output / INDEX
    if not output.is_dir() or not any(output.iterdir()):
        return
    if not index.is_file() or MARK not in index.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise UserError("the folder for the page holds other files", where=str(output),
                        expected="an empty or new folder, or one that holds an earlier page", fix="give another --html")


def _html(page: view.Page, notes: Sequence[str], looks: Mapping[str, Style], sizes: Mapping[str, tuple[int, int]],
          printed: Sequence[Published]) -> str:
    import jinja2

    environment = jinja2.Environment(loader=jinja2.PackageLoader(__package__, "."), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters["unescape"] = unescape  # Plotly's texts are HTML
    return environment.get_template(INDEX).render(
        page=page, notes=notes, introduction=sheets.INTRODUCTION, version=prior_bench.__version__,
        published=list(published_numbers.grouped(printed)), printed=printed, styles=looks, sizes=sizes, wide=WIDE,
        titles=plots.TITLES, warning=published_numbers.WARNING, not_run=sheets.NOT_RUN)


def _views(section: view.Section) -> list[dict[str, Any]]:
    return [{"label": one.label, "caption": one.caption, "header": one.header, "higher": one.higher,
             "rows": [[number and number.as_list() for number in one.numbers[row]] for row in section.rows]}
            for one in section.views]


def _write_data(output: Path, name: str, value: Any) -> None:
    """A script that gives the page a value. Nothing in it can end a script element or open a comment."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    write_text(output / DATA / f"{name}.js", f"(window.priorBench ??= {{}})[{json.dumps(name)}] = {text};\n")

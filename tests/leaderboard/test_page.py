"""The page in headless Chromium, opened from disk: what it shows, how it is used, that results do it no harm."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import urljoin

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from prior_bench import plugins, results
from prior_bench.cli import app
from prior_bench.errors import UserError
from prior_bench.leaderboard import files
from prior_bench.leaderboard.page import Site
from prior_bench.task import Predictions
from prior_bench.types import Cell, Metric, Result

PLUGIN = Path(__file__).parents[1] / "plugin" / "toy_plugin.py"
COMMITTED = Path(__file__).parents[2] / "leaderboard" / "results"
ZERO_SHOT = "*_zero-shot_zero-shot_phantom_phantom-5x40_*"
EVIL = '<img src=x onerror="alert(1)">'
EVIL_NOTE = "</script><script>alert(2)</script>"
TOY = "toy-task-linear-toy-data-findings-standard-v1"
GROUPS = [f"g{i // 2}" for i in range(40)]
LEVELS = {"alpha": 0.50, "beta": 0.20, "gamma": 0.90, EVIL: 0.52, "random": 0.99}


def cell(method, fraction=0.1, seed=0, **changes):
    source = "none" if method == "random" else "phantom"
    made = Cell(method, "small", source, 0, f"w-{method}", "toy-task", 1, "standard", "linear", "s",
                "toy-data", "d", "findings", fraction, seed)
    return replace(made, **changes)


def store(folder, cell, level):
    values = np.random.default_rng([cell.subset_seed, len(cell.method)]).normal(level, 0.02, len(GROUPS))
    table = pa.table({"image": [f"i{i}" for i in range(len(GROUPS))], "group": GROUPS, "value": values})
    metric = Metric("error", float(values.mean()), higher_is_better=False, counts={"images": len(GROUPS)})
    note = EVIL_NOTE if cell.method == EVIL else "re-implemented from the abstract" if cell.method == "beta" else ""
    provenance = {"finished": "2026-01-01", "command": f"prior-bench run --method {cell.method}", "commit": "c0ffee",
                  "device": "cpu: toy", "method": {"note": note}, "packages": {"torch": "2.15.0"},
                  "seconds": {"fit": 1.5},
                  "weights": {"losses": {"total": [[1, 2.0], [2, 1.0]], EVIL: [[1, 0.5]], "lr": [[1, 0.1]]}}}
    results.write_result(folder, Result(cell, "done", (metric,), details={"penalty": 0.1}, provenance=provenance),
                         Predictions(table))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Results of a toy task (and of one real one), the tables of them in `tables`, and the page in `site`."""
    plugins.add_file(PLUGIN)
    root = tmp_path_factory.mktemp("page")
    folder = root / "results"
    folder.mkdir()
    for method, level in LEVELS.items():
        for fraction in (0.01, 0.1):
            for seed in (0, 1):
                if (method, fraction) != ("gamma", 0.01):  # not run
                    store(folder, cell(method, fraction, seed), level - fraction)
    store(folder, cell("alpha", recipe="large"), 0.3)
    never = Result(cell("alpha", 0.01, recipe="large"), "not_applicable", reason="too <small>")
    results.write_result(folder, never, None)
    for file in COMMITTED.glob(ZERO_SHOT):
        if '"small-long"' in file.with_suffix(".json").read_text():
            shutil.copy(file, folder)
    write(root)
    return root


def write(root, to="site", memo="cache"):
    site = Site(root / to, root / memo)
    return files.write(root / "results", root / "tables", root / memo / "leaderboard", True, site)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("Chromium is not installed")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def opened(browser, written):
    """Opens the page; at the end of the test no error, dialog or request to anything but files may have been seen."""
    seen, contexts = [], []

    def open_page(hash="", width=1280, height=900, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme,
                                      reduced_motion="reduce")
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("console", lambda message: seen.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: seen.append(str(error)))
        page.on("dialog", lambda dialog: (seen.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: None if request.url.startswith(("file:", "data:", "blob:"))
                else seen.append(request.url))
        page.on("requestfailed", lambda request: None if request.failure == "net::ERR_ABORTED"  # the page was left
                else seen.append(f"{request.failure}: {request.url}"))
        page.goto((written / "site" / "index.html").as_uri() + hash)
        return page

    yield open_page
    found = list(seen)
    for context in contexts:
        context.close()
    assert found == []


def column(page, name, section=TOY):
    """The place of a column by the text of its header, the first of that name."""
    heads = page.locator(f"#{section} thead th").all_inner_texts()
    return next(i for i, text in enumerate(heads) if text.split()[0] == name)


def methods(page, section=TOY):
    """The methods in the order of the lines that are seen."""
    rows = page.locator(f"#{section} tbody tr[data-method]:visible")
    return rows.evaluate_all("rows => rows.map(row => row.dataset.method)")


def head(page, at, section=TOY):
    return page.locator(f"#{section} thead th").nth(at)


def draw_all(page):
    """Scroll to every plot, so that it is drawn."""
    for kind in page.locator(".kinds input").all():
        kind.check(force=True)
        for figure in page.locator("figure.plot:visible").all():
            figure.scroll_into_view_if_needed()
            figure.locator(".main-svg").first.wait_for()


# ------------------------------------------------------------------------------------------------ numbers


def test_every_number_is_that_of_the_tables(opened, written):
    """Against leaderboard.json, which has its own tests."""
    content = json.loads((written / "tables" / "leaderboard.json").read_text())
    (table,) = [t for t in content["tables"] if t["task"] == "toy-task"]
    page = opened()
    for record in table["records"]:
        if record["metric"] != "error":
            continue
        row = page.locator(f"#{TOY} tr[data-track='{record['recipe']}']").filter(
            has=page.locator("th", has_text=record["method"]))
        at = column(page, f"{record['fraction']:.0%}")
        cell = row.locator("td").nth(at - 1)
        assert cell.locator(".text").inner_text() == f"{record['mean']:.3f}"
        low, high = record["interval_low"], record["interval_high"]
        assert cell.locator(".interval").inner_text() == f"[{low:.3f}, {high:.3f}]"
        rank = row.locator("td").nth(at).inner_text()
        assert rank == ("" if record["rank"] is None else str(record["rank"]))
        best = cell.locator(".text.best").count()
        assert best == (record["rank"] == 1)
    assert page.locator(f"#{TOY} .aside").first.inner_text().startswith("detectable difference")


def test_not_run_is_not_not_applicable(opened):
    page = opened()
    assert page.locator(f"#{TOY} tr[data-method=gamma] td").first.inner_text() == "not run"
    cell = page.locator(f"#{TOY} tr[data-track=large] td").first
    assert cell.inner_text().split("\n")[0] == "not applicable"
    assert "too <small>" in cell.inner_text()
    assert "* beta: re-implemented from the abstract." in page.locator(f"#{TOY} > .mark").inner_text()
    assert "beta*" in page.locator(f"#{TOY} tr[data-method=beta] th").inner_text()


def test_another_view(opened, written):
    page = opened()
    page.locator(f"#{TOY} select.view").select_option(label="difference to random")
    content = json.loads((written / "tables" / "leaderboard.json").read_text())
    (table,) = [t for t in content["tables"] if t["task"] == "toy-task"]
    means = {r["method"]: r["mean"] for r in table["records"]
             if (r["metric"], r["fraction"], r["recipe"]) == ("error", 0.1, "small")}
    shown = page.locator(f"#{TOY} tr[data-method=beta][data-track=small] td:visible .text").last.inner_text()
    assert shown == f"{means['beta'] - means['random']:+.3f}"
    assert page.locator(f"#{TOY} td.rank:visible").count() == 0
    assert page.locator(f"#{TOY} .about").inner_text().startswith("Difference to random")
    again = opened("#" + page.url.partition("#")[2])
    assert again.locator(f"#{TOY} .about").inner_text().startswith("Difference to random")
    again.locator(f"#{TOY} select.view").select_option(index=0)
    assert again.locator(f"#{TOY} tr[data-method=beta] td .text").last.inner_text() == f"{means['beta']:.3f}"


def test_another_metric_of_a_task_that_trains_nothing(opened, written):
    content = json.loads((written / "tables" / "leaderboard.json").read_text())
    (table,) = [t for t in content["tables"] if t["task"] == "zero-shot"]
    (record,) = [r for r in table["records"] if (r["method"], r["metric"]) == ("prior", "auroc_effusion")]
    page = opened()
    section = page.locator("section.task[data-task=zero-shot]")
    assert section.locator("thead th:visible").count() > 2
    section.locator("select.view").select_option(label="auroc_effusion")
    assert [text.split()[0] for text in section.locator("thead th:visible").all_inner_texts()] == [
        "method", "auroc_effusion"]
    cell = section.locator("tr[data-method=prior] td:visible")
    assert cell.locator(".text").inner_text() == f"{record['mean']:.3f}"
    cell.get_by_role("button").click()
    headline = page.get_by_role("dialog").locator(".headline").inner_text()
    assert headline.startswith(f"auroc_effusion {record['mean']:.3f} [")


# ------------------------------------------------------------------------------------ sorting and filters


def test_sorting(opened):
    page = opened()
    at = column(page, "10%")
    assert head(page, at).get_attribute("aria-sort") == "ascending"  # lower is better here
    in_track = ["beta", "alpha", EVIL, "gamma"]
    assert methods(page) == ["alpha", *in_track, "random"]  # track large; track small; its references
    head(page, at).get_by_role("button").click()
    assert head(page, at).get_attribute("aria-sort") == "descending"
    assert methods(page) == ["alpha", *reversed(in_track), "random"]
    head(page, column(page, "1%")).get_by_role("button").click()
    assert methods(page) == ["alpha", *in_track, "random"]  # gamma was not run at 1 %: last in either order
    head(page, column(page, "1%")).get_by_role("button").click()
    assert methods(page) == ["alpha", EVIL, "alpha", "beta", "gamma", "random"]
    head(page, 0).get_by_role("button").click()
    assert methods(page) == ["alpha", EVIL, "alpha", "beta", "gamma", "random"]
    assert page.locator(f"#{TOY} th[aria-sort]").count() == 1
    head(page, at + 1).get_by_role("button").click()  # rank
    assert methods(page)[1] == "beta"
    assert methods(page)[-2] == "gamma"
    page.locator(".pill", has_text="by track").click()  # all together
    head(page, at).get_by_role("button").click()
    assert methods(page) == ["beta", "alpha", "alpha", EVIL, "gamma", "random"]
    assert page.locator(f"#{TOY} .group:visible, #{TOY} .aside:visible").count() == 0


def test_filters_and_their_address(opened):
    page = opened()
    count = page.get_by_role("status")
    assert re.fullmatch(r"(\d+) of \1 rows in 2 of 2 tables", count.inner_text())
    page.locator(".pill", has_text="toy-task").click()
    assert page.locator("section.task:visible").count() == 1
    page.locator(".pill", has_text="references").click()
    page.locator("input[name=method][value=beta]").check(force=True)
    page.locator("input[name=method][value=random]").check(force=True)
    page.locator("input[name=fraction][value='0.1']").check(force=True)
    assert methods(page) == ["beta"]
    assert page.locator(f"#{TOY} thead th:visible").all_inner_texts()[1].startswith("10%")
    assert "1 of " in count.inner_text()
    again = opened("#" + page.url.partition("#")[2])
    assert methods(again) == ["beta"]
    again.get_by_role("button", name="Show all").click()
    again.wait_for_url(lambda url: url.endswith("#/"))
    assert len(methods(again)) == 6
    again.locator("input[name=track][value=large]").check(force=True)
    assert methods(again) == ["alpha"]
    again.locator("input[name=track][value=small]").check(force=True)
    again.locator("input[name=dataset][value=phantom]").check(force=True)
    assert again.locator(f"#{TOY}").is_hidden()
    assert again.locator(f"nav a[href='#{TOY}']").is_hidden()
    again.get_by_role("button", name="Show all").click()
    again.locator("input[name=profile][value=standard]").check(force=True)
    assert again.locator("section.task:visible").count() == 2


def test_filters_reach_the_plots(opened):
    page = opened()
    figure = page.locator(f"#{TOY} figure.plot[data-track=small]").first
    figure.scroll_into_view_if_needed()
    figure.locator(".main-svg").first.wait_for()
    names = "e => e.data.filter(t => t.visible !== false && t.meta).map(t => t.meta.method)"
    drawing = figure.locator(".drawing")
    assert set(drawing.evaluate(names)) == set(LEVELS)
    page.locator("input[name=method][value=beta]").check(force=True)
    assert set(drawing.evaluate(names)) == {"beta"}
    page.locator("input[name=track][value=large]").check(force=True)
    assert figure.is_hidden()


# --------------------------------------------------------------------------------------------- provenance


def test_where_a_number_comes_from(opened):
    page = opened()
    button = page.locator(f"#{TOY} tr[data-method=beta] td button.number").last
    button.focus()
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    dialog.wait_for()
    assert dialog.evaluate("d => d.contains(document.activeElement)")
    text = dialog.inner_text()
    for part in ("beta (small, phantom), 10% of the training data", "profile standard, protocol version 1", "rank 1",
                 "re-implemented from the abstract", "the mean over 2 runs", "subset 1, head 0, pre-training 0",
                 "images 40", "better"):
        assert part in text, part
    dialog.locator("summary").first.click()
    text = dialog.inner_text()
    for part in (cell("beta").digest, "w-beta", "prior-bench run --method beta", "c0ffee", "cpu: toy", "2.15.0",
                 "2026-01-01", "penalty", "1.5"):
        assert part in text, part
    for _ in range(12):  # the focus stays inside
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement === document.body || "
                             "document.querySelector('dialog').contains(document.activeElement)")
    page.keyboard.press("Escape")
    assert dialog.is_hidden()
    assert button.evaluate("b => b === document.activeElement")
    page.locator(f"#{TOY} tr[data-track=large] td button.number").first.click()
    assert "Not applicable: too <small>." in dialog.inner_text()
    dialog.get_by_role("button", name="Close").click()
    page.locator("#overview button.number").first.click()
    assert "beta (small): mean rank" in dialog.inner_text()
    assert "Toy-task (linear) on toy-data / findings, 1" in dialog.inner_text()


def test_published_numbers_stand_apart(opened):
    page = opened()
    section = page.locator("#published")
    assert "NOT measured here" in section.inner_text()
    section.locator("summary").first.click()
    section.locator("button.number:visible").first.click()
    text = page.get_by_role("dialog").inner_text()
    for part in ("NOT measured here", "protocol", "source"):
        assert part in text
    assert page.locator("section.task [data-published]").count() == 0


# ------------------------------------------------------------------------------------------- the page itself


def test_text_of_results_is_only_text(opened, written):
    page = opened()
    assert page.locator("img[src=x]").count() == 0
    assert page.locator(f"#{TOY} tr[data-track=small] th").get_by_text(EVIL).count() == 1
    assert EVIL_NOTE in page.locator(f"#{TOY} > .mark").inner_text()
    page.locator(f"#{TOY} tr", has_text=EVIL).locator("button.number").last.click()
    dialog = page.get_by_role("dialog")
    dialog.locator("summary").first.click()
    assert f"prior-bench run --method {EVIL}" in dialog.inner_text()
    assert EVIL_NOTE in dialog.inner_text()
    page.keyboard.press("Escape")
    draw_all(page)
    assert page.locator("img[src=x]").count() == 0
    for file in (written / "site" / "data").rglob("*.js"):
        assert "<" not in file.read_text(), file.name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_of_it_is_drawn_without_an_error(opened, scheme):
    page = opened(scheme=scheme)
    draw_all(page)
    assert page.locator("figure.plot .warning").count() == 0
    training = page.locator("#training figure")
    assert training.count() == 3  # of each track
    assert "not recomputed" in training.first.locator("figcaption").inner_text()
    assert training.first.locator("option").all_inner_texts() == ["total", EVIL, "lr"]
    select = page.locator("select.panel:visible").first
    drawing = page.locator("figure.plot:visible", has=page.locator("select.panel")).first.locator(".drawing")
    before = drawing.evaluate("e => JSON.stringify(e.data)")
    select.select_option(index=1)
    page.wait_for_timeout(200)
    assert drawing.evaluate("e => JSON.stringify(e.data)") != before


def test_links_and_files(opened, written):
    page = opened()
    targets = page.eval_on_selector_all("a[href]", "links => links.map(a => a.getAttribute('href'))")
    assert len(targets) > 4
    for target in targets:
        assert target.startswith("#")
        assert page.locator(f"[id='{target[1:]}']").count() == 1, target
    ids = page.eval_on_selector_all("[id]", "all => all.map(e => e.id)")
    assert len(ids) == len(set(ids))
    for source in page.eval_on_selector_all("[src], link[rel=stylesheet]", "all => all.map(e => e.src || e.href)"):
        assert Path(source.removeprefix("file://")).is_file(), source
    for name in ("index.html", "assets/page.css", "assets/page.js"):  # (plotly.js names addresses that it never asks)
        text = (written / "site" / name).read_text()
        elsewhere = r"""(src|href)=["'](?!assets/|data/|images/|#|data:)|url\(|@import|https?://"""
        assert not re.search(elsewhere, text), name
    assert urljoin(page.url, "x").startswith("file:")


def test_phone(opened):
    page = opened(width=360, height=740)
    wide = "document.documentElement.scrollWidth"
    assert page.evaluate(wide) == 360
    page.locator("summary", has_text="Filters").click()
    draw_all(page)
    assert page.evaluate(wide) == 360
    box = page.locator(f"#{TOY} .scroll").first
    assert box.evaluate("b => b.scrollWidth > b.clientWidth")
    page.locator(f"#{TOY} button.number").last.click()
    dialog = page.get_by_role("dialog")
    dialog.locator("summary").first.click()
    assert dialog.evaluate("d => d.querySelector('.body').scrollWidth <= d.clientWidth")
    assert page.evaluate(wide) == 360


def test_keyboard(opened):
    page = opened()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the numbers"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    sort = head(page, 0).get_by_role("button")
    sort.focus()
    assert sort.evaluate("b => getComputedStyle(b).outlineStyle") == "solid"
    page.keyboard.press("Space")
    assert head(page, 0).get_attribute("aria-sort") == "ascending"
    pill = page.locator("input[name=task]").first
    pill.focus()
    page.keyboard.press("Space")
    assert pill.is_checked()


def test_light_and_dark(opened):
    def background(page):
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    light, page = background(opened()), opened(scheme="dark")
    dark, switch = background(page), page.get_by_role("switch", name="Dark")
    assert light != dark
    assert switch.get_attribute("aria-checked") == "true"
    switch.click()
    assert background(page) == light
    page.reload()
    assert background(page) == light
    assert switch.get_attribute("aria-checked") == "false"


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 360)])
def test_accessibility(opened, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(scheme=scheme, width=width)

    def violations():
        found = axe.run(page, options={"preload": False}).response  # it would fetch the style sheet
        return [(v["id"], node["html"][:200]) for v in found["violations"] for node in v["nodes"]]

    assert violations() == []
    draw_all(page)
    page.locator("#published summary").first.click()
    page.locator("summary", has_text="How to read").click()
    assert violations() == []
    page.locator(f"#{TOY} button.number").last.click()
    page.get_by_role("dialog").locator("summary").first.click()
    assert violations() == []


# ------------------------------------------------------------------------------------------------- writing


def test_equal_bytes(written):
    write(written, "again", "other-cache")
    first, second = ({str(file.relative_to(written / name)): file.read_bytes()
                      for file in (written / name).rglob("*") if file.is_file()} for name in ("site", "again"))
    assert len(first) > 10
    assert sorted(first) == sorted(second)
    assert [name for name, content in first.items() if second[name] != content] == []


def test_it_says_what_it_was_made_from(written):
    from prior_bench import __version__

    text = (written / "site" / "index.html").read_text()
    cells = len(results.result_files(written / "results"))
    assert f"Made by prior-bench {__version__} from {cells} cells" in text
    assert "prior-bench leaderboard RESULTS --html DIR --published" in text


def test_an_earlier_page_is_replaced_and_nothing_else(written):
    site = written / "site"
    (site / "data" / "old.js").write_text("")
    write(written)
    assert not (site / "data" / "old.js").exists()
    other = written / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="holds other files"):
        write(written, "other")
    assert (other / "thesis.tex").read_text() == "precious"


def test_the_verb(tmp_path, written):
    done = CliRunner().invoke(app, ["leaderboard", str(written / "results"), "--output", str(tmp_path / "tables"),
                                    "--html", str(tmp_path / "site"), "--cache", str(written / "cache"),
                                    "--plugin", str(PLUGIN)])
    assert done.exit_code == 0, done.output
    assert str(tmp_path / "site" / "index.html") in done.output
    text = (tmp_path / "site" / "index.html").read_text()
    assert "published" not in text.lower()
    assert (tmp_path / "tables" / "LEADERBOARD.md").is_file()


def test_bad_input(tmp_path, written):
    def fails(*arguments):
        done = CliRunner().invoke(app, ["leaderboard", *map(str, arguments), "--cache", str(written / "cache"),
                                        "--plugin", str(PLUGIN)])
        assert done.exit_code == 2, done.output
        return done.output

    (tmp_path / "file").write_text("")
    assert "--html" in fails(written / "results", "--output", tmp_path / "t", "--html", tmp_path / "file")
    assert "does not exist" in fails(tmp_path / "none", "--html", tmp_path / "site")
    assert not (tmp_path / "site").exists()
    assert "nih" in fails(written / "results", "--output", tmp_path / "t", "--html", tmp_path / "site",
                                 "--examples-of", "nihh")

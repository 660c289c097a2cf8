"""The leaderboard: every number against a plain loop over the predictions, and what the tables say about the rest."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from prior_bench import plugins, results
from prior_bench.digests import digest_json
from prior_bench.errors import UserError
from prior_bench.leaderboard import files, rebuild
from prior_bench.statistics import group_draws
from prior_bench.task import Predictions
from prior_bench.types import Cell, Metric, Result

PLUGIN = Path(__file__).parents[1] / "plugin" / "toy_plugin.py"
GROUPS = [f"g{i // 2}" for i in range(40)]


@pytest.fixture(autouse=True)
def toy_plugins(monkeypatch):
    monkeypatch.setattr(plugins, "_from_files", {kind: {} for kind in plugins.KINDS})
    plugins.add_file(PLUGIN)


def cell(method, fraction=0.1, seed=0, source="phantom", **changes):
    made = Cell(method, "small", source, 0, f"w-{method}", "toy-task", 1, "standard", "linear", "s",
                "toy-data", "d", "findings", fraction, seed)
    return replace(made, **changes)


def store(folder, cell, level, finished="2026-01-01"):
    """A result whose error is about `level`."""
    values = np.random.default_rng([cell.subset_seed, len(cell.method)]).normal(level, 0.1, len(GROUPS))
    table = pa.table({"image": [f"i{i}" for i in range(len(GROUPS))], "group": GROUPS, "value": values})
    metric = Metric("error", float(values.mean()), higher_is_better=False, counts={"images": len(GROUPS)})
    results.write_result(folder, Result(cell, "done", (metric,), provenance={"finished": finished}), Predictions(table))
    return values


def write(folder):
    warnings = files.write(folder, folder, folder / "memo")
    return (folder / "LEADERBOARD.md").read_text(), list(csv.DictReader((folder / "leaderboard.csv").open())), warnings


def line(text, start):
    """The first line of a method, not that of the overview."""
    tables = text.split("## toy-task", 1)[-1]
    return next(line for line in tables.splitlines() if line.startswith(f"| {start}"))


def test_mean_deviation_and_interval_against_a_loop(tmp_path):
    per_seed = [store(tmp_path, cell("ours", seed=seed), 0.5) for seed in (0, 1, 2)]
    text, rows, warnings = write(tmp_path)
    means = [values.mean() for values in per_seed]
    draws = group_draws(GROUPS)
    replicates = []
    for i in range(1000):
        drawn = np.repeat(np.arange(len(GROUPS)), [draws[group][i] for group in GROUPS])
        replicates.append(np.mean([values[drawn].mean() for values in per_seed]))
    low, high = np.quantile(replicates, [0.025, 0.975])
    (row,) = [r for r in rows if r["metric"] == "error"]
    assert float(row["mean"]) == pytest.approx(np.mean(means), abs=1e-6)
    assert float(row["subset_deviation"]) == pytest.approx(np.std(means, ddof=1), abs=1e-6)
    assert float(row["interval_low"]) == pytest.approx(low, abs=1e-6)
    assert float(row["interval_high"]) == pytest.approx(high, abs=1e-6)
    assert row["runs"] == "3"
    assert f"| {np.mean(means):.3f} [{low:.3f}, {high:.3f}] " in line(text, "ours (small, phantom), this checkpoint")
    assert f"| subset {np.std(means, ddof=1):.3f} " in text.split("Variation, not sampling error")[1]
    assert "profile standard, protocol version 1" in text
    assert warnings == []


def test_best_is_bold_and_references_stand_below(tmp_path):
    store(tmp_path, cell("worse"), 0.6)
    store(tmp_path, cell("better"), 0.4)
    store(tmp_path, cell("reference", source="none"), 0.1)
    text, _, _ = write(tmp_path)
    assert "**0." in line(text, "better")
    assert "**" not in line(text, "worse")
    assert "**" not in line(text, "reference")
    order = [text.rindex(f"| {name}") for name in ("better", "worse", "*references*", "reference (")]
    assert order == sorted(order)


def test_what_a_reader_must_know_of_a_method_is_shown(tmp_path):
    made = cell("rebuilt")
    store(tmp_path, cell("other"), 0.5)
    store(tmp_path, made, 0.4)
    file = next(tmp_path.glob("rebuilt*.json"))
    content = json.loads(file.read_text())
    content["provenance"]["method"] = {"note": "re-implemented from the abstract"}
    file.write_text(json.dumps(content))
    text, rows, _ = write(tmp_path)
    assert line(text, r"rebuilt\* (small, phantom)")
    assert "\n\\* rebuilt: re-implemented from the abstract.\n" in text
    assert line(text, "other (small, phantom)")
    assert {row["method"]: row["note"] for row in rows} == {"rebuilt": "re-implemented from the abstract", "other": ""}


def test_each_track_has_its_own_best_and_ranks(tmp_path):
    for method, recipe, level in (("one", "small", 0.5), ("two", "small", 0.3), ("one", "large", 0.3),
                                  ("two", "large", 0.7), ("random", "large", 0.1)):
        store(tmp_path, cell(method, recipe=recipe, source="none" if method == "random" else "phantom"), level)
    text, rows, _ = write(tmp_path)
    firsts = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("|")]
    start = firsts.index("*track large*")
    assert firsts[start : start + 10] == [
        "*track large*", "one (large, phantom), this checkpoint", "two (large, phantom), this checkpoint",
        "*detectable difference*", "*references*", "random (large)", "*track small*",
        "one (small, phantom), this checkpoint", "two (small, phantom), this checkpoint", "*detectable difference*"]
    ranks = {(row["method"], row["recipe"]): row["rank"] for row in rows if row["metric"] == "error"}
    assert ranks == {("one", "large"): "1", ("two", "large"): "2", ("one", "small"): "2", ("two", "small"): "1",
                     ("random", "large"): ""}
    for (method, recipe), rank in ranks.items():
        assert ("**" in line(text.split("*track large*")[1], f"{method} ({recipe}")) == (rank == "1")


def test_difference_to_random_is_paired(tmp_path):
    ours = store(tmp_path, cell("ours"), 0.4)
    base = store(tmp_path, cell("random", source="none"), 0.6)
    text, _, _ = write(tmp_path)
    after = text.split("Difference to `random`")[1].split("Variation")[0]
    draws = np.stack([group_draws(GROUPS)[g] for g in GROUPS]).astype(float)
    differences = ((ours - base) @ draws / draws.sum(0))[:1000]
    low, high = np.quantile(differences, [0.025, 0.975])
    assert f"{(ours - base).mean():+.3f} [{low:+.3f}, {high:+.3f}]" in line(after, "ours")
    assert f"({2.8 * differences.std(ddof=1):.3f})" in line(after, "ours")
    assert "| random (small)" not in after


def test_the_untrained_encoder_of_a_changed_training_is_that_of_the_recipe(tmp_path):
    changes = {"short": "training.epochs=1", "betas": "training.betas=[0.9, 0.5],training.epochs=1",
               "size": "image.size=64"}
    for name, change in changes.items():
        store(tmp_path, cell(name, recipe=f"small[{change}]"), 0.3)
    store(tmp_path, cell("random", source="none"), 0.6)
    after = write(tmp_path)[0].partition("Difference to `random`")[2].partition("Variation")[0]
    assert "-0.3" in line(after, "short")
    assert "-0.3" in line(after, "betas")
    assert "| size (" not in after  # which is another encoder


def test_not_run_is_not_not_applicable(tmp_path):
    store(tmp_path, cell("ours", fraction=0.1), 0.5)
    store(tmp_path, cell("other", fraction=1.0), 0.5)
    small = cell("ours", fraction=0.01)
    results.write_result(tmp_path, Result(small, "not_applicable", reason="too small: 4 training groups"), None)
    text, rows, _ = write(tmp_path)
    assert line(text, "ours").count("not applicable [1]") == 1
    assert line(text, "ours").count("not run") == 1
    assert line(text, "other").count("not run") == 2
    assert "[1] too small: 4 training groups" in text
    assert [r["reason"] for r in rows if r["status"] == "not applicable"] == ["too small: 4 training groups"]


def test_undefined_has_its_reason(tmp_path):
    store(tmp_path, cell("ours"), 0.5)
    _, rows, _ = write(tmp_path)
    (row,) = [r for r in rows if r["metric"] == "never"]
    assert (row["status"], row["mean"], row["reason"]) == ("undefined", "", "no positives")


def test_missing_seeds_are_told(tmp_path):
    for seed in (0, 1):
        store(tmp_path, cell("whole", seed=seed), 0.5)
    store(tmp_path, cell("part"), 0.5)
    text, _, _ = write(tmp_path)
    assert "1 of 2 runs" in line(text, "part")
    assert "runs)" not in line(text, "whole")


def test_equal_bytes_with_and_without_memory(tmp_path):
    store(tmp_path, cell("ours"), 0.5)
    store(tmp_path, cell("random", source="none"), 0.6)
    write(tmp_path)
    assert len(list((tmp_path / "memo").iterdir())) == 2
    first = {name: (tmp_path / name).read_bytes() for name in files.FILES}
    files.write(tmp_path, tmp_path / "elsewhere", tmp_path / "elsewhere" / "memo")
    write(tmp_path)
    for name, content in first.items():
        assert (tmp_path / "elsewhere" / name).read_bytes() == content
        assert (tmp_path / name).read_bytes() == content


def test_equal_bytes_whatever_the_order_the_locale_and_the_seed_of_hashes(tmp_path):
    """Files are made in another order with rows in another order, and read by another process."""
    made = [("ours", 0), ("ours", 1), ("other", 0), ("third", 0)]
    outputs = []
    for number, order in enumerate((made, made[::-1])):
        folder = tmp_path / str(number)
        for method, seed in order:
            one = cell(method, seed=seed)
            store(folder, one, 0.5)
            stored = results.read_result(results.result_path(folder, one))
            found = results.read_predictions(folder, stored)
            rows = np.random.default_rng(number).permutation(len(found.table))
            results.write_result(folder, stored, Predictions(found.table.take(rows), found.extra))
        program = "import sys; from prior_bench.cli import main; main()"
        environment = os.environ | {"PYTHONHASHSEED": str(number), "LC_ALL": ("C", "C.UTF-8")[number],
                                    "PYTHONUTF8": "0", "PRIOR_BENCH_CACHE": str(folder / "cache")}
        subprocess.run([sys.executable, "-c", program, "leaderboard", folder, "--published", "--plugin", PLUGIN],
                       env=environment, check=True, capture_output=True)
        outputs.append({name: (folder / name).read_bytes() for name in files.FILES})
    assert outputs[0] == outputs[1]


def test_json_says_what_the_csv_says(tmp_path):
    for method, level in (("ours", 0.5), ("other", 0.7)):
        store(tmp_path, cell(method), level)
    results.write_result(tmp_path, Result(cell("ours", fraction=0.01), "not_applicable", reason="too small"), None)
    _, rows, _ = write(tmp_path)
    content = json.loads((tmp_path / "leaderboard.json").read_text())
    (table,) = content["tables"]
    for record, row in zip(table["records"], rows, strict=True):
        assert set(record) | set(table) >= set(row)
        assert all(row[name] == ("" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value))
                   for name, value in record.items())
    (comparison,) = table["comparisons"]
    assert comparison["better"] == ("a" if comparison["a"]["method"] == "ours" else "b")  # lower is better
    assert comparison["p"] == comparison["p_holm"] < 0.05
    assert [s["method"] for s in content["overviews"][0]["methods"]] == ["ours", "other"]


def test_memory_is_used_and_keyed_by_content(tmp_path, monkeypatch):
    store(tmp_path, cell("ours"), 0.5)
    write(tmp_path)
    monkeypatch.setattr(rebuild, "read_predictions", lambda *_: pytest.fail("read again"))
    write(tmp_path)
    store(tmp_path, cell("ours", seed=1), 0.5)
    with pytest.raises(pytest.fail.Exception, match="read again"):
        write(tmp_path)


def test_stored_numbers_are_not_believed(tmp_path):
    values = store(tmp_path, cell("ours"), 0.5)
    path = results.result_path(tmp_path, cell("ours"))
    content = json.loads(path.read_text())
    content["metrics"][0]["value"] = 0.001
    path.write_text(json.dumps(content))
    _, rows, warnings = write(tmp_path)
    assert float(next(r for r in rows if r["metric"] == "error")["mean"]) == pytest.approx(values.mean(), abs=1e-6)
    assert "stored error differ" in warnings[0]


def test_changed_predictions_are_found_even_if_remembered(tmp_path):
    store(tmp_path, cell("ours"), 0.5)
    write(tmp_path)
    path = results.predictions_path(tmp_path, cell("ours"))
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(UserError, match="another digest"):
        write(tmp_path)


def test_earlier_weights_and_data_are_left_out(tmp_path):
    store(tmp_path, cell("ours", weights_digest="old"), 0.9, "2026-01-01")
    store(tmp_path, cell("ours", weights_digest="new"), 0.5, "2026-01-02")
    store(tmp_path, cell("ours", fraction=1.0, weights_digest="old", data_digest="older"), 0.9, "2025-01-01")
    text, rows, _ = write(tmp_path)
    (row,) = [r for r in rows if r["metric"] == "error"]
    assert float(row["mean"]) < 0.6
    assert "1 result of earlier weights of ours" in text
    assert "1 result of other data or settings of toy-task" in text


def test_results_of_this_program_are_kept_whatever_others_say_of_their_time(tmp_path):
    """One cell from anywhere must not take the place of all others."""
    settings = digest_json({"profile": "standard"})
    data = plugins.load("datasets", "toy-data")().digest()
    store(tmp_path, cell("ours", settings_digest=settings, data_digest=data), 0.5)
    for name, changes in {"forged": {"settings_digest": "0"}, "other-data": {"data_digest": "0"},
                          "neither": {"settings_digest": "0", "data_digest": "0"}}.items():
        made = cell(name, **{"settings_digest": settings, "data_digest": data} | changes)
        store(tmp_path, made, 0.1, "9999-12-31")
    store(tmp_path, cell("ours", settings_digest="0", weights_digest="other"), 0.1, "9999-12-31")
    text, rows, _ = write(tmp_path)
    assert [r["method"] for r in rows if r["metric"] == "error"] == ["ours"]
    assert "- 4 results of other data or settings of toy-task on toy-data/findings are left out." in text


def test_the_last_results_are_kept_whatever_zone_their_times_are_in(tmp_path):
    store(tmp_path, cell("ours", settings_digest="last"), 0.5, "2026-01-01T23:00:00+00:00")
    store(tmp_path, cell("ours", settings_digest="first"), 0.9, "2026-01-02T01:00:00+12:00")
    _, rows, _ = write(tmp_path)
    assert float(next(r["mean"] for r in rows if r["metric"] == "error")) < 0.6


def test_two_profiles_never_share_a_table(tmp_path):
    store(tmp_path, cell("ours"), 0.5)
    store(tmp_path, cell("ours", profile="paper"), 0.5)
    text, _, _ = write(tmp_path)
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert [h.split("findings: ")[1] for h in headings] == ["profile paper, protocol version 1",
                                                            "profile standard, protocol version 1"]


def test_another_version_of_a_protocol_is_left_out(tmp_path):
    """Its numbers could not be rebuilt; what this program makes of its predictions would stand under its name."""
    values = store(tmp_path, cell("ours"), 0.5)
    store(tmp_path, cell("ours", protocol_version=2), 0.9, "2030-01-01")
    store(tmp_path, cell("other", protocol_version=2), 0.9, "2030-01-01")
    text, rows, _ = write(tmp_path)
    assert [float(r["mean"]) for r in rows if r["metric"] == "error"] == pytest.approx([values.mean()])
    assert "- 2 results of protocol version 2 of toy-task, which this program cannot compute, are left out." in text


def test_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        files.write(tmp_path / "none", tmp_path, tmp_path)

"""The paired comparison of two methods, against the tables and a plain loop, and what it says it cannot compare."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from prior_bench import results
from prior_bench.errors import UserError
from prior_bench.leaderboard.comparison import Comparison, LeftOut, compare, label_tests
from prior_bench.leaderboard.rebuild import rebuild
from prior_bench.paired_tests import delong

ZERO_SHOT = "*_zero-shot_zero-shot_phantom_phantom-5x40_*"
LINEAR = "*_classification_linear_phantom_findings_0.1_s{}_*"


def stored_again(folder, method, /, **changes):
    """A copy of a method's cells with another identity."""
    for result in list(results.read_results(folder)):
        if result.cell.method == method:
            predictions = results.read_predictions(folder, result)
            results.write_result(folder, replace(result, cell=replace(result.cell, **changes)), predictions)


def test_the_difference_in_the_same_draws(committed, tmp_path):
    folder = committed(LINEAR.format(0), LINEAR.format(1))
    (found,) = compare(folder, ("prior", "random"), tmp_path / "memo")
    assert isinstance(found, Comparison)
    rebuilt = rebuild(folder, list(results.read_results(folder)), tmp_path / "memo")
    of = {method: [r for r in rebuilt if r.result.cell.method == method] for method in ("prior", "random")}
    a, b = (np.mean([r.replicates["auroc_macro"] for r in of[method]], axis=0)[:1000] for method in of)
    assert found.paired.interval == pytest.approx(np.quantile(a - b, [0.025, 0.975]))
    assert found.a.mean == pytest.approx(np.mean([r.metrics["auroc_macro"].value for r in of["prior"]]))
    assert (found.groups, found.a.cells, found.b.cells, found.pretrain_seeds) == (356, 2, 2, (1, 1))
    assert str(found.place) == "classification (linear) on phantom/findings, small-long, 10%"
    (turned,) = compare(folder, ("random", "prior"), tmp_path / "memo")
    assert turned.paired.difference == pytest.approx(-found.paired.difference)
    assert turned.paired.p == pytest.approx(found.paired.p)


def test_each_label_in_each_pair_of_runs(committed, tmp_path):
    folder = committed(LINEAR.format(0), LINEAR.format(1))
    (found,) = compare(folder, ("prior", "random"), tmp_path / "memo")
    tests = list(label_tests(folder, found))
    assert {test.seeds for test in tests} == {"0, 0, 0", "1, 0, 0"}
    assert len(tests) == 2 * 8  # labels
    first = {r.cell.method: results.read_predictions(folder, r).table
             for r in results.read_results(folder) if r.cell.subset_seed == 0}
    columns = [first[method]["score_edema"].to_numpy() for method in ("prior", "random")]
    labels, groups = (first["prior"][name].to_numpy() for name in ("label_edema", "group"))
    edema = next(test for test in tests if (test.seeds, test.metric) == ("0, 0, 0", "auroc_edema"))
    assert edema.p == pytest.approx(delong(*columns, labels, groups).p)
    assert edema.test == "DeLong, clustered"
    clear = ~np.isnan(labels.astype(float))
    assert (edema.a, edema.b) == pytest.approx([roc_auc_score(labels[clear], one[clear]) for one in columns])


def test_only_common_seeds_are_compared(committed, tmp_path):
    folder = committed(LINEAR.format(0), "prior" + LINEAR.format(1), "thumbnail" + LINEAR.format(2))
    (found,) = compare(folder, ("prior", "random"), tmp_path / "memo")
    assert (found.a.cells, found.b.cells) == (1, 1)
    for file in folder.glob("thumbnail*_s0_*"):
        file.unlink()
    (found,) = compare(folder, ("prior", "thumbnail"), tmp_path / "memo")
    assert found.reason == "no subset and head seeds that both have"


def test_what_cannot_be_compared_has_its_reason(committed, tmp_path):
    folder = committed(ZERO_SHOT, "prior" + LINEAR.format(0))
    found = compare(folder, ("prior", "random"), tmp_path / "memo")
    assert all(isinstance(one, LeftOut) for one in found)
    assert [one.reason for one in found] == ["random: not run", "random: random has no text encoder"]


def test_methods_pre_trained_on_other_data_are_not_compared(committed, tmp_path):
    folder = committed("prior" + ZERO_SHOT)
    stored_again(folder, "prior", method="other", pretrain_source="elsewhere")
    (found,) = compare(folder, ("prior", "other"), tmp_path / "memo")
    assert found.reason.startswith("pre-trained on other data: prior (small-long, phantom) and other")


def test_recipes_are_tracks_of_their_own(committed, tmp_path):
    folder = committed("prior" + ZERO_SHOT)
    stored_again(folder, "prior", method="other")
    stored_again(folder, "other", recipe="small")
    found = compare(folder, ("prior", "other"), tmp_path / "memo")
    assert [type(one) for one in found] == [LeftOut, Comparison]
    (same,) = compare(folder, ("prior", "other"), tmp_path / "memo", recipe="small-long")
    assert (same.paired.difference, same.paired.interval, same.paired.p) == (0.0, (0.0, 0.0), 1.0)


def test_a_reference_may_have_another_recipe(committed, tmp_path):
    """As encoders by file do, whose recipes name the file; not where there is one that both have."""
    folder = committed("thumbnail" + LINEAR.format(0), "random" + LINEAR.format(0))
    stored_again(folder, "random", method="other", recipe="small[image.weights=other.pth]")
    (found,) = compare(folder, ("thumbnail", "other"), tmp_path / "memo")
    assert isinstance(found, Comparison)
    assert found.place.recipe == "small-long and small[image.weights=other.pth]"
    stored_again(folder, "random", method="other")
    found = compare(folder, ("thumbnail", "other"), tmp_path / "memo")
    assert {(one.place.recipe, type(one)) for one in found} == {
        ("small-long", Comparison), ("small[image.weights=other.pth]", LeftOut)}


def test_two_recipes_of_one_method(committed, tmp_path):
    folder = committed("prior" + LINEAR.format(0), "random" + LINEAR.format(0))
    (methods,) = compare(folder, ("prior", "random"), tmp_path / "memo")
    stored_again(folder, "random", method="prior", recipe="ci[image.weights=a@b.pth]")
    other = "prior@ci[image.weights=a@b.pth]"
    (found,) = compare(folder, ("prior@small-long", other), tmp_path / "memo")
    assert found.paired.interval == methods.paired.interval
    assert found.place.recipe == "small-long and ci[image.weights=a@b.pth]"
    (turned,) = compare(folder, (other, "prior@small-long"), tmp_path / "memo")
    assert turned.paired.difference == -found.paired.difference
    for pair in (("prior", other), (other, other), (other, "prior")):
        with pytest.raises(UserError, match="'prior' is compared with itself"):
            compare(folder, pair, tmp_path)


def test_a_recipe_on_one_side(committed, tmp_path):
    folder = committed("prior" + LINEAR.format(0), "random" + LINEAR.format(0), "prior" + ZERO_SHOT)
    stored_again(folder, "random", recipe="small")
    stored_again(folder, "prior", method="other", recipe="small")
    found = compare(folder, ("prior@small-long", "random"), tmp_path / "memo")
    assert [(str(one.place), type(one)) for one in found] == [
        ("classification (linear) on phantom/findings, small-long, 10%", Comparison),
        ("zero-shot on phantom/phantom-5x40, small-long", LeftOut)]
    found = compare(folder, ("other@small", "prior"), tmp_path / "memo")
    assert [one.reason for one in found] == ["prior: not run", "prior: not run"]
    found = compare(folder, ("other@small", "prior@small-long"), tmp_path / "memo")
    assert {one.paired.difference for one in found} == {0.0}


def test_a_method_with_an_at_in_its_name(committed, tmp_path):
    folder = committed("prior" + ZERO_SHOT)
    stored_again(folder, "prior", method="prior@v2")
    for name in ("prior@v2", "prior@v2@small-long"):
        (found,) = compare(folder, ("prior", name), tmp_path / "memo")
        assert found.paired.difference == 0.0


def test_what_was_not_run(committed, tmp_path):
    folder = committed(ZERO_SHOT)
    with pytest.raises(UserError, match="the method 'gloria' is not in these results") as error:
        compare(folder, ("prior", "gloria"), tmp_path)
    assert error.value.expected == "one of prior, random, thumbnail"
    assert error.value.fix == f"run it first: prior-bench run --method gloria --output {folder}"
    with pytest.raises(UserError, match="the recipe 'ci' of 'prior' is not in these results") as error:
        compare(folder, ("prior@ci", "random"), tmp_path)
    assert (error.value.expected, error.value.fix) == ("one of small-long", "run it first")


def test_names_that_are_not_there(committed, tmp_path):
    folder = committed(ZERO_SHOT)
    with pytest.raises(UserError, match="unknown method 'piror'"):
        compare(folder, ("piror@small", "random"), tmp_path)
    with pytest.raises(UserError, match="did you mean 'random'"):
        compare(folder, ("prior", "rnadom"), tmp_path)
    with pytest.raises(UserError, match="did you mean 'small-long'"):
        compare(folder, ("prior", "random"), tmp_path, recipe="small-lon")
    with pytest.raises(UserError, match="with itself"):
        compare(folder, ("prior", "prior"), tmp_path)

"""`prior-bench diagnose`: numbers and pictures of tiny weights on a tiny phantom, what is missing, mistakes."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from prior_bench import plugins, recipes
from prior_bench.cli import app
from prior_bench.datasets.phantom import Phantom
from prior_bench.datasets.phantom.studies import Size
from prior_bench.recipe_files import recipe_file
from prior_bench.weights import new_method, save_weights

SMALL = {"image.name": "test_resnet", "image.size": 64, "text.layers": 1, "text.width": 16, "text.heads": 2,
         "text.vocabulary": 120}
MGCA = {**SMALL, "width": 8, "hidden": 12, "prototypes": 5}


@pytest.fixture
def diagnose(tmp_path, monkeypatch):
    monkeypatch.setattr(Phantom, "size", Size(pixels=64, train=0, validation=0, test=24, per_class=1, seed=0))

    def call(name: str, settings: dict, rows: list[dict], *options: str):
        kind = plugins.load("methods", name)
        recipe = recipes.load(recipe_file(name), "small", kind.recipe_class, settings)
        method = new_method(kind, recipe, 0, ["The heart is enlarged. Small left pleural effusion."])
        save_weights(tmp_path / "run" / "weights", method, recipe, {})
        (tmp_path / "run" / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        command = ["diagnose", str(tmp_path / "run" / "weights"), "--output", str(tmp_path / "out"), "--cache",
                   str(tmp_path / "cache"), "--device", "cpu", *options]
        return CliRunner().invoke(app, command)

    return call


def rows(steps: int) -> list[dict]:
    return [{"step": i, "epoch": 0, "stage": 1 + i // 10, "lr": 0.1, "total": 2.0, "L_ITA": 1.0,
             "images_per_second": 9.0} for i in range(steps)]


def test_numbers_and_pictures(diagnose, tmp_path):
    result = diagnose("mgca", MGCA, rows(20))
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"diagnosis.json", "curves.png", "use.png",
                                                                    "pointing.png"}
    assert found["curves"]["L_ITA"]["last"] == 1
    assert found["use"].keys() == {"images", "texts"}
    assert found["use"]["texts"]["items"] == 29
    game = found["pointing"]["words to image"]
    assert game["all"]["sentences"] == sum(own["sentences"] for kind, own in game.items() if kind != "all") > 0
    assert "pointing, words to image, all: " in result.output
    assert "use by images: entropy " in result.output


def test_a_method_without_maps_and_a_copy_without_a_log(diagnose, tmp_path):
    result = diagnose("convirt", {**SMALL, "width": 8}, [])
    assert result.exit_code == 0, result.output
    assert "no curves: there is no log" in result.output
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"diagnosis.json"}


def test_mistakes_are_one_message(tmp_path):
    for arguments, message in (([str(tmp_path)], "this is not a weights folder"),
                               ([str(tmp_path), "--plugin", "none.py"], "does not exist")):
        result = CliRunner().invoke(app, ["diagnose", *arguments])
        assert result.exit_code == 2
        assert message in result.output
        assert "or a weights file" not in result.output


def test_an_unknown_dataset_is_named(diagnose):
    result = diagnose("convirt", {**SMALL, "width": 8}, [], "--dataset", "fantom")
    assert result.exit_code == 2
    assert "did you mean 'phantom'" in result.output

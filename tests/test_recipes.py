"""What a recipe refuses, and whom it blames: the file or `--set`."""

from __future__ import annotations

import pytest

from prior_bench import recipes
from prior_bench.errors import UserError

RECIPES = """
good: {training: {batch: 4, epochs: 1, stages: [{share: 1, lr: 0.1}]}}
bad: {extends: good, training: {epoch: 1}}
"""


@pytest.mark.parametrize(("name", "overrides", "what", "where", "fix"), [
    ("good", {"training.epoch": 1}, "unknown setting 'training.epoch'", "--set", "did you mean 'training.epochs'"),
    ("good", {"epochs": 1}, "unknown setting 'epochs'", "--set", "did you mean 'training.epochs'"),
    ("good", {"training": {"epoch": 1}}, "unknown setting 'training.epoch'", "--set", "'training.epochs'"),
    ("bad", {}, "unknown setting 'training.epoch'", "recipe.yaml", "'training.epochs'"),
    ("good", {"a.b": 1}, "unknown setting 'a'", "--set", "see the recipes in"),
    ("good", {"training.epochs": "x"}, "training.epochs: Input should be a valid number", "--set", ""),
])
def test_what_is_not_valid_is_named_with_who_said_it(tmp_path, name, overrides, what, where, fix):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPES)
    with pytest.raises(UserError) as error:
        recipes.load(file, name, recipes.Recipe, overrides)
    assert what in error.value.what
    assert error.value.where.endswith(where)
    assert fix in error.value.fix
    if "unknown setting 'training" in what:
        assert error.value.expected.startswith("one of training.batch, training.betas")

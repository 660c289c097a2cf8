"""`--plugin FILE`: a file that cannot be used is told, with the line at which it fails."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from prior_bench import plugins, recipe_files
from prior_bench.cli.common import add_plugins
from prior_bench.errors import UserError


@pytest.mark.parametrize(("text", "says", "line"), [
    ("import os\nx = (\n", "SyntaxError: '(' was never closed", 2),
    ("import nosuchmodule\n", "ModuleNotFoundError: No module named 'nosuchmodule'", 1),
    ("import json\n\njson.loads('{')\n", "JSONDecodeError", 3),  # raised elsewhere, reached from here
])
def test_a_file_that_fails(tmp_path, monkeypatch, text, says, line):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(text)
    with pytest.raises(UserError) as error:
        plugins.add_file(Path("own.py"))
    assert says in error.value.what
    assert error.value.where.endswith(f"own.py, line {line}")


def test_a_file_that_is_no_python(tmp_path):
    (tmp_path / "own").write_text("")
    with pytest.raises(UserError, match=r"give a \.py file"):
        plugins.add_file(tmp_path / "own")


DATASET = """
from prior_bench.data.dataset import Dataset
class Mine(Dataset):
    load_studies = load_labels = fingerprint = read_image = None
"""


@pytest.mark.parametrize(("says", "message"), [
    ("targets = {}", "the class Mine lacks budget, name"),
    ("name, targets, budget = 'my data', {}, None", "'my data' cannot be the name of a dataset"),
    ("name, targets, budget = 'phantom', {}, None", "'phantom' is that of an installed dataset"),
])
def test_a_class_that_does_not_say_who_it_is(tmp_path, says, message):
    (tmp_path / "own.py").write_text(f"{DATASET}    {says}\n")
    with pytest.raises(UserError, match=message):
        plugins.add_file(tmp_path / "own.py")


def test_files_of_one_name(tmp_path):
    """Each keeps its own sources and recipes, wherever it lies."""
    text = (Path(__file__).parent / "engine" / "toy_method.py").read_text()
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "method.py").write_text(text.replace('"toy-method"', f'"toy-{name}"'))
        assert plugins.add_file(tmp_path / name / "method.py") == [f"toy-{name}"]
    for name in ("one", "other"):
        assert plugins.sources("methods", f"toy-{name}") == tmp_path / name / "method.py"
        assert recipe_files.recipe_file(f"toy-{name}") == tmp_path / name / "recipe.yaml"


def test_sources_are_the_whole_package():
    """What a method computes may hang on its neighbours, as timm's does on the towers' base class."""
    folder = plugins.sources("methods", "timm:resnet18.a1_in1k")
    assert (folder / "towers.py").is_file()
    assert folder == plugins.sources_of(plugins.load("methods", "timm")) == plugins.sources("methods", "hf")


def test_sources_that_are_not_there(monkeypatch):
    gone = EntryPoint("gone", "nosuchpackage.method:Gone", "prior_bench.methods")
    monkeypatch.setattr(plugins, "_entry_points", lambda kind: {"gone": gone})
    with pytest.raises(UserError, match="the sources of the method 'gone' were not found"):
        plugins.sources("methods", "gone")


def test_two_files_with_one_name(tmp_path):
    for name in ("one", "other"):
        (tmp_path / f"{name}.py").write_text(f"{DATASET}    name, targets, budget = 'mine', {{}}, None\n")
    with pytest.raises(UserError, match="two plug-in files have the name 'mine'"):
        add_plugins([tmp_path / "one.py", tmp_path / "other.py"])
    add_plugins([tmp_path / "one.py", tmp_path / "one.py"])

"""The wheel holds every source folder, the entry points can be found, and CI runs what the README says."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest

from prior_bench import plugins, recipe_files

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())
SOURCES = {"prior_bench": "prior_bench", "methods": "prior_bench.methods", "tasks": "prior_bench.tasks",
           "leaderboard": "prior_bench.leaderboard"}


def test_every_folder_with_sources_is_a_package():
    folders = set()
    for top, package in SOURCES.items():
        for file in (ROOT / top).rglob("*.py"):
            parts = file.parent.relative_to(ROOT / top).parts
            folders.add(".".join([package, *parts]))
    assert folders == set(CONFIG["tool"]["setuptools"]["packages"])


def test_every_data_file_is_packaged():
    """All but the pictures of READMEs, which no program reads."""
    patterns = CONFIG["tool"]["setuptools"]["package-data"]["*"]
    for top in SOURCES:
        for file in (ROOT / top).rglob("*"):
            skipped = file.suffix in {".py", ".pyc", ".png"} or not (file.parent / "__init__.py").is_file()
            assert file.is_dir() or skipped or any(file.match(pattern) for pattern in patterns), file


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_entry_points_exist(kind):
    stated = CONFIG["project"]["entry-points"][f"prior_bench.{kind}"]
    assert set(stated) <= set(plugins.names(kind))
    for name in stated:
        assert plugins.sources(kind, name).is_dir()


@pytest.mark.parametrize("name", CONFIG["project"]["entry-points"]["prior_bench.methods"])
def test_every_method_has_recipes(name):
    assert recipe_files.read(recipe_files.recipe_file(name))


def test_ci_runs_the_readme():
    """The two commands differ in the environment's name only."""
    command = "-m venv .venv && .venv/bin/pip install tox && .venv/bin/tox"
    assert f"python3 {command}" in (ROOT / "README.md").read_text()
    run = (ROOT / ".ci" / "run").read_text().replace('"', "").replace("$environment", ".venv")
    assert f"{command} $@" in run


def test_constraints_pin_every_dependency():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {_normal(line.split("==")[0]) for line in lines if "==" in line}
    needed = [r for r in requires("prior-bench") if "extra ==" not in r]
    assert {_normal(re.split(r"[<>=~!; ]", r)[0]) for r in needed} <= pinned


def test_constraints_name_no_addresses():
    assert "://" not in (ROOT / "constraints.txt").read_text()


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

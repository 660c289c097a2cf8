"""`--plugin FILE`: a file that cannot be used is told, with the line at which it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from prior_bench import plugins
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


def test_a_class_without_a_name(tmp_path):
    (tmp_path / "own.py").write_text("from prior_bench.data.dataset import Dataset\n\n\nclass Mine(Dataset):\n"
                                     "    load_studies = load_labels = fingerprint = read_image = None\n")
    with pytest.raises(UserError, match="the class Mine has no name"):
        plugins.add_file(tmp_path / "own.py")

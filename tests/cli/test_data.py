"""`prior-bench data show` and `data verify` on the toy plug-in."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from PIL import Image

from prior_bench import plugins
from prior_bench.cli import data

PLUGIN = Path(__file__).parents[1] / "plugin" / "toy_plugin.py"


@pytest.fixture(autouse=True)
def toy_plugins(monkeypatch):
    monkeypatch.setattr(plugins, "_from_files", {kind: {} for kind in plugins.KINDS})
    plugins.add_file(PLUGIN)


def test_show_writes_a_picture(tmp_path, capsys):
    data.show("toy-data", output=tmp_path / "new" / "sheet.png", studies=3, cache=tmp_path)
    assert f"wrote {tmp_path / 'new' / 'sheet.png'}" in capsys.readouterr().out
    assert Image.open(tmp_path / "new" / "sheet.png").width > 100


def test_verify_counts_and_fails_on_errors(tmp_path, monkeypatch, capsys):
    data.verify("toy-data", cache=tmp_path)
    assert "toy-data: 80 studies, 80 images, 40 leak groups, " in (said := capsys.readouterr().out)
    assert said.endswith(" remarks\n")
    monkeypatch.setenv("TOY_BAD", "i3")
    with pytest.raises(typer.Exit) as exit_:
        data.verify("toy-data", cache=tmp_path)
    assert exit_.value.exit_code == 2
    assert "error: " in capsys.readouterr().out


def test_unknown_dataset(tmp_path, capsys):
    with pytest.raises(typer.Exit) as exit_:
        data.show("toy-dat", cache=tmp_path)
    assert exit_.value.exit_code == 2
    assert "did you mean 'toy-data'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["sheet.foo", "sheet", "folder.png"])
def test_no_name_of_a_picture(tmp_path, capsys, name):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(typer.Exit) as exit_:
        data.show("toy-data", output=tmp_path / name, cache=tmp_path)
    assert exit_.value.exit_code == 2
    assert "a file that ends in .png" in capsys.readouterr().err

"""Caches, and folders that are replaced in one step."""

from __future__ import annotations

import pytest

from prior_bench import files
from prior_bench.errors import UserError


def test_the_cache_is_where_the_variable_says(monkeypatch, tmp_path):
    monkeypatch.setenv(files.CACHE_VARIABLE, str(tmp_path))
    assert files.default_cache() == tmp_path
    monkeypatch.delenv(files.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.default_cache() == tmp_path / "prior-bench"


def test_a_folder_takes_the_place_of_another_whole(tmp_path):
    for name, content in (("new", "b"), ("old", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / content).write_text(name)
    files.replace_folder(tmp_path / "new", tmp_path / "old")
    assert [p.name for p in (tmp_path / "old").iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["old"]  # nothing temporary is left
    files.replace_folder(tmp_path / "old", tmp_path / "free")
    assert [p.name for p in tmp_path.iterdir()] == ["free"]


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "kept.txt"
    files.write_text(path, "old")

    def breaks(file):
        file.write(b"half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left") as error:
        files.write_file(path, breaks, option="--cache")
    assert "--cache" in error.value.fix
    with pytest.raises(ZeroDivisionError):
        files.write_file(path, lambda file: 1 // 0)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]  # nothing temporary is left


def test_output_that_cannot_be_written_is_found(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write") as error:
        files.check_writable(tmp_path / "file" / "results", 1, "--output")
    assert "--output" in str(error.value)
    assert (error.value.where, error.value.expected) == (str(tmp_path / "file"), "a folder")
    files.check_writable(tmp_path / "new", 1, "--output")
    assert list((tmp_path / "new").iterdir()) == []


def test_full_disk_is_found(tmp_path):
    with pytest.raises(UserError, match="nearly full"):
        files.check_writable(tmp_path, 1 << 62, "--cache")

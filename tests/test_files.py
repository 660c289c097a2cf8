"""Caches, and folders that are replaced in one step."""

from __future__ import annotations

from prior_bench import files


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

"""The committed leaderboard is what the committed predictions give."""

import csv
from pathlib import Path

import pytest

from prior_bench.leaderboard import files

COMMITTED = Path(__file__).parents[2] / "leaderboard"


def rows(folder):
    return list(csv.DictReader((folder / "leaderboard.csv").open()))


def test_the_committed_leaderboard_is_rebuilt_from_its_predictions(tmp_path):
    assert files.write(COMMITTED / "results", tmp_path, tmp_path / "memo") == []
    assert len(rows(tmp_path)) == len(rows(COMMITTED))
    for found, committed in zip(rows(tmp_path), rows(COMMITTED), strict=True):
        for name, value in committed.items():
            try:
                expected = float(value)
            except ValueError:
                assert found[name] == value, name
            else:
                assert float(found[name]) == pytest.approx(expected, abs=1e-6), name
    headings = [[line for line in (folder / "LEADERBOARD.md").read_text().splitlines() if line.startswith("#")]
                for folder in (tmp_path, COMMITTED)]
    assert headings[0] == headings[1]


def test_no_committed_result_names_a_folder_of_a_machine():
    for file in (COMMITTED / "results").glob("*.json"):
        text = file.read_text()
        assert not any(f'{quote}/{folder}/' in text for quote in ('"', ' ', '=')
                       for folder in ("home", "root", "tmp", "work", "Users", "data", "mnt")), file.name

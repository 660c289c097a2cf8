"""Provenance: a command without the folders of the machine it ran on."""

import pytest

from prior_bench import provenance


@pytest.mark.parametrize(("argv", "shown"), [
    (["/opt/env/bin/prior-bench", "run", "--output", "/data/me/results/"], "prior-bench run --output results"),
    (["prior-bench", "run", "--cache=/tmp/c", "--output", "a/results"], "prior-bench run --cache=c --output a/results"),
    (["prior-bench", "run", "--set", "text.name=/models/bert", "--task", "all"],
     "prior-bench run --set text.name=bert --task all"),
    (["prior-bench", "run", "--set", "image.name=resnet 18"], "prior-bench run --set 'image.name=resnet 18'"),
])
def test_command_names_no_folder_of_the_machine(monkeypatch, argv, shown):
    monkeypatch.setattr("sys.argv", argv)
    assert provenance.command() == shown

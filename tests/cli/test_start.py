"""The command line starts quickly because it imports little, and says what is wrong with what was typed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "pydantic", "rich", "pandas", "pyarrow", "scipy", "sklearn", "timm", "transformers", "matplotlib")
PROGRAM = f"""
import atexit, sys
heavy = {HEAVY!r}
atexit.register(lambda: print("IMPORTED", *sorted(set(heavy) & set(sys.modules))))
from prior_bench.cli import main
main()
"""


def start(tmp_path, *arguments):
    environment = os.environ | {"PRIOR_BENCH_CACHE": str(tmp_path / "cache")}
    return subprocess.run([sys.executable, "-c", PROGRAM, *arguments], cwd=tmp_path, env=environment, text=True,
                          capture_output=True, stdin=subprocess.DEVNULL, timeout=300)


@pytest.mark.parametrize(("arguments", "code", "says"), [
    (["--help"], 0, "leaderboard"),
    (["run", "--help"], 0, "--max-bad-images"),
    (["--version"], 0, "0."),
    (["diagnose", "--help"], 0, "pointing game"),
    (["list"], 0, "covid-chestxray"),
    (["list", "methods"], 0, "; re-implemented from the abstract"),
    (["list", "datasets"], 0, "phantom-5x40 (exclusive)"),
    (["list", "datasets"], 0, "covid (multilabel, no prompts, on request)"),
    (["list", "method"], 2, "did you mean 'methods'"),
    (["run", "--method", "prior", "--dry-run"], 0, "to be pre-trained"),
    (["run", "--method", "pirot"], 2, "did you mean 'prior'"),
    (["run", "--method", "prior", "--fraction", "0.2"], 2, "did you mean 0.1"),
    (["run", "--method", "prior", "--fraction", "ten"], 2, "not a list of numbers"),
    (["run", "--method", "prior", "--seed=0,-1"], 2, "not a seed: -1"),
    (["run", "--method", "prior", "--dataset", "nih"], 2, "--data-root"),
    (["run", "--method", "prior", "--set", "epochs"], 2, "KEY=VALUE"),
    (["run", "--method", "prior", "--plugin", "none.py"], 2, "does not exist"),
    (["run", "--metod", "prior"], 2, "--method"),
    (["weights", "--help"], 0, "convert"),
    (["weights", "convert", "last.ckpt", "last.safetensors"], 2, "give --trust only where you trust"),
    (["compare", "prior", "random"], 2, "does not exist"),
    (["show", "prior"], 2, "--results"),
    (["score", "none"], 2, "does not exist"),
    (["submit", "none"], 2, "does not exist"),
    (["leaderboard", "--from", "none.zip"], 2, "check --from"),
    (["rum"], 2, "run"),
])
def test_quick_and_clear(tmp_path, arguments, code, says):
    done = start(tmp_path, *arguments)
    text = done.stdout + done.stderr
    assert done.returncode == code, text
    assert says in text
    assert "Traceback" not in text
    plugin = "--plugin" in arguments  # asks for Method, and so for torch
    assert plugin or done.stdout.splitlines()[-1].strip() == "IMPORTED"


def test_dry_run_computes_nothing(tmp_path):
    done = start(tmp_path, "run", "--method", "prior,random", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "results").exists()
    assert not (tmp_path / "cache" / "pretrain").exists()
    for task in ("classification linear", "zero-shot", "retrieval", "segmentation frozen", "detection frozen"):
        assert task in done.stdout

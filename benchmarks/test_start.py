"""How long the command line takes to say something: help, list, an argument error, a plan, a run with nothing to do.

Budgets (docs/performance.md): 0.3 s for help, list and errors, 3 s for a run with nothing to do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = (sys.executable, "-c", "from prior_bench.cli import main; main()")


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PRIOR_BENCH_CACHE": str(folder / "cache")}
    return subprocess.run([*PROGRAM, *arguments], cwd=folder, env=environment, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, check=False)


@pytest.mark.parametrize("arguments", [
    ("--help",), ("run", "--help"), ("list",), ("run", "--method", "pirot"), ("run", "--method", "prior", "--dry-run"),
], ids=" ".join)
def test_start(benchmark, tmp_path, arguments):
    done = benchmark.pedantic(call, (tmp_path, *arguments), rounds=7, warmup_rounds=2)
    assert done.returncode in {0, 2}


def test_nothing_to_do(benchmark, tmp_path):
    """After a run whose cells are quick, because tasks that need text do not apply to a thumbnail."""
    arguments = ("run", "--method", "thumbnail", "--task", "zero-shot,retrieval")
    assert call(tmp_path, *arguments).returncode == 0
    done = benchmark.pedantic(call, (tmp_path, *arguments), rounds=5, warmup_rounds=1)
    assert "nothing to do" in done.stdout

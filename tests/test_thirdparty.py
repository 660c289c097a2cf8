"""A package of somebody else's (tests/thirdparty): installed, its method, task and dataset run like ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "thirdparty"


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """The environment's variables with the package installed beside ours."""
    site, source = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("source")
    for file in (f for f in HERE.rglob("*") if f.is_file() and "__pycache__" not in f.parts):
        target = source / file.relative_to(HERE)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(file.read_bytes())
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
                    "--no-index", "--target", site, source], check=True)
    return {**os.environ, "PYTHONPATH": str(site), "PRIOR_BENCH_CACHE": str(site / "cache"), "OMP_NUM_THREADS": "1"}


def prior_bench(environment, *arguments):
    program = "import sys; from prior_bench.cli import main; sys.argv[0] = 'prior-bench'; main()"
    return subprocess.run([sys.executable, "-c", program, *map(str, arguments)], env=environment, capture_output=True,
                          text=True, check=False)


def test_its_method_task_and_dataset_run_like_ours(environment, tmp_path):
    shown = prior_bench(environment, "list").stdout
    assert all(name in shown for name in ("bow-clip", "pairing", "stripes"))
    done = prior_bench(environment, "run", "--method", "bow-clip", "--task", "pairing,retrieval",
                       "--dataset", "stripes", "--output", tmp_path)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("bow-clip_pairing*.json")
    (metric,) = json.loads(file.read_text())["metrics"]
    assert metric["value"] > 0.8  # it learns which way the stripes run
    assert "pairing" in (tmp_path / "LEADERBOARD.md").read_text()


def test_its_method_passes_the_conformance_suite(environment):
    done = prior_bench(environment, "check-method", "bow-clip")
    assert done.returncode == 0, done.stdout + done.stderr
    *lines, last = done.stdout.splitlines()
    states = [line.split()[0] for line in lines]
    assert set(states) == {"ok", "-"}
    assert states.count("-") == 4  # scores, maps, a table of positions, word pieces: what a bag of words has none of
    assert last == f"bow-clip (small): {len(lines) - 4} of {len(lines) - 4} checks passed, 4 do not apply"


def test_the_walk_through_shows_the_method_as_it_is():
    text = (Path(__file__).parents[1] / "docs" / "new-method.md").read_text()
    method = (HERE / "bow_clip" / "method.py").read_text()
    assert method in text
    assert (HERE / "bow_clip" / "recipe.yaml").read_text() in text
    code = [line for line in method.splitlines() if line.strip() and not line.lstrip().startswith(("#", '"""'))]
    assert len(code) < 60

"""Fixtures that all tests share: the toy dataset, the real X-rays where they are, and a quick hypothesis profile."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# One thread per process, before numpy or torch are imported: tests are small, and runners share their cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("quick", deadline=None, max_examples=25, derandomize=True,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
settings.load_profile("quick")


def _load(name):
    """tests/<name>.py as the module `name`, whatever the import mode and the working directory."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(autouse=True)
def one_thread():
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def plugins_of_this_module():
    """What a test module registers by file, it alone sees: one worker runs many modules, in any order."""
    from prior_bench import plugins

    before = {kind: dict(found) for kind, found in plugins._from_files.items()}
    yield
    plugins._from_files.update(before)


@pytest.fixture(scope="session")
def ci_cache(tmp_path_factory):
    """A cache in which phantom-ci is made once for all tests, whatever the number of workers."""
    folder = tmp_path_factory.getbasetemp()
    return (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "ci-cache"


@pytest.fixture(scope="session")
def toy():
    """The toy dataset (tests/toy.py): 108 patients at 64 px with labels, classes, masks, boxes and reports."""
    return _load("toy").ToyDataset()


@pytest.fixture(scope="session")
def toy_class():
    return _load("toy").ToyDataset


@pytest.fixture(scope="session")
def pixel_method():
    """A small method that reads the toy images and reports (tests/pixels.py): the class."""
    return _load("pixels").PixelMethod


@pytest.fixture
def committed(tmp_path):
    """Copies the committed results of `small-long` whose names match the patterns into a folder of this test, and
    returns it."""

    def copy(*patterns: str, to: str = "results") -> Path:
        folder = tmp_path / to
        folder.mkdir(exist_ok=True)
        for pattern in patterns:
            for file in (Path(__file__).parents[1] / "leaderboard" / "results").glob(pattern):
                if json.loads(file.with_suffix(".json").read_text())["cell"]["recipe"] == "small-long":
                    shutil.copy(file, folder)
        return folder

    return copy


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real X-rays, by $PRIOR_BENCH_REALDATA or beside the checkout."""
    beside = Path(__file__).parents[2] / "shared" / "realdata"
    root = Path(os.environ.get("PRIOR_BENCH_REALDATA", beside))
    if not (root / "index.csv").is_file():
        pytest.skip("the real X-rays are not here; set PRIOR_BENCH_REALDATA to their folder")
    return root

"""What the tests of tasks share: a context on the toy dataset with the pixel method, and cells in it."""

import pytest
import torch

from prior_bench.engine.precision import Precision
from prior_bench.features import FeatureCache
from prior_bench.task import Context
from prior_bench.types import Cell


@pytest.fixture
def make_context(pixel_method, tmp_path):
    """A context of a dataset and a method (by default the pixel method)."""
    def make(dataset, method=None, profile="standard"):
        method, precision = method or pixel_method(), Precision(torch.device("cpu"), None)
        features = FeatureCache(tmp_path / "features", method, "weights", precision)
        return Context(method, dataset, "weights", precision, features, tmp_path, profile)

    return make


@pytest.fixture
def cell_of():
    def make(task, dataset, target, mode, fraction, subset_seed=0, head_seed=0):
        return Cell("pixels", "-", "none", 0, "weights", task.name, task.version, "standard", mode, "-",
                    dataset.name, "-", target, fraction, subset_seed, head_seed)

    return make

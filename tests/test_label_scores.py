"""Paired tests of two prediction tables: each class by DeLong, accuracy by sign flips, as called by hand."""

import numpy as np
import pytest

from prior_bench import label_scores
from prior_bench.paired_tests import delong, sign_flip
from prior_bench.task import Predictions
from prior_bench.tasks.classification import Classification

CLASSES = ("a", "b", "c")


def labelled(scores, labels, groups, exclusive):
    import pyarrow as pa

    ids = [f"i{i}" for i in range(len(groups))]
    bare = label_scores.predictions(ids, CLASSES, scores, exclusive=exclusive, probabilities=False)
    table = bare.table.append_column("group", pa.array(groups))
    for name, column in zip(CLASSES, labels.T, strict=True):
        table = table.append_column(f"label_{name}", pa.array(column, pa.float64(), from_pandas=True))
    return Predictions(table, bare.extra)


@pytest.mark.parametrize("exclusive", [True, False])
def test_p_values(exclusive):
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 60)
    labels, groups = np.eye(3)[truth], [f"p{i // 2}" for i in range(60)]
    one, two = labels + rng.normal(size=(60, 3)), 0.2 * labels + rng.normal(size=(60, 3))
    two[:, 2] = np.nan  # a class that was not learnt
    found = Classification().p_values(*(labelled(s, labels, groups, exclusive) for s in (one, two)))
    by_delong = {f"auroc_{name}": delong(one[:, i], two[:, i], labels[:, i], np.array(groups)).p
                 for i, name in enumerate("ab")}
    assert {name: p for name, (test, p) in found.items() if "DeLong" in test} == by_delong
    if exclusive:
        guesses = one.argmax(1) == truth, two[:, :2].argmax(1) == truth
        assert found["accuracy"] == ("sign flip", sign_flip(*guesses, np.array(groups)))
    else:
        assert set(found) == set(by_delong)


def test_other_images_are_refused():
    labels = np.eye(3)
    one = labelled(labels, labels, ["p", "q", "r"], False)
    other = Predictions(one.table.take([1, 0, 2]), one.extra)
    with pytest.raises(ValueError, match="same images"):
        Classification().p_values(one, other)

"""Were predictions scored with the truth? Where a data set is at hand, all that is its own is joined to them anew.

A manifest names what a data set holds without telling any of it: digests of the ids and groups of each split, and of
the test split's truth. Predictions hold that truth (labels, masks, boxes, which texts belong to which images), and
recomputing a number from them does not show that it is the data set's; joining it again does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prior_bench import plugins
from prior_bench.digests import digest_array, digest_json
from prior_bench.errors import UserError
from prior_bench.results import read_predictions
from prior_bench.task import Predictions
from prior_bench.types import Result

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset


@dataclass(frozen=True, slots=True)
class SplitManifest:
    images: int
    groups: int
    digest: str  # of the images' ids with their groups


@dataclass(frozen=True, slots=True)
class DataManifest:
    """What a data set holds, in digests. Equal data gives equal manifests."""

    dataset: str
    digest: str  # of the data, as cells name it
    splits: dict[str, SplitManifest]
    truth: dict[str, str]  # of the test split, by target


@dataclass(slots=True)
class AtHand:
    """The data sets that are here, each opened once. `missing` has those that were asked for and are not, with why."""

    cache: Path | None = None
    data_root: Path | None = None
    missing: dict[str, str] = field(default_factory=dict)
    _opened: dict[str, Dataset | None] = field(default_factory=dict)

    def of(self, result: Result) -> Dataset | None:
        """The data set of a result, without the images that were left out there; a UserError if it is another one."""
        cell, left_out = result.cell, result.provenance.get("excluded_images", [])
        key = digest_json([cell.dataset, left_out])
        if key not in self._opened:
            self._opened[key] = self._open(cell.dataset, left_out)
        found = self._opened[key]
        if found is not None and found.digest() != cell.data_digest:
            raise UserError(f"it was made on another version of {cell.dataset} than the one that is here (digest "
                            f"{cell.data_digest}, here {found.digest()})", where=cell.name,
                            fix="use the program and the files that made it")
        return found

    def _open(self, name: str, left_out: Any) -> Dataset | None:
        try:
            kind = plugins.load("datasets", name)
            root = kind.find_root(self.data_root)
        except UserError as error:
            self.missing[name] = error.what
            return None
        opened: Dataset = kind(root=root, cache=self.cache, exclude=frozenset(map(str, left_out)))
        return opened


def check(folder: Path, found: Iterable[Result], at_hand: AtHand) -> tuple[DataManifest, ...]:
    """Hold the predictions of results against the data sets that are here; returns the manifests of these.

    Raises: UserError where a row or a column that is the data set's differs.
    """
    used: dict[str, tuple[Dataset, set[str]]] = {}
    for result in found:
        dataset = at_hand.of(result)  # of those without predictions too: a table is left to one version of the data
        if result.status == "done" and dataset is not None:
            if reason := _difference(folder, result, dataset):
                raise UserError(reason, where=f"{result.cell.name}.parquet",
                                fix="run the cell again; predictions are not to be edited")
            used.setdefault(result.cell.data_digest, (dataset, set()))[1].add(result.cell.target)
    return tuple(manifest(dataset, targets) for _, (dataset, targets) in sorted(used.items()))


def manifest(dataset: Dataset, targets: Iterable[str]) -> DataManifest:
    """The manifest of a data set, with the truth of some targets."""
    splits: dict[str, dict[str, str]] = {}
    for study in dataset.studies:
        splits.setdefault(study.split, {}).update((image.id, study.group) for image in study.images)
    return DataManifest(
        dataset.name, dataset.digest(),
        {name: SplitManifest(len(group_of), len(set(group_of.values())), digest_json(group_of))
         for name, group_of in sorted(splits.items())},
        {target: digest_json(_truth(dataset, target)) for target in sorted(targets)})


def _truth(dataset: Dataset, name: str) -> dict[str, Any]:
    """What is true of each test image of a target, or a digest of it."""
    target, ids = dataset.target(name), dataset.ids(name, "test")
    if target.kind in {"multilabel", "exclusive"}:
        table = dataset.labels(name)
        return dict(zip(ids, np.nan_to_num(table.rows(ids), nan=-1).tolist(), strict=True))
    if target.kind == "mask":
        return {id: digest_array(np.asarray(dataset.load_mask(name, id), np.uint8)) for id in ids}
    if target.kind == "boxes":
        boxes = {id: dataset.load_boxes(name, id) for id in ids}
        return {id: [np.asarray(b.xyxy, float).tolist(), np.asarray(b.labels).tolist()] for id, b in boxes.items()}
    reports = {id: dataset.study_of[id].report for id in ids}
    return {id: None if report is None else report.text for id, report in reports.items()}


def _difference(folder: Path, result: Result, dataset: Dataset) -> str:
    """How the predictions of a result differ from the data set in what is its own; empty if they do not."""
    task, cell, found = plugins.load("tasks", result.cell.task)(), result.cell, read_predictions(folder, result)
    if not task.attached:
        return ""
    own = [name for name in found.table.column_names if any(fnmatchcase(name, p) for p in task.attached)]
    bare = Predictions(found.table.drop_columns(own), found.extra)
    try:
        if sorted(bare.table.column(task.row).to_pylist()) != sorted(task.rows(dataset, cell.target)):
            return f"the predictions are not of the test set of {cell.dataset}/{cell.target}, each row once"
        again = task.attach(dataset, cell, bare)
    except Exception as error:  # a task reads its table without a look at it, and this one may come from anywhere
        return f"{cell.dataset} does not fit the predictions: {type(error).__name__}: {error}"
    if again.table.column_names != found.table.column_names or again.extra != found.extra:
        return f"the predictions have other columns or settings than {cell.dataset} gives them"
    for name in own:
        pairs = zip(again.table.column(name).to_pylist(), found.table.column(name).to_pylist(), strict=True)
        if count := sum(theirs != ours for theirs, ours in pairs):
            return f"{name} is not that of {cell.dataset} in {count} of {len(found.table)} rows"
    return ""

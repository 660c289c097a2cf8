"""Splits and nested fractions by leak group, with iterative stratification.

Sechidis, Tsoumakas and Vlahavas, "On the stratification of multi-label data" (ECML PKDD 2011): take the rarest label
first and give each of its examples to the part that still lacks most of it. Three things differ from the paper: parts
have exact sizes (a full part takes no more), a tie between parts is drawn in proportion to the room they have left, and
what carries no label is dealt at random. A missing label counts as no positive.

Subsets are nested because they are prefixes of one order per seed: the groups are halved by stratification again and
again, and a subset of n takes whole halves until the cut falls into one, which is halved on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import ceil
from typing import TYPE_CHECKING

import numpy as np

from prior_bench.task import NotApplicable
from prior_bench.types import Split

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset

SPLITS: tuple[Split, Split, Split] = ("train", "validation", "test")
MIN_GROUPS = 8  # fewer training groups are "too small"


def split_groups(groups: Sequence[str], labels: np.ndarray | None = None, ratios: Sequence[float] = (0.7, 0.1, 0.2),
                 seed: int = 0) -> dict[str, Split]:
    """Assign each group to train, validation or test.

    Args:
        groups: distinct names, in any order (the result does not depend on it).
        labels: (n_groups, C), a value of 1 is a positive; None: not stratified.
        ratios: shares of the three splits; sizes are rounded so that they sum to n_groups.
    """
    names, positives = _sorted(groups, labels)
    edges = np.round(np.cumsum(ratios) / np.sum(ratios) * len(names)).astype(int)
    sizes = np.diff(edges, prepend=0)
    parts = _stratify(positives, sizes, np.array(ratios) / np.sum(ratios), np.random.default_rng([seed, len(names)]))
    return {name: SPLITS[part] for name, part in zip(names, parts, strict=True)}


def subset_groups(groups: Sequence[str], labels: np.ndarray | None, fraction: float, seed: int) -> list[str]:
    """ceil(fraction * n) of the groups, sorted. For one seed, a smaller fraction's subset lies in a larger one's.

    Args: as in `split_groups`.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction} is not in (0, 1]")
    names, positives = _sorted(groups, labels)
    wanted = ceil(round(fraction * len(names), 9))  # 0.1 * 30 is 3.0000000000000004
    chosen: list[np.ndarray] = []
    block = np.arange(len(names))
    start = 0  # where the block begins in the seed's order: block and seed alone decide how it is halved
    while 0 < wanted < len(block):
        half = ceil(len(block) / 2)
        rng = np.random.default_rng([seed, start, start + len(block)])
        parts = _stratify(positives[block], np.array([half, len(block) - half]), np.array([0.5, 0.5]), rng)
        first, second = block[parts == 0], block[parts == 1]
        if wanted < half:
            block = first
        else:
            chosen.append(first)
            block, start, wanted = second, start + half, wanted - half
    if wanted:
        chosen.append(block)
    return [names[i] for i in np.sort(np.concatenate(chosen))] if chosen else []


def training_subset(dataset: Dataset, target: str, fraction: float, seed: int) -> list[str]:
    """Ids of the training images of a target's subset, sorted.

    Groups are stratified by their labels, or for masks and boxes by what is drawn on their images.

    Raises: NotApplicable with fewer than 8 groups.
    """
    ids = dataset.ids(target, "train")
    names = sorted({dataset.group_of(i) for i in ids})
    wanted = ceil(round(fraction * len(names), 9))
    if wanted < MIN_GROUPS:
        raise NotApplicable(f"too small: {wanted} training groups, {MIN_GROUPS} needed")
    if wanted == len(names):
        return ids
    positives = _positives(dataset, target)
    chosen = set(subset_groups(names, np.stack([positives[n] for n in names]), fraction, seed))
    return [i for i in ids if dataset.group_of(i) in chosen]


@lru_cache(maxsize=64)  # masks are read for this, and every fraction and seed of a target asks again
def _positives(dataset: Dataset, target: str) -> Mapping[str, np.ndarray]:
    """Per training group which of the target's classes occur on any of its images, (C,) bool."""
    spec = dataset.target(target)
    ids = dataset.ids(target, "train")
    if spec.kind in {"multilabel", "exclusive"}:
        rows = dataset.labels(target).rows(ids) == 1
    elif spec.kind == "mask":
        rows = np.array([[(dataset.load_mask(target, i) == 1).any()] for i in ids])
    elif spec.kind == "boxes":
        rows = np.array([np.isin(np.arange(len(spec.classes)), dataset.load_boxes(target, i).labels) for i in ids])
    else:
        rows = np.zeros((len(ids), 0), bool)
    found: dict[str, np.ndarray] = {}
    for id, row in zip(ids, rows, strict=True):
        group = dataset.group_of(id)
        found[group] = found[group] | row if group in found else row
    return found


def _sorted(groups: Sequence[str], labels: np.ndarray | None) -> tuple[list[str], np.ndarray]:
    """Groups by name with their positives (n, C) bool, so that the rows' order does not matter."""
    if len(set(groups)) != len(groups):
        raise ValueError("groups are not distinct")
    order = sorted(range(len(groups)), key=lambda i: groups[i])
    values = np.zeros((len(groups), 0)) if labels is None else np.asarray(labels)
    return [groups[i] for i in order], values[order] == 1


def _stratify(positives: np.ndarray, sizes: np.ndarray, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Part (n,) of each example: `positives` (n, C) bool, exact `sizes` (k,) that sum to n, wanted `shares` (k,)."""
    n, labels = positives.shape
    part = np.full(n, -1)
    room = [int(s) for s in sizes]
    lacking = np.outer(shares, positives.sum(0))  # (k, C) positives each part still wants
    left = np.ones(n, bool)
    for _ in range(labels):
        count = positives[left].sum(0)
        if not count.any():
            break
        rarest = int(np.argmin(np.where(count > 0, count, n + 1)))
        for i in rng.permutation(np.flatnonzero(left & positives[:, rarest])):
            chosen = _neediest(lacking[:, rarest].tolist(), room, rng)
            part[i] = chosen
            room[chosen] -= 1
            lacking[chosen] -= positives[i]
        left = part < 0
    part[rng.permutation(np.flatnonzero(left))] = np.repeat(np.arange(len(room)), room)
    return part


def _neediest(lacking: Sequence[float], room: Sequence[int], rng: np.random.Generator) -> int:
    """The part with room that lacks most; ties drawn in proportion to room."""
    most = max(need for need, r in zip(lacking, room, strict=True) if r > 0)
    tied = [k for k, need in enumerate(lacking) if room[k] > 0 and need > most - 1e-9]
    if len(tied) == 1:
        return tied[0]
    draw = rng.random() * sum(room[k] for k in tied)
    for k in tied:
        draw -= room[k]
        if draw < 0:
            return k
    return tied[-1]

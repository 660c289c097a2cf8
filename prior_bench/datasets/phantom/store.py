"""The phantom's cache: studies are made once, in parallel, and then read from three files.

images.npy (N, S, S) uint8, masks.npy (N, masks, S * S / 8) uint8 packed bits, studies.jsonl one record a line. They are
written into a temporary folder that is renamed when complete, under a lock, so that an interrupted run leaves nothing
behind that looks finished and two processes make it once.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from prior_bench.datasets.phantom.studies import MASKS, Case, Size, make, roster
from prior_bench.errors import UserError
from prior_bench.files import CACHE_VARIABLE

FORMAT = 1  # of the files in the folder
_CHUNK = 16  # patients a task

Chunk = tuple[np.ndarray, np.ndarray, list[dict[str, Any]]]


class Store:
    """Reads a finished folder; arrays are memory-mapped."""

    def __init__(self, folder: Path, size: Size):
        self.size = size
        self.images = np.load(folder / "images.npy", mmap_mode="r")
        self.masks = np.load(folder / "masks.npy", mmap_mode="r")
        with open(folder / "studies.jsonl", encoding="utf-8") as lines:
            self.records: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def mask(self, row: int, name: str) -> np.ndarray:
        """One mask (S, S) uint8 in {0, 1}."""
        side = self.size.pixels
        return np.unpackbits(self.masks[row, list(MASKS).index(name)])[: side * side].reshape(side, side)


def open_store(size: Size, folder: Path, processes: int | None = None) -> Store:
    """The store in `folder`, made first if it is not there."""
    from filelock import FileLock

    if not folder.is_dir():
        _check_main_guard(folder)
        _check_writable(size, folder.parent)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():
                _make(size, folder, processes)
    return Store(folder, size)


def _check_main_guard(folder: Path) -> None:
    """Refuse a worker of our own pool that runs its parent's script again, as it does where that has no main guard: it
    would wait for the parent's lock, and the parent for it. (multiprocessing marks such a worker as `_inheriting`.)"""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise UserError("the phantom is made by several processes, each of which runs your script", where=str(folder),
                        fix="put the script's code under `if __name__ == '__main__':`, or make the phantom first with "
                        "`prior-bench data show phantom`")


def _check_writable(size: Size, parent: Path) -> None:
    """A cache that cannot take the files is found before they are made."""
    fix = f"give another cache folder, or set ${CACHE_VARIABLE}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"the cache folder cannot be made: {error.strerror}", where=str(parent), fix=fix) from error
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError("the cache folder is read-only", where=str(parent), fix=fix)
    need = int(size.total * size.pixels**2 * (1 + len(MASKS) / 8)) + size.total * 2000  # arrays and records
    free = shutil.disk_usage(parent).free
    if free < need:
        what = f"{free / 1e6:.0f} MB are free, and the phantom's files need {need / 1e6:.0f} MB"
        raise UserError(what, where=str(parent), fix=fix)


def _make(size: Size, folder: Path, processes: int | None) -> None:
    """Make all studies into `folder`. The caller holds the lock, so any temporary folder is a dead run's."""
    building = folder.with_name(folder.name + ".building")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir()
    log = logging.getLogger(__name__)
    log.info("making %d phantom studies of %d px in %s", size.total, size.pixels, folder)
    n, side = size.total, size.pixels
    images = np.lib.format.open_memmap(building / "images.npy", "w+", np.uint8, (n, side, side))
    masks = np.lib.format.open_memmap(building / "masks.npy", "w+", np.uint8, (n, len(MASKS), (side * side + 7) // 8))
    done = 0
    with open(building / "studies.jsonl", "w", encoding="utf-8") as lines:
        for chunk_images, chunk_masks, records in _chunks(size, processes or _processors()):
            images[done : done + len(records)], masks[done : done + len(records)] = chunk_images, chunk_masks
            done += len(records)
            for record in records:
                lines.write(json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n")
            log.debug("phantom: %d of %d studies", done, n)
        lines.flush()
        os.fsync(lines.fileno())
    images.flush()
    masks.flush()
    os.replace(building, folder)


def _chunks(size: Size, processes: int) -> Iterable[Chunk]:
    """The made studies in roster order, whatever the number of processes."""
    cases = list(roster(size))
    tasks = [cases[i : i + _CHUNK] for i in range(0, len(cases), _CHUNK)]
    if processes == 1 or len(tasks) == 1:
        yield from (_make_chunk(size, task) for task in tasks)
        return
    # spawn: a fork would copy the parent's threads' locks; the workers import numpy only
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_make_chunk, [size] * len(tasks), tasks)


def _make_chunk(size: Size, cases: Sequence[Case]) -> Chunk:
    made = [study for case in cases for study in make(size, case)]
    packed = np.stack([np.packbits(m.masks.reshape(len(MASKS), -1), axis=1) for m in made])
    return np.stack([m.image for m in made]), packed, [m.record for m in made]


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

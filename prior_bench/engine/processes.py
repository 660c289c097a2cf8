"""The processes that train one model together: those that torchrun started, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout

from prior_bench.engine.precision import Precision
from prior_bench.engine.pretrain import Report, world_size


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that train together: those that torchrun started, or this one alone."""

    rank: int
    world: int
    precision: Precision

    def first(self, answer: bool) -> bool:
        """Rank 0's answer, on all ranks."""
        if self.world == 1:
            return answer
        flag = torch.tensor([answer], dtype=torch.uint8, device=self.precision.device)
        dist.broadcast(flag, 0)
        return bool(flag.item())

    def wait(self) -> None:
        if self.world > 1:
            dist.barrier()


@contextmanager
def processes(precision: Precision, lock: Path, report: Report) -> Iterator[Group]:
    """Hold the run's lock, and the process group where torchrun started several (gloo on CPU, nccl on CUDA)."""
    rank, world = int(os.environ.get("RANK", "0")), world_size()
    with _locked(lock, report) if rank == 0 else nullcontext():
        if world == 1:
            yield Group(0, 1, precision)
            return
        if precision.device.type == "cuda":
            precision = replace(precision, device=torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))))
            torch.cuda.set_device(precision.device)
        dist.init_process_group("nccl" if precision.device.type == "cuda" else "gloo", timeout=timedelta(hours=1))
        try:
            yield Group(rank, world, precision)
        finally:
            dist.destroy_process_group()


@contextmanager
def _locked(file: Path, report: Report) -> Iterator[None]:
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("waiting", 0.0, "another process trains the same weights")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()

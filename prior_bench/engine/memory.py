"""Out of memory: recognised on GPU and CPU, answered by a smaller batch where that changes nothing (encoding), and by a
clear stop where it would (training: the batch holds the negatives, so it is never changed silently)."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from prior_bench.errors import UserError

T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: torch on CUDA or CPU, or Python itself."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("not enough memory" in text or "can't allocate memory" in text
                                                or "CUDA out of memory" in text)


def free() -> None:
    """Give back what is no longer referenced, so that another attempt starts from what is free."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_batches(n: int, batch: int, run: Callable[[slice], T],
               note: Callable[[str], None] = lambda text: None) -> Iterator[T]:
    """Yield `run(slice)` over 0..n in batches; where memory runs out the batch is halved and the slice tried again.

    For encoding, where a result does not depend on the batch it was computed in.

    Raises:
        UserError: not even a single item fits.
    """
    start = 0
    while start < n:
        try:
            result = run(slice(start, min(start + batch, n)))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if batch == 1:
                raise UserError("out of memory while encoding a single item",
                                fix="close other programs, or use a device with more memory") from error
        else:
            yield result
            start += batch
            continue
        # Outside the handler: the exception's frames hold the failed attempt's tensors.
        batch //= 2
        note(f"out of memory: encoding batch halved to {batch}")
        free()


def batch_that_fits(batch: int, attempt: Callable[[int], None], smallest: int = 2) -> int | None:
    """The largest of batch/2, batch/4, ... that `attempt(size)` (one dry training step) survives; None if none does."""
    size = batch // 2
    while size >= smallest:
        free()
        try:
            attempt(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            return size
        size //= 2
    return None


def training_error(batch: int, fits: int | None, kept: str) -> UserError:
    """The error of a training that ran out of memory.

    Args:
        batch: that did not fit.
        fits: that was tried and fits; None: none was found.
        kept: where the last checkpoint lies, or that there is none.
    """
    if fits is None:
        fix = f"no batch is known to fit; try --set training.batch={max(2, batch // 2)}, or smaller images"
    else:
        fix = f"a batch of {fits} fits: --set training.batch={fits} (another recipe: the batch holds the negatives)"
    return UserError(f"out of memory in training with a batch of {batch}", where=kept,
                     expected="memory for one step; the batch is never changed silently", fix=fix)

"""Out of memory: recognised by its messages; encoding halves its batch, and results stay in order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prior_bench.engine import memory
from prior_bench.engine.memory import in_batches, is_out_of_memory
from prior_bench.errors import UserError

OUT = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError(),
       RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried"),
       RuntimeError("[enforce fail at alloc_cpu.cpp:116] DefaultCPUAllocator: not enough memory: you tried")]


@pytest.mark.parametrize("error", OUT)
def test_recognised(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 cannot be multiplied"), ValueError("out of memory")])
def test_other_errors_are_not(error):
    assert not is_out_of_memory(error)


def test_a_real_one_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)


@given(n=st.integers(0, 50), batch=st.integers(1, 20), limit=st.integers(1, 20))
def test_every_item_once_in_order(monkeypatch, n, batch, limit):
    monkeypatch.setattr(memory, "free", lambda: None)  # collecting garbage is slow, and there is none
    notes = []

    def run(part: slice) -> list[int]:
        if part.stop - part.start > limit:
            raise MemoryError
        return list(range(part.start, part.stop))

    assert [i for part in in_batches(n, batch, run, notes.append) for i in part] == list(range(n))
    assert bool(notes) == (min(n, batch) > limit)


def test_single_item_that_does_not_fit():
    def run(part: slice) -> None:
        raise MemoryError

    with pytest.raises(UserError, match="single item"):
        list(in_batches(3, 8, run))


def test_other_errors_pass():
    def run(part: slice) -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        list(in_batches(3, 8, run))

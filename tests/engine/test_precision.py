"""Precision: what fp32 means on a GPU. No GPU is needed: the flags are the process's."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from prior_bench.engine.precision import Precision


class Unmoved(nn.Module):
    """Stays where it is, as there may be no GPU to move to."""

    def to(self, *_, **__):
        return self


@pytest.fixture(autouse=True)
def flags():
    """PyTorch's own flags to begin with, or those of machines that ask for TF32; put back afterwards."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        torch.set_float32_matmul_precision("high")
        yield
        torch.set_float32_matmul_precision("highest")


def tf32() -> tuple[bool, bool]:
    """Whether convolutions and matrix products of float32 may be computed in it."""
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision() != "highest"


@pytest.mark.parametrize(("device", "autocast", "allowed"), [
    ("cuda", None, False), ("cuda", torch.bfloat16, True), ("cpu", None, True)])
def test_fp32_on_a_gpu_is_fp32(device, autocast, allowed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Precision(torch.device(device), autocast).place(Unmoved())
    assert tf32() == (allowed, allowed)


def test_others_can_still_ask_and_set():
    """The gate and libraries use `cudnn.flags`, which raises where the two ways of setting TF32 were mixed."""
    fp32 = Precision(torch.device("cuda"), None)
    fp32.place(Unmoved())
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        fp32.place(Unmoved())
        assert tf32() == (False, False)
    assert tf32() == (False, False)

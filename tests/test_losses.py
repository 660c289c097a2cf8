"""InfoNCE against plain loops, and two ranks against one process."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prior_bench.losses import cosine_matrix, gather, info_nce, masked_mean

RANKS = Path(__file__).with_name("ranks.py")


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(x, dim=-1)


def test_cosines_are_taken_in_float32_whatever_autocast_says():
    a, b = unit(5, 64, 0), unit(7, 64, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal((a @ b.T).float(), a.double() @ b.double().T)
        found = cosine_matrix(a, b)
    torch.testing.assert_close(found.double(), a.double() @ b.double().T, atol=1e-6, rtol=0)


def slow_info_nce(a: torch.Tensor, b: torch.Tensor, scale: float) -> float:
    rows = range(len(a))
    dot = [[scale * sum(x * y for x, y in zip(a[i].tolist(), b[j].tolist(), strict=True)) for j in rows] for i in rows]
    total = 0.0
    for i in rows:
        total += math.log(sum(math.exp(dot[i][j]) for j in rows)) - dot[i][i]
        total += math.log(sum(math.exp(dot[j][i]) for j in rows)) - dot[i][i]
    return total / (2 * len(a))


@given(rows=st.integers(1, 9), width=st.integers(1, 6), scale=st.floats(0.1, 20), seed=st.integers(0, 99))
def test_info_nce_is_the_mean_over_both_directions(rows, width, scale, seed):
    a, b = unit(rows, width, seed), unit(rows, width, seed + 100)
    assert info_nce(a, b, scale).item() == pytest.approx(slow_info_nce(a, b, scale), rel=1e-4, abs=1e-5)


def test_info_nce_of_unrelated_pairs_is_near_the_logarithm_of_the_batch():
    assert info_nce(unit(256, 128, 0), unit(256, 128, 1), 1.0).item() == pytest.approx(math.log(256), rel=0.01)


def test_one_process_gathers_its_own_rows():
    x = unit(3, 2, 0)
    (same,), before = gather(x)
    assert same is x
    assert before == 0


def test_two_ranks_give_the_loss_and_the_gradients_of_one_process(tmp_path):
    sizes = [(4, 4), (5, 2), (1, 6)]  # the last batch of an epoch may differ between ranks
    batches = [[(torch.randn(n, 5), torch.randn(n, 4)) for n in pair] for pair in sizes]
    torch.save(batches, tmp_path / "inputs.pt")
    command = [sys.executable, str(RANKS)]
    files = [str(tmp_path / name) for name in ("meeting", "inputs.pt", "output.pt")]
    ranks = [subprocess.Popen([*command, str(rank), *files]) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]

    spec = importlib.util.spec_from_file_location("ranks", RANKS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TwoEncoders()
    for batch, found in zip(batches, torch.load(tmp_path / "output.pt", weights_only=True), strict=True):
        model.zero_grad()
        loss = model(*(torch.cat(both) for both in zip(*batch, strict=True)))
        loss.backward()
        assert found["loss"].item() == pytest.approx(loss.item(), abs=1e-5)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-5)


def test_masked_mean_of_nothing_is_zero_with_a_finite_gradient():
    values = torch.ones(2, 3, requires_grad=True)
    masked_mean(values, torch.zeros(2, 3, dtype=torch.bool)).backward()
    assert values.grad.abs().sum() == 0

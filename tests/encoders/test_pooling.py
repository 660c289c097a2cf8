"""Attention pooling against PyTorch's multi-head attention, and masked sentence means against loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from prior_bench.encoders.pooling import AttentionPool, sentence_means


def clip_pool(pool: AttentionPool, tokens: torch.Tensor) -> torch.Tensor:
    """CLIP's own way: all queries, by F.multi_head_attention_forward, the first output kept."""
    x = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
    if pool.positional_embedding is not None:
        x = x + pool.positional_embedding
    x = x.transpose(0, 1)
    out, _ = F.multi_head_attention_forward(
        query=x, key=x, value=x, embed_dim_to_check=x.shape[-1], num_heads=pool.heads,
        q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight,
        in_proj_weight=None, in_proj_bias=torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0, out_proj_weight=pool.c_proj.weight,
        out_proj_bias=pool.c_proj.bias, use_separate_proj_weight=True, training=False, need_weights=False)
    return out[0]


@pytest.mark.parametrize("grid", [None, 3])
def test_attention_pool_is_that_of_clip(grid):
    torch.manual_seed(0)
    pool = AttentionPool(16, heads=4, grid=grid)
    tokens = torch.randn(5, 9, 16)
    torch.testing.assert_close(pool(tokens), clip_pool(pool, tokens), atol=1e-5, rtol=1e-5)


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_padding_contributes_nothing_to_the_pool(lengths, seed):
    torch.manual_seed(seed)
    pool = AttentionPool(8, heads=2)
    tokens = torch.randn(len(lengths), 5, 8)
    mask = torch.arange(5) < torch.tensor(lengths).unsqueeze(1)
    together = pool(tokens.masked_fill(~mask.unsqueeze(-1), 77.0) * mask.unsqueeze(-1), mask)
    alone = torch.cat([pool(tokens[i: i + 1, :n]) for i, n in enumerate(lengths)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_order_does_not_matter_without_positions():
    torch.manual_seed(0)
    pool = AttentionPool(8, heads=2)
    tokens = torch.randn(2, 6, 8)
    torch.testing.assert_close(pool(tokens), pool(tokens[:, torch.randperm(6)]), atol=1e-5, rtol=1e-5)


def test_the_positional_table_fits_maps_of_another_size():
    pool = AttentionPool(8, heads=2, grid=3)
    with torch.no_grad():
        pool.positional_embedding[1:] = torch.arange(9.0).view(9, 1)
    assert pool(torch.zeros(1, 20, 8), grid=(4, 5)).shape == (1, 8)
    from prior_bench.encoders.pooling import _positions

    table = _positions(pool.positional_embedding, (6, 6))
    torch.testing.assert_close(table[0], pool.positional_embedding[0])
    assert (table[1:].view(6, 6, 8)[:, 1:] > table[1:].view(6, 6, 8)[:, :-1]).all()  # still rising along a row


@given(st.data())
def test_sentence_means_are_the_means_of_their_words(data):
    batch, length, count = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 8)), data.draw(st.integers(1, 4))
    index = torch.tensor(data.draw(st.lists(st.lists(st.integers(-1, count - 1), min_size=length, max_size=length),
                                            min_size=batch, max_size=batch)))
    words = torch.randn(batch, length, 4, generator=torch.Generator().manual_seed(0))
    means, mask = sentence_means(words, index, count)
    for b in range(batch):
        for s in range(count):
            own = [words[b, i] for i in range(length) if index[b, i] == s]
            assert mask[b, s] == bool(own)
            torch.testing.assert_close(means[b, s], torch.stack(own).mean(0) if own else torch.zeros(4))

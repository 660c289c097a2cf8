"""MPMA: its terms against plain float64 loops, masking of whole words and of patches, and the shared memory."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prior_bench import recipes
from prior_bench.encoders.mae import PatchDecoder, hidden_patches, masked_patch_error, patchify, random_kept
from prior_bench.errors import UserError
from prior_bench.method import StudyView
from prior_bench.methods.mpma.fusion import Fusion, Memory
from prior_bench.methods.mpma.method import Mpma, MpmaRecipe, _masked_pieces
from prior_bench.recipe_files import recipe_file
from prior_bench.types import Report

REPORTS = (
    ("Heart is enlarged.", "No pneumothorax.", "Small left pleural effusion.", "Lungs are otherwise clear."),
    ("Normal chest.",),
    ("Right lower lobe consolidation.", "No pneumothorax."),
    ("Lines are in place.", "Heart size is normal.", "No pleural effusion is seen today."),
)
PAIRS = (*REPORTS, REPORTS[1], ("No pneumothorax.", "Normal chest.", "No pneumothorax."))  # equal pairs and sentences
SMALL = {"image.name": "test_vit", "image.size": 64, "text.layers": 2, "text.width": 16, "text.heads": 2,
         "text.vocabulary": 120, "width": 8, "fusion.heads": 2, "fusion.memory": 12, "fusion.memory_width": 4,
         "fusion.top": 3, "decoder.width": 8, "decoder.heads": 2, "decoder.layers": 1}


def mpma(seed: int = 0, **values: object) -> Mpma:
    torch.manual_seed(seed)
    recipe = recipes.load(recipe_file("mpma"), "small-vit", MpmaRecipe, {**SMALL, **values})
    return Mpma.from_recipe(recipe, [" ".join(r) for r in REPORTS]).eval()


def batch_of(method: Mpma, reports: tuple = REPORTS) -> dict:
    rng = np.random.default_rng(0)
    views = [StudyView((rng.integers(0, 255, (64, 64), dtype=np.uint8),), Report({}, r)) for r in reports]
    return method.collate([method.view(view, rng) for view in views])


def cross_entropy(s: torch.Tensor) -> torch.Tensor:
    return sum(s[i].exp().sum().log() - s[i, i] for i in range(len(s))) / len(s)


def one_way(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    seen = []
    for query in queries:
        a = (keys @ query / 0.1).softmax(dim=0)
        seen.append(F.normalize(sum(a[k] * keys[k] for k in range(len(keys))), dim=0))
    scores = queries @ torch.stack(seen).T / 0.1
    return (cross_entropy(scores) + cross_entropy(scores.T)) / 2


def test_the_objective_by_loops():
    method = mpma()
    batch = batch_of(method, PAIRS)
    side = method.image_encoder.stride
    patches, kept = (64 // side) ** 2, batch["kept"]
    found = method(batch)
    m = copy.deepcopy(method).double()
    images = m.normalise(batch["image"]).double()
    g_image, g_text, local, mim, mlm = [], [], [], [], []
    with torch.no_grad():
        for i in range(len(images)):
            features = m.image_encoder(images[i : i + 1])
            g_image.append(F.normalize(m.image_head(features.mean(dim=(2, 3)))[0], dim=0))
            p = F.normalize(m.image_local(features[0].flatten(1).T), dim=1)
            mask = batch["mask"][i]
            ids, sentence = batch["ids"][i][mask], batch["sentence"][i][mask]
            alone = torch.ones(1, len(ids), dtype=torch.bool)
            words = m.text_encoder(ids[None], alone)[0]
            g_text.append(F.normalize(m.text_head(words[sentence >= 0].mean(dim=0)), dim=0))
            t = F.normalize(m.text_local(torch.stack([words[sentence == s].mean(dim=0)
                                                      for s in range(int(sentence.max()) + 1)])), dim=1)
            local.append(one_way(t, p) + one_way(p, t))
            visible = m.image_encoder.visible_tokens(images[i : i + 1], kept[i : i + 1])
            decoded = m.image_decoder(visible, kept[i : i + 1])[0]
            errors = []
            for r in range(patches):
                y, x = divmod(r, 64 // side)
                target = images[i, 0, y * side : (y + 1) * side, x * side : (x + 1) * side].flatten()
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
                if r not in kept[i].tolist():
                    errors.append((decoded[r] - target).pow(2).mean())
            mim.append(sum(errors) / len(errors))
            gone = batch["masked"][i][mask]
            tokenizer = m.text_encoder.tokenizer
            states = m.text_encoder(ids.masked_fill(gone, tokenizer.mask_token_id)[None], alone)
            fused = m.fusion(states, alone, visible)
            logits = fused[0] @ m.text_encoder.model.embeddings.word_embeddings.weight.T + m.word_bias
            mlm += [logits[k].exp().sum().log() - logits[k, ids[k]] for k in range(len(ids)) if gone[k]]
    s = torch.stack([torch.stack([m.logit_scale.exp() * a @ b for b in g_text]) for a in g_image])
    expected = {"L_mim": sum(mim) / len(mim), "L_mlm": sum(mlm) / len(mlm), "L_local": sum(local) / len(local),
                "L_global": (cross_entropy(s) + cross_entropy(s.T)) / 2}
    assert {n: w for n, (w, _) in found.items()} == {"L_mim": 1.0, "L_mlm": 1.0, "L_global": 1.0, "L_local": 0.5}
    for name, value in expected.items():
        assert found[name][1].item() == pytest.approx(value.item(), rel=3e-4), name
    assert found["L_mlm"][1].item() == pytest.approx(math.log(120), abs=1.5)  # as much as guessing


def test_whole_words_are_masked_at_the_rate():
    method = mpma()
    tokens = method.text_encoder.tokens(REPORTS[3])
    drawn = np.array([_masked_pieces(tokens, 0.5, np.random.default_rng(i)) for i in range(400)])
    assert not drawn[:, tokens.word < 0].any()
    for word in range(tokens.word.max() + 1):
        own = drawn[:, tokens.word == word]
        assert (own.all(axis=1) == own.any(axis=1)).all()
        assert own[:, 0].mean() == pytest.approx(0.5, abs=0.1)
    single = method.text_encoder.tokens(["Normal"])
    assert all(_masked_pieces(single, 0.01, np.random.default_rng(i)).any() for i in range(20))
    assert not _masked_pieces(method.text_encoder.tokens([]), 0.5, np.random.default_rng(0)).any()


def test_patches_are_kept_at_random_and_the_error_counts_the_others():
    kept = torch.tensor(np.stack([random_kept(16, 0.75, np.random.default_rng(i)) for i in range(200)]))
    hidden = hidden_patches(kept, 16)
    assert kept.shape == (200, 4)
    assert (hidden.sum(dim=1) == 12).all()
    assert not hidden.gather(1, kept).any()
    assert (~hidden).float().mean(dim=0).sub(0.25).abs().max() < 0.12  # every patch has its turn
    images = torch.rand(2, 1, 32, 32)
    target = patchify(images, 8)
    exact = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
    mask = hidden[:2]
    assert masked_patch_error(exact, images, mask, 8).max() < 1e-8
    wrong = exact + 5.0 * ~mask.unsqueeze(-1)
    assert masked_patch_error(wrong, images, mask, 8).max() < 1e-8


def test_visible_tokens_of_all_patches_are_the_map():
    method = mpma()
    images = method.normalise(torch.randint(0, 255, (2, 1, 64, 64), dtype=torch.uint8))
    grid = method.image_encoder.grid(64)
    every = torch.arange(grid * grid).expand(2, -1)
    with torch.no_grad():
        torch.testing.assert_close(method.image_encoder.visible_tokens(images, every),
                                   method.image_encoder(images).flatten(2).mT, atol=1e-5, rtol=1e-4)


def test_memory_answers_with_its_best_rows():
    torch.manual_seed(0)
    memory, tokens = Memory(6, 10, 4, top=3), torch.randn(2, 5, 6)
    found = memory(tokens)
    query = memory.query(tokens[1, 2])
    scores = torch.stack([query @ row / 2 for row in memory.rows])
    best = scores.argsort(descending=True)[:3]
    expected = memory.response((scores[best].softmax(0).unsqueeze(1) * memory.rows[best]).sum(0))
    torch.testing.assert_close(found[1, 2], expected)


def attended(layer: torch.nn.MultiheadAttention, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """One sample's queries (L, D) over keys (N, D), by loops over queries and heads."""
    q, k, v = (x @ w.T + b for x, w, b in zip((queries, keys, keys), layer.in_proj_weight.chunk(3),
                                              layer.in_proj_bias.chunk(3), strict=True))
    d = q.shape[1] // layer.num_heads
    found = []
    for query in q:
        heads = [slice(h * d, (h + 1) * d) for h in range(layer.num_heads)]
        found.append(torch.cat([(k[:, h] @ query[h] / d**0.5).softmax(dim=0) @ v[:, h] for h in heads]))
    return layer.out_proj(torch.stack(found))


def test_fusion_by_loops():
    """Each sample alone, without its padding."""
    torch.manual_seed(0)
    fusion = Fusion(8, 6, layers=2, heads=2, rows=10, row_width=4, top=3).double()
    words, image = torch.randn(2, 5, 8).double(), torch.randn(2, 3, 6).double()
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    found = fusion(words, mask, image)
    for i in range(2):
        w, seen = words[i][mask[i]], fusion.project(image[i])
        for layer in fusion.layers:
            x = layer.norms[0](w)
            w = w + attended(layer.own, x, x)
            answers = fusion.memory(layer.norms[1](w))
            w = w + answers
            w = w + attended(layer.cross, layer.norms[2](w), torch.cat([seen, fusion.memory(seen), answers]))
            w = w + layer.feed(layer.norms[3](w))
        torch.testing.assert_close(found[i][mask[i]], fusion.norm(w))


def test_the_image_decoder_puts_visible_patches_where_they_were():
    torch.manual_seed(0)
    decoder = PatchDecoder(6, 8, layers=1, heads=2, patches=5, pixels=4).eval()
    visible, kept = torch.randn(2, 2, 6), torch.tensor([[3, 1], [0, 4]])
    with torch.no_grad():
        found = decoder(visible, kept)
        for i in range(2):
            tokens = [decoder.mask_token + decoder.positions[r] for r in range(5)]
            for n, r in enumerate(kept[i].tolist()):
                tokens[r] = decoder.project(visible[i, n]) + decoder.positions[r]
            expected = decoder.pixels(decoder.layers(torch.stack(tokens)[None]))[0]
            torch.testing.assert_close(found[i], expected)


def test_every_part_learns_and_what_has_no_whole_patches_is_refused():
    method = mpma().train()
    sum(weight * value for weight, value in method(batch_of(method)).values()).backward()
    for name, part in method.named_children():
        assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 0, name
    with pytest.raises(UserError, match="plain vision transformer"):
        mpma(**{"image.name": "test_resnet"})
    with pytest.raises(UserError, match="do not divide into them"):
        mpma(**{"image.size": 72})

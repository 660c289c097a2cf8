"""PLACE: its terms against plain float64 loops, and the invariances that its alignment must have."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prior_bench import recipes
from prior_bench.method import StudyView
from prior_bench.methods.place.correlation import correlation_loss, patch_correlation
from prior_bench.methods.place.method import Place, PlaceRecipe
from prior_bench.methods.place.pathology import set_alignment
from prior_bench.recipe_files import recipe_file
from prior_bench.types import Report

REPORTS = (
    ("Heart is enlarged.", "No pneumothorax.", "Small left pleural effusion.", "Lungs are otherwise clear."),
    ("Normal chest.",),
    ("Right lower lobe consolidation.", "No pneumothorax."),
    ("Lines are in place.", "Heart size is normal.", "No pleural effusion is seen today."),
)
PAIRS = (*REPORTS, REPORTS[1], ("No pneumothorax.", "Normal chest.", "No pneumothorax."))  # equal pairs and sentences
SMALL = {"image.name": "test_resnet", "image.size": 64, "text.layers": 2, "text.width": 16, "text.heads": 2,
         "text.vocabulary": 120, "width": 8, "hidden": 12, "queries": 3, "query_width": 8, "query_heads": 2, "grid": 3}


def place(seed: int = 0, **values: object) -> Place:
    torch.manual_seed(seed)
    recipe = recipes.load(recipe_file("place"), "small", PlaceRecipe, {**SMALL, **values})
    return Place.from_recipe(recipe, [" ".join(r) for r in REPORTS]).eval()


def batch_of(method: Place, reports: tuple = REPORTS) -> dict:
    rng = np.random.default_rng(0)
    views = [StudyView((rng.integers(0, 255, (64, 64), dtype=np.uint8),), Report({}, r)) for r in reports]
    return method.collate([method.view(view, rng) for view in views])


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a @ b / (a.norm() * b.norm())


def cross_entropy(s: torch.Tensor) -> torch.Tensor:
    return sum(s[i].exp().sum().log() - s[i, i] for i in range(len(s))) / len(s)


def contexts(queries: torch.Tensor, keys: torch.Tensor) -> list[torch.Tensor]:
    found = []
    for query in queries:
        a = (keys @ query / 0.1).softmax(dim=0)
        found.append(sum(a[k] * keys[k] for k in range(len(keys))))
    return found


def test_the_objective_by_loops():
    method = place()
    batch = batch_of(method, PAIRS)
    found = method(batch)
    m = copy.deepcopy(method).double()
    images = m.normalise(batch["image"]).double()
    v, t, g_image, g_text, cce = [], [], [], [], []
    with torch.no_grad():
        for i in range(len(images)):
            levels = m.image_encoder.pyramid(images[i : i + 1])
            g_image.append(m.image_global(levels[3].mean(dim=(2, 3)))[0])
            v.append(F.normalize(m.image_local(m.visual(levels[2].flatten(2).mT)[0]), dim=1))
            mask = batch["mask"][i]
            ids, sentence = batch["ids"][i][mask], batch["sentence"][i][mask]
            pieces = m.text_encoder(ids[None], torch.ones(1, len(ids), dtype=torch.bool))[0]
            g_text.append(m.text_global(pieces[:1])[0])
            pooled = []
            for s in range(int(sentence.max()) + 1):
                own = pieces[sentence == s]
                w = m.sentence_pool.score(own)[:, 0].softmax(dim=0)
                pooled.append(sum(w[k] * own[k] for k in range(len(own))))
            t.append(F.normalize(m.text_local(torch.stack(pooled)), dim=1))
            rho = patch_correlation(images[i : i + 1], 3)[0]
            queries = F.adaptive_avg_pool2d(m.correlation_patches(levels[2]), 3)[0].flatten(1).T
            words = m.correlation_words(pieces)
            seen, _ = m.correlation.attention(queries[None], words[None], words[None])
            h = m.correlation.linear(queries + seen[0])
            pairs = [(a, b) for a in range(9) for b in range(a + 1, 9)]
            cce.append(sum(abs(rho[a, b] - cosine(h[a], h[b])) for a, b in pairs) / len(pairs))
    n = len(v)
    z, back = torch.zeros(n, n, dtype=torch.double), torch.zeros(n, n, dtype=torch.double)
    for i in range(n):
        for j in range(n):
            z[i, j] = sum(cosine(c, s) for c, s in zip(contexts(t[j], v[i]), t[j], strict=True)) / len(t[j])
            back[j, i] = sum(cosine(c, k) for c, k in zip(contexts(v[i], t[j]), v[i], strict=True)) / len(v[i])
    inter = (cross_entropy(z / 0.1) + cross_entropy(back / 0.1)) / 2
    intra = sum(cross_entropy(torch.stack([torch.stack([cosine(c, s) / 0.1 for s in t[i]])
                                           for c in contexts(t[i], v[i])])) for i in range(n)) / n
    s = torch.stack([torch.stack([cosine(a, b) / 0.07 for b in g_text]) for a in g_image])
    expected = {"L_ita": (cross_entropy(s) + cross_entropy(s.T)) / 2, "L_pcma": (inter + intra) / 2,
                "L_cce": sum(cce) / n}
    assert {name: weight for name, (weight, _) in found.items()} == {"L_ita": 1.0, "L_pcma": 1.0, "L_cce": 0.5}
    for name, value in expected.items():
        assert found[name][1].item() == pytest.approx(value.item(), rel=3e-4), name


def test_alignment_is_invariant_and_ignores_padding():
    torch.manual_seed(0)
    visual, textual = (F.normalize(torch.randn(3, n, 8), dim=2) for n in (4, 5))
    mask = torch.tensor([[True] * 5, [True] * 2 + [False] * 3, [True] * 4 + [False]])
    value = set_alignment(visual, textual, mask, 0.1, 0.1)
    order = torch.tensor([3, 1, 0, 2])
    torch.testing.assert_close(set_alignment(visual[:, order], textual, mask, 0.1, 0.1), value)
    turned = torch.tensor([4, 2, 0, 3, 1])
    torch.testing.assert_close(set_alignment(visual, textual[:, turned], mask[:, turned], 0.1, 0.1), value)
    padded = textual.clone()
    padded[~mask] = 7.0
    torch.testing.assert_close(set_alignment(visual, padded, mask, 0.1, 0.1), value)


def test_one_query_and_one_sentence_are_a_second_global_loss():
    """Then there is nothing to attend to, nor another sentence to mistake one for."""
    torch.manual_seed(0)
    visual, textual = (F.normalize(torch.randn(5, 1, 8), dim=2) for _ in range(2))
    value = set_alignment(visual, textual, torch.ones(5, 1, dtype=torch.bool), 0.1, 0.1)
    s = torch.stack([torch.stack([cosine(v[0], t[0]) / 0.1 for t in textual]) for v in visual])
    assert value.item() == pytest.approx((cross_entropy(s) + cross_entropy(s.T)).item() / 4, rel=1e-5)


def test_the_correlation_target():
    images = torch.rand(2, 1, 64, 64)
    rho = patch_correlation(images, 4)
    assert rho.shape == (2, 16, 16)
    expected = np.corrcoef(np.stack([images[0, 0, r : r + 16, c : c + 16].numpy().ravel()
                                     for r in range(0, 64, 16) for c in range(0, 64, 16)]))
    np.testing.assert_allclose(rho[0].numpy(), expected, atol=1e-4)
    torch.testing.assert_close(patch_correlation(3 * images + 1, 4), rho, atol=1e-4, rtol=0)
    assert correlation_loss(rho, rho).tolist() == [0, 0]
    wide = images.repeat_interleave(3, dim=2).repeat_interleave(3, dim=3)  # cells of 48 pixels are averaged to 16
    torch.testing.assert_close(patch_correlation(wide, 4), rho, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("condition", "reaches"), [("report", True), ("none", False)])
def test_the_report_is_read_only_on_condition(condition, reaches):
    method = place(condition=condition)
    method(batch_of(method))["L_cce"][1].backward()
    got = sum(float(p.grad.abs().sum()) for p in method.text_encoder.parameters() if p.grad is not None)
    assert (got > 0) == reaches


@pytest.mark.parametrize("image", ["test_resnet", "test_vit"])
def test_both_tracks_train(image):
    method = place(**{"image.name": image}).train()
    batch = batch_of(method)
    sum(weight * value for weight, value in method(batch).values()).backward()
    for part in method.children():
        assert sum(float(p.grad.abs().sum()) for p in part.parameters() if p.grad is not None) > 0
    assert torch.isfinite(method.eval().local_score(method.normalise(batch["image"]), ["No edema.", "X"])).all()


def test_maps_go_through_the_queries_attention():
    """The last layer's cross-attention, worked out from its weights by heads; a sentence mixes the queries' maps."""
    method = place()
    images = method.normalise(torch.randint(0, 255, (3, 1, 64, 64), dtype=torch.uint8))
    texts = ["No edema.", "Small left pleural effusion.", "Heart is enlarged."]
    with torch.no_grad():
        found = method.sentence_maps(images, texts)["sentence to image"]
        image, text = method._image(images), method._text(method.tokens(texts))
        patches, visual = image.patches.flatten(2).mT, method.visual
        memory, queries = visual.project(patches), visual.queries.expand(3, -1, -1)
        for layer in visual.decoder.layers[:-1]:
            queries = layer(queries, memory)
        last = visual.decoder.layers[-1]
        queries = queries + last._sa_block(last.norm1(queries), None, None)
        attention, heads = last.multihead_attn, last.multihead_attn.num_heads
        w, b = attention.in_proj_weight, attention.in_proj_bias
        n = w.shape[1]
        q, k = last.norm2(queries) @ w[:n].T + b[:n], memory @ w[n : 2 * n].T + b[n : 2 * n]
        read = sum((q[..., part] @ k[..., part].mT / (n // heads) ** 0.5).softmax(dim=2)
                   for part in (slice(h * n // heads, (h + 1) * n // heads) for h in range(heads))) / heads
        for i in range(3):
            picked = (image.observations[i] @ text.observations[i, 0] / 0.1).softmax(dim=0)
            torch.testing.assert_close(found[i].flatten(), picked @ read[i])
        torch.testing.assert_close(found.sum(dim=(1, 2)), torch.ones(3))

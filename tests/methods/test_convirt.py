"""ConVIRT: its objective against plain float64 loops, its views, its text pooling, and what it freezes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from prior_bench import recipes
from prior_bench.method import StudyView
from prior_bench.methods.convirt.method import Convirt, ConvirtRecipe
from prior_bench.recipe_files import recipe_file
from prior_bench.types import Report

REPORTS = (
    ("Heart is enlarged.", "No pneumothorax.", "Small left pleural effusion.", "Lungs are otherwise clear."),
    ("Normal chest.",),
    ("Right lower lobe consolidation.", "No pneumothorax."),
    ("Lines are in place.", "Heart size is normal.", "No pleural effusion is seen today."),
)
SMALL = {"image.name": "test_resnet", "image.size": 64, "text.layers": 2, "text.width": 16, "text.heads": 2,
         "text.vocabulary": 120, "width": 16}


def convirt(seed: int = 0, **values: object) -> Convirt:
    torch.manual_seed(seed)
    recipe = recipes.load(recipe_file("convirt"), "small", ConvirtRecipe, {**SMALL, **values})
    return Convirt.from_recipe(recipe, [" ".join(r) for r in REPORTS]).eval()


def batch_of(method: Convirt) -> dict:
    rng = np.random.default_rng(0)
    views = [StudyView((rng.integers(0, 255, (64, 64), dtype=np.uint8),), Report({}, r)) for r in REPORTS]
    return method.collate([method.view(view, rng) for view in views])


def test_the_objective_by_loops():
    method = convirt()
    batch = batch_of(method)
    found = method(batch)
    slow = copy.deepcopy(method).double()
    maps = slow.image_encoder(slow.normalise(batch["image"]).double())
    v = [slow.image_head(maps[i].flatten(1).mean(dim=1)) for i in range(len(maps))]
    u = []
    for ids, mask in zip(batch["ids"], batch["mask"], strict=True):
        ids = ids[mask]  # alone, without padding
        words = slow.text_encoder(ids[None], torch.ones(1, len(ids), dtype=torch.bool))[0]
        u.append(slow.text_head(torch.stack([max(w[c] for w in words) for c in range(words.shape[1])])))
    tau = method.recipe.tau
    s = torch.stack([torch.stack([a @ b / (a.norm() * b.norm()) / tau for b in u]) for a in v])
    n = len(s)
    forth = sum(-(s[i, i] - s[i].exp().sum().log()) for i in range(n)) / n
    back = sum(-(s[i, i] - s[:, i].exp().sum().log()) for i in range(n)) / n
    assert [w for w, _ in found.values()] == [0.75, 0.25]
    assert found["l_v_to_u"][1].item() == pytest.approx(forth.item(), abs=2e-5)
    assert found["l_u_to_v"][1].item() == pytest.approx(back.item(), abs=2e-5)


def test_views_take_one_sentence_of_three_words_and_one_image():
    method = convirt(**{f"augmentation.{name}": 0.0 for name in ("rotation", "scale", "shift", "contrast",
                                                                 "brightness")})
    images = tuple(np.full((64, 64), v, np.uint8) for v in (10, 200))
    views = [method.view(StudyView(images, Report({}, REPORTS[0])), np.random.default_rng(i)) for i in range(40)]
    assert {v["image"].tobytes() for v in views} == {i.tobytes() for i in images}
    long = {method.text_encoder.tokens([s]).ids.tobytes() for s in REPORTS[0] if len(s.split()) >= 3}
    assert {v["tokens"].ids.tobytes() for v in views} == long
    short = method.view(StudyView(images, Report({}, ("Normal chest.",))), np.random.default_rng(0))
    assert short["tokens"].ids.tobytes() == method.text_encoder.tokens(["Normal chest."]).ids.tobytes()


def test_a_text_is_the_mean_of_its_sentences_whatever_stands_beside_it():
    method = convirt()
    texts = [" ".join(r) for r in REPORTS]
    with torch.no_grad():
        together = method.encode_text([*texts, ""])
        for text, sentences, vector in zip(texts, REPORTS, together.joint, strict=False):
            alone = torch.stack([method.encode_text([s]).joint[0] for s in sentences])
            torch.testing.assert_close(vector, torch.nn.functional.normalize(alone.mean(dim=0), dim=0))
            torch.testing.assert_close(vector, method.encode_text([text]).joint[0])
    torch.testing.assert_close(together.joint.norm(dim=1), torch.ones(5))
    assert together.sentence_mask.sum(dim=1).tolist() == [4, 1, 2, 3, 1]


def test_what_is_frozen():
    assert all(p.requires_grad for p in convirt().parameters())
    method = convirt(frozen_layers=1)
    frozen = {name for name, p in method.named_parameters() if not p.requires_grad}
    assert frozen
    assert all("embeddings" in name or "layer.0." in name for name in frozen)
    total = sum(weight * value for weight, value in method(batch_of(method)).values())
    total.backward()
    for part in (method.image_encoder, method.image_head, method.text_encoder.model.encoder.layer[1], method.text_head):
        assert sum(p.grad.abs().sum() for p in part.parameters()) > 0
    assert all(p.grad is None for name, p in method.named_parameters() if name in frozen)

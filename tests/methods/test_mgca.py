"""MGCA: its three terms against plain float64 loops, the weights of words and patches, both tracks."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from prior_bench import losses, recipes
from prior_bench.errors import UserError
from prior_bench.method import StudyView
from prior_bench.methods.mgca.alignment import clipped_weights
from prior_bench.methods.mgca.method import Mgca, MgcaRecipe
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
         "text.vocabulary": 120, "width": 8, "hidden": 12, "prototypes": 5}


def mgca(seed: int = 0, **values: object) -> Mgca:
    torch.manual_seed(seed)
    recipe = recipes.load(recipe_file("mgca"), "small", MgcaRecipe, {**SMALL, **values})
    return Mgca.from_recipe(recipe, [" ".join(r) for r in REPORTS]).eval()


def batch_of(method: Mgca, reports: tuple = REPORTS) -> dict:
    rng = np.random.default_rng(0)
    views = [StudyView((rng.integers(0, 255, (64, 64), dtype=np.uint8),), Report({}, r)) for r in reports]
    return method.collate([method.view(view, rng) for view in views])


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm()


def weights_by_loops(values: torch.Tensor) -> torch.Tensor:
    low, high = np.percentile(values.numpy(), [10, 90])
    clipped = torch.tensor([min(max(float(v), low), high) for v in values], dtype=torch.double)
    return clipped / clipped.sum()


def one_way(q: torch.Tensor, w: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    seen = []
    for token in q:
        a = (k @ token / 0.1).softmax(dim=0)
        seen.append(unit(sum(a[r] * k[r] for r in range(len(k)))))
    M = torch.stack([torch.stack([a @ b / 0.1 for b in seen]) for a in q])
    total = 0.0
    for n in range(len(q)):
        total += w[n] * (M[n].exp().sum().log() - M[n, n]) / 2
        total += w[n] * (M[:, n].exp().sum().log() - M[n, n]) / 2
    return total


def codes(scores: torch.Tensor) -> torch.Tensor:
    q = (scores / 0.05).exp()
    q = q / q.sum()
    for _ in range(3):
        for k in range(q.shape[1]):
            q[:, k] = q[:, k] / q[:, k].sum() / q.shape[1]
        for i in range(q.shape[0]):
            q[i] = q[i] / q[i].sum() / q.shape[0]
    return q * q.shape[0]


@pytest.mark.parametrize("image", ["test_resnet", "test_vit"])
def test_the_objective_by_loops(image):
    method = mgca(**{"image.name": image})
    batch = batch_of(method, PAIRS)
    found = method(batch, progress=0.5)
    m = copy.deepcopy(method).double()
    images = m.normalise(batch["image"]).double()
    sides = []
    with torch.no_grad():
        for i in range(len(images)):
            if image == "test_resnet":
                levels = m.image_encoder.pyramid(images[i : i + 1])
                whole, patches = levels[3].mean(dim=(2, 3))[0], levels[2][0].flatten(1).T
                omega = torch.full((len(patches),), 1 / len(patches), dtype=torch.double)
            else:
                seen = m.image_encoder.with_class_token(images[i : i + 1])
                whole, patches = seen.token[0], seen.map[0].flatten(1).T
                omega = weights_by_loops(seen.attention[0])
            mask = batch["mask"][i]
            ids, word = batch["ids"][i][mask], batch["word"][i][mask]
            m.text_encoder.model.set_attn_implementation("eager")
            out = m.text_encoder.model(ids[None], output_hidden_states=True, output_attentions=True)
            states, attention = out.last_hidden_state[0], out.attentions[-1][0, :, 0].mean(dim=0)
            count = int(word.max()) + 1
            words = torch.stack([states[word == k].sum(dim=0) for k in range(count)])
            shares = torch.stack([attention[word == k].sum() for k in range(count)])
            sides.append((unit(m.image_global(whole[None])[0]), F.normalize(m.image_local(patches), dim=1), omega,
                          unit(m.text_global(states[:1])[0]), F.normalize(m.text_local(words), dim=1),
                          weights_by_loops(shares)))
    n = len(sides)
    s = torch.stack([torch.stack([a[0] @ b[3] / 0.07 for b in sides]) for a in sides])
    ita = sum(s[i].exp().sum().log() + s[:, i].exp().sum().log() - 2 * s[i, i] for i in range(n)) / n
    cta = sum(one_way(w, omega_w, p) + one_way(p, omega_p, w) for _, p, omega_p, _, w, omega_w in sides) / n
    C = m.prototypes
    of_image, of_text = (torch.stack([side[k] for side in sides]) @ C.T for k in (0, 3))
    q_image, q_text = codes(of_image.detach().clone()), codes(of_text.detach().clone())
    cpa = -((q_image * (of_text / 0.2).log_softmax(1)).sum() + (q_text * (of_image / 0.2).log_softmax(1)).sum()) / 2 / n
    assert {name: weight for name, (weight, _) in found.items()} == {"L_ITA": 1.0, "L_CTA": 1.0, "L_CPA": 1.0}
    for name, expected in (("L_ITA", ita), ("L_CTA", cta), ("L_CPA", cpa)):
        assert found[name][1].item() == pytest.approx(expected.item(), rel=2e-4), name


def test_class_attention_is_what_timm_computes():
    import timm

    method = mgca(**{"image.name": "test_vit"})
    images = method.normalise(torch.randint(0, 255, (2, 1, 64, 64), dtype=torch.uint8))
    with torch.no_grad():
        seen = method.image_encoder.with_class_token(images)
        timm.layers.set_fused_attn(False)
        whole = method.image_encoder.model.forward_features(images)
        torch.testing.assert_close(whole[:, 0], seen.token)
        maps: list[torch.Tensor] = []
        last = method.image_encoder.model.blocks[-1].attn
        last.fused_attn = False
        hook = last.attn_drop.register_forward_hook(lambda module, inputs, out: maps.append(out))
        method.image_encoder.model.forward_features(images)
        hook.remove()
        timm.layers.set_fused_attn(True)
    prefix = method.image_encoder.model.num_prefix_tokens
    torch.testing.assert_close(seen.attention, maps[0][:, :, 0, prefix:].mean(dim=1))


def test_a_transformer_without_a_class_token_is_refused():
    method = mgca(**{"image.name": "vit_medium_patch16_gap_240"})
    with pytest.raises(UserError, match="no class token"):
        method.encode_image(torch.zeros(1, 1, 64, 64))


def test_clipped_weights_ignore_padding():
    attention = torch.tensor([[0.1, 0.5, 0.2, 0.05, 0.15], [0.3, 0.4, 9.0, 9.0, 9.0]])
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    found = clipped_weights(attention, mask)
    torch.testing.assert_close(found[0], weights_by_loops(attention[0].double()).float())
    torch.testing.assert_close(found[1, :2], weights_by_loops(attention[1, :2].double()).float())
    assert found[1, 2:].tolist() == [0, 0, 0]


def test_sinkhorn_shares_prototypes_equally():
    found = losses.sinkhorn(torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) / 10, 0.05, 50)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(60))
    torch.testing.assert_close(found.sum(dim=0), torch.full((6,), 10.0), rtol=1e-3, atol=1e-3)


def test_prototypes_wait_and_keep_unit_length():
    method = mgca(frozen_prototypes=0.25)
    batch = batch_of(method)
    for progress, moves in ((0.1, False), (0.3, True)):
        method.zero_grad()
        sum(weight * value for weight, value in method(batch, progress).values()).backward()
        assert (method.prototypes.grad is not None) == moves
    with torch.no_grad():
        method.prototypes.mul_(3)
    method.after_step(0.3)
    torch.testing.assert_close(method.prototypes.norm(dim=1), torch.ones(5))


def test_padding_contributes_nothing():
    method = mgca()
    texts = [" ".join(r) for r in REPORTS]
    with torch.no_grad():
        together = method.encode_text(texts)
        for i, text in enumerate(texts):
            alone = method.encode_text([text])
            torch.testing.assert_close(together.joint[i], alone.joint[0])
            torch.testing.assert_close(together.words[i][together.word_mask[i]], alone.words[0])

"""GLoRIA: its objective and its scores against plain float64 loops, and the attention that is never built."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from prior_bench import recipes
from prior_bench.errors import UserError
from prior_bench.method import StudyView
from prior_bench.methods.gloria.local_similarity import log_sum_exp, word_cosines
from prior_bench.methods.gloria.method import Gloria, GloriaRecipe
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
         "text.vocabulary": 120}


def gloria(seed: int = 0, **values: object) -> Gloria:
    torch.manual_seed(seed)
    recipe = recipes.load(recipe_file("gloria"), "small", GloriaRecipe, {**SMALL, **values})
    return Gloria.from_recipe(recipe, [" ".join(r) for r in REPORTS]).eval()


def batch_of(method: Gloria, reports: tuple = REPORTS) -> dict:
    rng = np.random.default_rng(0)
    views = [StudyView((rng.integers(0, 255, (64, 64), dtype=np.uint8),), Report({}, r)) for r in reports]
    return method.collate([method.view(view, rng) for view in views])


def cosines_by_loops(regions: torch.Tensor, words: torch.Tensor, tau_1: float) -> torch.Tensor:
    """Regions (R, D) and words (L, D) of one pair: cosine of each word with its context (L,)."""
    s = regions @ words.T
    over_words = torch.stack([row.softmax(dim=0) for row in s])
    found = []
    for k, word in enumerate(words):
        a = (tau_1 * over_words[:, k]).softmax(dim=0)
        context = sum(a[r] * regions[r] for r in range(len(regions)))
        found.append(context @ word / (context.norm() * word.norm()))
    return torch.stack(found)


def encoded_slowly(method: Gloria, batch: dict) -> tuple[list, list, list, list]:
    """V, v, W and t of each sample, encoded alone, in float64."""
    images = method.normalise(batch["image"]).double()
    V, v, W, t = [], [], [], []
    for i in range(len(images)):
        levels = method.image_encoder.pyramid(images[i : i + 1])
        V.append(method.local_embedder(levels[2])[0].flatten(1).T)
        v.append(method.global_embedder(levels[3][0].flatten(1).mean(dim=1)))
        mask = batch["mask"][i]
        ids, word = batch["ids"][i][mask], batch["word"][i][mask]
        states = method.text_encoder.model(ids[None], output_hidden_states=True).hidden_states
        pieces = (states[-1] + states[-2])[0]
        W.append(torch.stack([pieces[word == k].sum(dim=0) for k in range(int(word.max()) + 1)]))
        t.append(W[-1].mean(dim=0))
    return V, v, W, t


@pytest.mark.parametrize("mean", [True, False])
def test_the_objective_by_loops(mean):
    method = gloria(length_normalised=mean)
    batch = batch_of(method, PAIRS)
    found = method(batch)
    slow = copy.deepcopy(method).double()
    slow.text_encoder.model.double()
    V, v, W, t = encoded_slowly(slow, batch)
    n, tau_1, tau_2, tau_3 = len(V), 4.0, 5.0, 10.0
    Z, G = torch.zeros(n, n, dtype=torch.double), torch.zeros(n, n, dtype=torch.double)
    for i in range(n):
        for j in range(n):
            cosines = cosines_by_loops(V[i], W[j], tau_1)
            total = (tau_2 * cosines).exp().sum()
            Z[i, j] = tau_3 * (total / len(cosines) if mean else total).log()
            G[i, j] = tau_3 * v[i] @ t[j] / (v[i].norm() * t[j].norm())

    def both(s):
        rows = sum(s[i].exp().sum().log() - s[i, i] for i in range(n)) / n
        return rows + sum(s[:, i].exp().sum().log() - s[i, i] for i in range(n)) / n

    assert found["L_local"][1].item() == pytest.approx(both(Z).item(), rel=2e-4)
    assert found["L_global"][1].item() == pytest.approx(both(G).item(), rel=2e-4)
    assert {name: weight for name, (weight, _) in found.items()} == {"L_global": 1.0, "L_local": 1.0}


def test_attention_sums_to_one_and_padding_contributes_nothing():
    torch.manual_seed(0)
    regions, words = torch.randn(3, 7, 8), torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    cosines, attention = word_cosines(regions, words, mask, 4.0)
    torch.testing.assert_close(attention.sum(dim=3), torch.ones(3, 2, 5))
    words[1, 3:] = 100.0
    again, _ = word_cosines(regions, words, mask, 4.0)
    torch.testing.assert_close(again[:, 1, :3], cosines[:, 1, :3])
    short, _ = word_cosines(regions, words[1:, :3], mask[1:, :3], 4.0)
    torch.testing.assert_close(short[:, 0], cosines[:, 1, :3])
    torch.testing.assert_close(log_sum_exp(again, mask, 5.0, mean=True)[:, 1],
                               (5 * cosines[:, 1, :3]).exp().mean(dim=1).log())


@pytest.mark.parametrize("mean", [True, False])
def test_a_report_without_words_leaves_losses_gradients_and_scores_finite(mean):
    """`plain_words` can take all that a report says: words in other letters than ASCII's."""
    method = gloria(length_normalised=mean, **{"text.plain_words": True})
    terms = method(batch_of(method, (*REPORTS, ("Без патологии.",))))
    sum(weight * value for weight, value in terms.values()).backward()
    assert all(value.isfinite() for _, value in terms.values())
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)
    with torch.no_grad():
        scores = method.local_score(method.normalise(torch.zeros(1, 1, 64, 64, dtype=torch.uint8)), ["Без", "Edema."])
        joint = method.encode_text(["Без", "Edema."]).joint
    assert scores.isfinite().all()
    torch.testing.assert_close(joint.norm(dim=1), torch.ones(2))


def test_a_width_is_refused_and_so_is_a_recipe_without_text():
    with pytest.raises(UserError, match="the joint width is the text encoder's"):
        gloria(width=999)
    with pytest.raises(UserError, match="GLoRIA needs a text encoder"):
        gloria(text=None)


def test_local_score_and_paper_scores_by_loops():
    method = gloria()
    texts = [" ".join(r) for r in REPORTS]
    images = method.normalise(torch.randint(0, 255, (6, 1, 64, 64), dtype=torch.uint8))
    classes = ("atelectasis", "edema", "effusion")
    with torch.no_grad():
        found = method.local_score(images, texts)
        torch.testing.assert_close(method.local_score(images[2:3], texts[1:2])[0, 0], found[2, 1])
        words = [method.encode_text([t]).words[0] for t in texts]
        levels = method.image_encoder.pyramid(images)
        V = method.local_embedder(levels[2]).flatten(2).mT
        for i in (0, 5):
            for j in range(len(texts)):
                cosines = cosines_by_loops(V[i], words[j], 4.0)
                assert found[i, j].item() == pytest.approx(float((5 * cosines).exp().mean().log() / 5), abs=1e-4)

        import yaml

        from prior_bench.methods.gloria.method import PROMPTS

        prompts = yaml.safe_load(PROMPTS.read_text())
        scores = np.zeros((6, 3))
        joint = method.encode_image(images).joint
        for c, name in enumerate(classes):
            assert len(prompts[name]) == 5
            for i in range(6):
                each = []
                for prompt in prompts[name]:
                    text = method.encode_text([prompt])
                    best = float(cosines_by_loops(V[i], text.words[0], 4.0).max())
                    each.append((float(joint[i] @ text.joint[0]) + 5 * best) / 2)
                scores[i, c] = max(each)
        expected = (scores - scores.mean(axis=0)) / scores.std(axis=0)
        paper = method.paper_zero_shot([images[:4], images[4:]], classes)
        np.testing.assert_allclose(paper.numpy(), expected, atol=5e-3)
        assert method.paper_zero_shot([images], ("heart", "edema")) is None


def test_a_view_is_the_report_or_one_sentence():
    image = (np.zeros((64, 64), np.uint8),)
    whole = gloria().view(StudyView(image, Report({}, REPORTS[0])), np.random.default_rng(0))
    assert whole["tokens"].sentence.max() == 3
    method = gloria(sentences=True)
    seen = {method.view(StudyView(image, Report({}, REPORTS[0])), np.random.default_rng(i))["tokens"].ids.tobytes()
            for i in range(30)}
    assert seen == {method.text_encoder.tokens([s]).ids.tobytes() for s in REPORTS[0]}


def test_gradients_reach_every_part():
    method = gloria()
    sum(weight * value for weight, value in method(batch_of(method)).values()).backward()
    for part in (method.image_encoder, method.global_embedder, method.local_embedder, method.text_encoder):
        assert sum(p.grad.abs().sum() for p in part.parameters() if p.grad is not None) > 0


def test_maps_by_loops():
    method = gloria()
    images = method.normalise(torch.randint(0, 255, (4, 1, 64, 64), dtype=torch.uint8))
    texts = [report[-1] for report in REPORTS]
    with torch.no_grad():
        found = method.sentence_maps(images, texts)["words to image"]
        level = method.local_embedder(method.image_encoder.pyramid(images)[2])
        for i, text in enumerate(texts):
            words = method.encode_text([text]).words[0]
            cells = [(y, x) for y in range(level.shape[2]) for x in range(level.shape[3])]
            over_words = {cell: (words @ level[i, :, cell[0], cell[1]]).softmax(dim=0) for cell in cells}
            for y, x in cells:
                each = [(4 * over_words[y, x][k]).exp() / sum((4 * over_words[c][k]).exp() for c in cells)
                        for k in range(len(words))]
                assert found[i, y, x].item() == pytest.approx(float(sum(each) / len(words)), rel=1e-4)

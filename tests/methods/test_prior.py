"""PRIOR: its objective against plain float64 loops written from the equations, its invariances, and its stages."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from prior_bench import recipes
from prior_bench.errors import UserError
from prior_bench.method import StudyView
from prior_bench.methods.prior.decoders import ImageDecoder, SentenceDecoder, match, reorder
from prior_bench.methods.prior.method import Prior, PriorRecipe
from prior_bench.methods.prior.prototypes import PrototypeBank
from prior_bench.recipe_files import read, recipe_file
from prior_bench.types import Report

REPORTS = (
    ("Heart is enlarged.", "No pneumothorax.", "Small left pleural effusion.", "Lungs are otherwise clear."),
    ("Normal chest.",),
    ("Right lower lobe consolidation.", "No pneumothorax."),
    ("Lines are in place.", "Heart size is normal.", "No pleural effusion is seen today."),
)
PAIRS = (*REPORTS, REPORTS[1], ("No pneumothorax.", "Normal chest.", "No pneumothorax."))  # equal pairs and sentences
SMALL = {
    "image.name": "test_resnet", "image.size": 64, "text.layers": 1, "text.width": 16, "text.heads": 2,
    "text.vocabulary": 120, "width": 16, "pool_heads": 2,
    "prototypes.count": 6, "prototypes.memory": 32, "decoders.image_channels": 16,
    "decoders.image_blocks": 3, "decoders.queries": 3, "decoders.sentence_layers": 1, "decoders.sentence_heads": 2,
}
LAST = 0.99  # progress in the last stage
TERMS = {"L_global", "L_li", "L_lt", "L_proto", "L_rec", "L_spg", "L_kl", "L_gpa"}


def recipe(name: str = "small", **values: object) -> PriorRecipe:
    return recipes.load(recipe_file("prior"), name, PriorRecipe, {**SMALL, **values})


def prior(seed: int = 0, **values: object) -> Prior:
    torch.manual_seed(seed)
    return Prior.from_recipe(recipe(**{"prototypes.similarity": "dot"} | values), [" ".join(r) for r in REPORTS])


def batch_of(method: Prior, reports: tuple = REPORTS, seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    views = [StudyView((rng.integers(0, 255, (64, 64), dtype=np.uint8),), Report({}, r)) for r in reports]
    return method.collate([method.view(view, rng) for view in views])


# ------------------------------------------------------------------------------------- the objective


def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum() / (a.norm() * b.norm())


def cross_entropy(logits: torch.Tensor) -> torch.Tensor:
    """Mean over the rows of -log softmax at the diagonal."""
    rows = range(len(logits))
    return sum(logits[i].exp().sum().log() - logits[i, i] for i in rows) / len(logits)


def attention_pool(pool: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """One sample (N, C) by loops over heads."""
    x = torch.cat([tokens.mean(dim=0, keepdim=True), tokens])
    if pool.positional_embedding is not None:
        x = x + pool.positional_embedding
    q, k, v = pool.q_proj(x[0]), pool.k_proj(x), pool.v_proj(x)
    d = len(q) // pool.heads
    heads = []
    for h in range(pool.heads):
        part = slice(h * d, (h + 1) * d)
        heads.append(((k[:, part] @ q[part]) / math.sqrt(d)).softmax(dim=0) @ v[:, part])
    return pool.c_proj(torch.cat(heads))


def slow_losses(m: Prior, batch: dict, quantise: bool) -> dict[str, float]:
    """All terms of README.md's equations in float64, one sample at a time, without noise and dropout."""
    m = copy.deepcopy(m).double()
    images = m.normalise(batch["image"]).double()
    features = m.image_encoder(images)
    words = m.text_encoder(batch["ids"], batch["mask"])
    E, t = m.bank.embed.weight, m.bank.temperature
    ca, p = m.cross_attention, m.predictor

    def similarity(s: torch.Tensor) -> torch.Tensor:
        if m.bank.similarity == "dot":
            return E @ s
        return -(E - s).pow(2).sum(dim=1) / 2

    def bank(s: torch.Tensor) -> torch.Tensor:
        return torch.stack([(similarity(row) / t).softmax(dim=0) @ E for row in s])

    samples = []
    for i in range(len(images)):
        cells = features[i].flatten(1).T
        V = m.local_image_projection(cells)
        g_v = m.global_image_projection(attention_pool(m.image_pool, cells))
        count = int(batch["sentence"][i].max()) + 1
        raw = torch.stack([m.local_text_projection(words[i, batch["sentence"][i] == s]).mean(dim=0)
                           for s in range(count)])
        S = bank(raw) if quantise else raw
        g_t = attention_pool(m.sentence_pool, S)
        root = math.sqrt(V.shape[1])
        C_s = torch.sigmoid(ca.text_query(S) @ ca.image_key(V).T / root) @ ca.image_value(V)
        C_v = torch.sigmoid(ca.image_query(V) @ ca.text_key(S).T / root) @ ca.text_value(S)
        samples.append(SimpleNamespace(V=V, g_v=g_v / g_v.norm(), raw=raw, S=S, g_t=g_t / g_t.norm(), C_s=C_s, C_v=C_v))

    scale, local = m.logit_scale.exp(), m.local_logit_scale.exp()
    count = len(samples)
    logits = torch.stack([torch.stack([scale * a.g_v @ b.g_t for b in samples]) for a in samples])
    terms = {"L_global": (cross_entropy(logits) + cross_entropy(logits.T)) / 2}
    li, lt = 0.0, 0.0
    for s in samples:
        n = len(s.V)
        li -= sum(cosine(p(s.V[i]), s.C_v[i]) + cosine(p(s.C_v[i]), s.V[i]) for i in range(n)) / (2 * n * count)
        a, b = s.C_s / s.C_s.norm(dim=1, keepdim=True), s.S / s.S.norm(dim=1, keepdim=True)
        lt += (cross_entropy(local * a @ b.T) + cross_entropy(local * b @ a.T)) / (2 * count)
    terms |= {"L_li": li, "L_lt": lt}
    if quantise:
        terms["L_proto"] = torch.cat([(s.S - s.raw).abs() for s in samples]).mean()
        generated = m.sentence_decoder(torch.stack([s.V for s in samples]))
        queries, spg, kl, rebuilt = generated.shape[1], 0.0, [], []
        for s, out in zip(samples, generated, strict=True):
            target = torch.zeros_like(out)
            kept = min(queries, len(s.S))
            target[:kept] = s.S[:kept]
            cost = (out.unsqueeze(1) - target.unsqueeze(0)).abs().sum(dim=2).detach().numpy()
            rows, columns = linear_sum_assignment(cost)
            ordered = out[rows[np.argsort(columns)]]  # the output of target 0, of target 1, ...
            spg += (ordered - target).abs().mean() / count
            for raw, r in zip(s.raw[:kept], ordered[:kept], strict=True):
                P, R = similarity(raw).softmax(dim=0), similarity(r).softmax(dim=0)
                kl.append((P * (P.log() - R.log())).sum())
            g = attention_pool(m.sentence_pool, bank(ordered[:kept]))
            rebuilt.append(g / g.norm())
        logits = torch.stack([torch.stack([scale * a @ b.g_t for b in samples]) for a in rebuilt])
        maps = [torch.cat([s.V.T.reshape(-1, *features.shape[2:]), s.C_v.T.reshape(-1, *features.shape[2:])])
                for s in samples]
        image = m.image_decoder(torch.stack(maps))
        target = F.interpolate(images, image.shape[2:], mode="bilinear", align_corners=True)
        terms |= {"L_spg": spg, "L_kl": sum(kl) / len(kl), "L_rec": (image - target).abs().mean(),
                  "L_gpa": (cross_entropy(logits) + cross_entropy(logits.T)) / 2}
    return {name: float(value) for name, value in terms.items()}


@pytest.mark.parametrize("progress", [0.0, LAST])
@pytest.mark.parametrize("queries", [3, 5])  # fewer and more than the longest report has sentences
@pytest.mark.parametrize("similarity", ["dot", "distance"])
def test_every_term_equals_its_equation(progress, queries, similarity):
    method = prior(**{"decoders.queries": queries, "prototypes.similarity": similarity}).eval()
    batch = batch_of(method, PAIRS)
    with torch.no_grad():
        found = method(batch, progress)
        expected = slow_losses(method, batch, quantise=progress == LAST)
    assert set(found) == set(expected)
    for name, (_, value) in found.items():
        assert value.item() == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


def test_stages_have_the_weights_of_the_paper():
    method = prior(weights=read(recipe_file("prior"))["paper"]["weights"]).eval()
    batch = batch_of(method)
    shares = [stage.share for stage in method.recipe.training.stages]
    starts = np.cumsum([0.0, *shares[:-1]])
    weights = [{n: w for n, (w, _) in method(batch, start).items()} for start in starts]
    assert weights == [
        {"L_global": 1, "L_li": 1, "L_lt": 1},
        {"L_global": 1, "L_li": 1, "L_lt": 1, "L_proto": 10},
        {"L_global": 10, "L_li": 1, "L_lt": 1, "L_proto": 10, "L_rec": 1, "L_spg": 10, "L_kl": 1, "L_gpa": 1},
    ]
    assert set(method(batch, starts[1] - 1e-3)) == {"L_global", "L_li", "L_lt"}


@pytest.mark.parametrize("name", ["paper", "small", "small-long"])
def test_every_term_is_on_in_every_recipe(name):
    assert set(recipes.load(recipe_file("prior"), name, PriorRecipe).weights[-1]) == TERMS


def test_all_recipes_are_valid_and_their_stages_complete():
    trained = [name for name in read(recipe_file("prior")) if name != "image-only"]
    assert recipes.load(recipe_file("prior"), "image-only", PriorRecipe).training is None
    for name in trained:
        shares = [s.share for s in recipes.load(recipe_file("prior"), name, PriorRecipe).training.stages]
        assert sum(shares) == pytest.approx(1, abs=1e-6)


def test_weights_for_another_number_of_stages_are_refused():
    with pytest.raises(UserError, match="2 stages"):
        recipe(weights=[{"L_global": 1}, {"L_global": 1}])
    with pytest.raises(UserError, match="L_globl"):
        recipe(weights=[{"L_globl": 1}] * 3)


@pytest.mark.parametrize("term", ["L_spg", "L_kl", "L_gpa"])
def test_each_term_of_the_generated_sentences_can_stand_alone(term):
    whole, alone = prior().eval(), prior(weights=[{"L_global": 1}] * 2 + [{"L_proto": 1, term: 1}]).eval()
    terms = alone(batch_of(alone), LAST)
    assert set(terms) == {"L_proto", term}
    assert terms[term][1] == whole(batch_of(whole), LAST)[term][1]


def test_gradients_reach_everything_that_trains():
    method = prior().train()
    sum(w * v for w, v in method(batch_of(method), LAST).values()).backward()
    without = [name for name, p in method.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert not without
    for part in (method.image_encoder, method.text_encoder, method.bank, method.sentence_decoder, method.image_decoder):
        assert sum(p.grad.abs().sum() for p in part.parameters()) > 0


def test_the_loss_starts_near_the_logarithm_of_the_batch():
    method = prior(tau_global=1.0).eval()
    batch = batch_of(method, REPORTS * 4)
    assert method(batch, 0.0)["L_global"][1].item() == pytest.approx(math.log(16), rel=0.1)


def test_bf16_gives_the_terms_of_fp32():
    method = prior().eval()
    batch = batch_of(method)
    with torch.no_grad():
        exact = method(batch, LAST)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = method(batch, LAST)
    for name, (_, value) in exact.items():
        assert rough[name][1].dtype == torch.float32
        assert rough[name][1].item() == pytest.approx(value.item(), rel=0.05, abs=0.05), name


def test_it_overfits_a_few_pairs():
    method = prior().train()
    batch = batch_of(method)
    optimiser = torch.optim.AdamW(method.parameters(), 1e-3)
    steps = 60
    history = []
    for step in range(steps):
        terms = method(batch, step / steps)
        optimiser.zero_grad()
        sum(w * v for w, v in terms.values()).backward()
        torch.nn.utils.clip_grad_norm_(method.parameters(), 1.0)
        optimiser.step()
        history.append({name: value.item() for name, (_, value) in terms.items()})
    assert min(h["L_global"] for h in history) < 0.3 * math.log(len(REPORTS))
    assert history[-1]["L_li"] < history[0]["L_li"] - 0.2
    assert history[-1]["L_rec"] < next(h["L_rec"] for h in history if "L_rec" in h)


# ---------------------------------------------------------------------------------------- invariances


def test_a_report_does_not_hang_on_the_order_of_its_sentences():
    """Beyond the text encoder, whose positions know the order: the pool and the cross attention."""
    method = prior().eval()
    sentences, order = torch.randn(1, 5, 16), torch.randperm(5)
    mask = torch.ones(1, 5, dtype=torch.bool)
    tokens = torch.randn(1, 4, 16)
    torch.testing.assert_close(method._report(sentences, mask), method._report(sentences[:, order], mask))
    seen = [method.cross_attention(tokens, s, mask) for s in (sentences, sentences[:, order])]
    torch.testing.assert_close(seen[0].of_tokens, seen[1].of_tokens)
    torch.testing.assert_close(seen[0].of_sentences[:, order], seen[1].of_sentences)


def test_padding_contributes_nothing_to_the_losses():
    method = prior().eval()
    batch = batch_of(method)
    padded = dict(batch)
    for key, filler in (("ids", 7), ("mask", False), ("sentence", -1)):
        padded[key] = F.pad(batch[key], (0, 9), value=filler)
    with torch.no_grad():
        for name, (_, value) in method(batch, LAST).items():
            assert method(padded, LAST)[name][1].item() == pytest.approx(value.item(), abs=1e-5), name


def test_a_pair_without_sentences_leaves_the_losses_and_gradients_finite():
    method = prior().train()
    terms = method(batch_of(method, (*REPORTS, ())), LAST)
    sum(w * v for w, v in terms.values()).backward()
    assert all(v.isfinite() for _, v in terms.values())
    assert all(p.grad.isfinite().all() for p in method.parameters())


def test_features_do_not_hang_on_the_batch():
    method = prior().eval()
    images = method.normalise(torch.randint(0, 255, (5, 1, 64, 64), dtype=torch.uint8))
    texts = [" ".join(r) for r in REPORTS]
    with torch.no_grad():
        together = method.encode_image(images)
        alone = [method.encode_image(image) for image in images.split(1)]
        torch.testing.assert_close(together.joint, torch.cat([a.joint for a in alone]), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together.map, torch.cat([a.map for a in alone]), atol=1e-5, rtol=1e-4)
        text = torch.cat([method.encode_text([t]).joint for t in texts])
        torch.testing.assert_close(method.encode_text(texts).joint, text, atol=1e-5, rtol=1e-4)
        scores = torch.cat([torch.cat([method.local_score(i, [t]) for t in texts], dim=1) for i in images.split(1)])
        torch.testing.assert_close(method.local_score(images, texts), scores, atol=1e-5, rtol=1e-4)
    assert together.joint.norm(dim=1).tolist() == pytest.approx([1.0] * 5, abs=1e-5)
    assert ((scores > 0) & (scores < 1)).all()


def test_features_have_no_noise_in_eval_mode():
    method = prior().eval()
    with torch.no_grad():
        assert torch.equal(method.encode_text(["No effusion."]).joint, method.encode_text(["No effusion."]).joint)


# -------------------------------------------------------------------------------------------- parts


def test_local_scores_are_the_mean_attention_of_both_directions():
    method = prior().eval()
    attention = method.cross_attention
    V, S = torch.randn(2, 4, 16), torch.randn(3, 16)
    found = attention.score(V, S)
    for i in range(2):
        for s in range(3):
            one = torch.sigmoid(attention.text_query(S[s]) @ attention.image_key(V[i]).T / 4).mean()
            two = torch.sigmoid(attention.image_query(V[i]) @ attention.text_key(S[s]) / 4).mean()
            assert found[i, s].item() == pytest.approx(((one + two) / 2).item(), abs=1e-6)


def test_official_layout_reads_the_buffer_without_a_transpose():
    proper, official = prior().eval(), prior(official_layout=True).eval()
    channels = proper.image_encoder.channels
    features = torch.randn(2, channels, 2, 2)
    for i, sample in enumerate(features):
        rows = sample.flatten().view(4, channels)
        torch.testing.assert_close(official._local(features)[i], official.local_image_projection(rows))
        columns = torch.stack([sample[:, y, x] for y in range(2) for x in range(2)])
        torch.testing.assert_close(proper._local(features)[i], proper.local_image_projection(columns))
    tokens = torch.randn(2, 4, 16)
    assert torch.equal(official._map(tokens, features)[0], tokens[0].flatten().view(16, 2, 2))
    assert torch.equal(proper._map(tokens, features)[0, :, 1, 0], tokens[0, 2])


def test_the_matching_is_the_best_assignment_and_in_the_targets_order():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(8, 5, 4, generator=generator)
    counts = torch.tensor([0, 1, 2, 3, 4, 5, 5, 2])
    mask = torch.arange(5) < counts.unsqueeze(1)
    targets = torch.randn(8, 5, 4, generator=generator) * mask.unsqueeze(-1)
    order = match(outputs, targets, mask)
    matched = reorder(outputs, order)
    for b in range(8):
        assert sorted(order[b].tolist()) == list(range(5))
        cost = (outputs[b].unsqueeze(1) - targets[b].unsqueeze(0)).abs().sum(dim=2).numpy()
        best = cost[linear_sum_assignment(cost)].sum()
        assert (matched[b] - targets[b]).abs().sum().item() == pytest.approx(best, rel=1e-5)


def test_the_matching_of_a_diverged_run_goes_on():
    outputs = torch.full((1, 3, 4), float("nan"))
    order = match(outputs, torch.randn(1, 3, 4), torch.ones(1, 3, dtype=torch.bool))
    assert sorted(order[0].tolist()) == [0, 1, 2]


def test_the_matching_undoes_a_permutation_that_is_not_its_own_inverse():
    targets = torch.eye(3).unsqueeze(0)
    outputs = targets[:, [2, 0, 1]]
    assert torch.equal(reorder(outputs, match(outputs, targets, torch.ones(1, 3, dtype=torch.bool))), targets)


def test_the_bank_is_noisy_in_training_only_and_mixes_its_prototypes():
    torch.manual_seed(0)
    bank = PrototypeBank(5, 4, temperature=0.9)
    s = torch.randn(3, 4)
    expected = torch.stack([((bank.embed.weight @ row) / 0.9).softmax(dim=0) @ bank.embed.weight for row in s])
    torch.testing.assert_close(bank.eval()(s), expected)
    noisy = torch.stack([bank.train()(s) for _ in range(2)])
    assert not torch.equal(noisy[0], noisy[1])


@pytest.mark.parametrize(("schedule", "half", "end"), [("fixed", 0.9, 0.9), ("linear", 0.495, 0.09),
                                                       ("exponential", 0.9 * 0.1**0.5, 0.09)])
def test_temperature_schedules(schedule, half, end):
    bank = PrototypeBank(5, 4, temperature=0.9)
    for progress, expected in ((0.0, 0.9), (0.5, half), (1.0, end)):
        bank.set_temperature(schedule, 0.9, progress)
        assert bank.temperature.item() == pytest.approx(expected)


def test_a_bank_from_data_starts_at_the_centres_of_the_last_sentences():
    torch.manual_seed(0)
    bank = PrototypeBank(3, 2, temperature=0.9, memory=60)
    corners = torch.tensor([[10.0, 0.0], [0.0, 10.0], [-10.0, -10.0]])
    bank.remember(torch.full((50, 2), 99.0))  # overwritten by the following
    for _ in range(6):
        bank.remember(corners[torch.randint(3, (25,))] + 0.1 * torch.randn(25, 2))
    bank.start(iterations=30)
    distance = torch.cdist(bank.embed.weight, corners)
    assert (distance.min(dim=1).values < 8).all()  # near the data, far from 99
    assert bank.remembered == 0


@pytest.mark.parametrize("mask", ["channel", "spatial"])
def test_the_mask_drops_channels_or_positions(mask, monkeypatch):
    method = prior(**{"decoders.mask": mask}).train()
    seen = {}
    monkeypatch.setattr(method.image_decoder, "forward", lambda x: seen.setdefault("x", x)[:, :1])
    tokens, features = torch.ones(6, 4, 16), torch.zeros(6, 9, 2, 2)
    method._reconstruct_image(torch.zeros(6, 1, 64, 64), features, tokens, tokens)
    masked, condition = seen["x"].split(16, dim=1)
    assert (condition == 1).all()
    assert set(masked.unique().tolist()) == {0.0, 2.0}
    constant = (2, 3) if mask == "channel" else (1,)
    assert (masked.amax(dim=constant) == masked.amin(dim=constant)).all()


def test_image_decoder_doubles_the_side_in_every_block():
    assert ImageDecoder(32, 16, 3)(torch.randn(2, 32, 4, 4)).shape == (2, 1, 32, 32)


def test_sentence_decoder_is_berts_decoder_without_a_causal_mask():
    """The same weights through transformers' BERT decoder, given a mask that hides nothing."""
    import transformers

    from prior_bench.methods.prior.official import adapt

    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=5, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                     intermediate_size=64, is_decoder=True, add_cross_attention=True)
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()
    state = {f"sentence_decoder.{k}": v for k, v in bert.state_dict().items()}
    state |= {"prototype_queries": torch.randn(1, 6, 16), "image_encoder.encoder.conv1.weight": torch.zeros(1)}
    ours = SentenceDecoder(16, queries=6, layers=2, heads=2, dropout=0.1).eval()
    prefix = "sentence_decoder."
    ours.load_state_dict({k.removeprefix(prefix): v for k, v in adapt(state).items() if k.startswith(prefix)})
    tokens = torch.randn(3, 4, 16)
    with torch.no_grad():
        theirs = bert(inputs_embeds=ours.queries.expand(3, -1, -1), encoder_hidden_states=tokens, use_cache=False,
                      attention_mask=torch.zeros(3, 1, 6, 6)).last_hidden_state
        torch.testing.assert_close(ours(tokens), theirs, atol=1e-5, rtol=1e-4)


def test_views_shuffle_sentences_and_turn_one_image_of_the_study():
    method = prior(**{"augmentation.flip": True} | {f"augmentation.{name}": 0.0 for name in (
        "rotation", "scale", "shift", "contrast", "brightness")})
    images = tuple(np.full((64, 64), v, np.uint8) for v in (10, 200))
    images[1][:, :32] = 100
    views = [method.view(StudyView(images, Report({}, REPORTS[0])), np.random.default_rng(i)) for i in range(30)]
    seen = {v["image"].tobytes() for v in views}
    assert seen == {images[0].tobytes(), images[1].tobytes(), images[1][:, ::-1].tobytes()}
    assert len({v["tokens"].ids.tobytes() for v in views}) > 5
    again = method.view(StudyView(images, Report({}, REPORTS[0])), np.random.default_rng(3))
    assert again["tokens"].ids.tobytes() == views[3]["tokens"].ids.tobytes()


def test_without_a_text_encoder_it_is_a_vision_only_method():
    method = prior(text=None).eval()
    assert not method.has_text
    images = method.normalise(torch.zeros(1, 1, 64, 64, dtype=torch.uint8))
    assert method.encode_image(images).joint is None
    assert method.local_score(images, ["x"]) is None
    with pytest.raises(TypeError, match="no text encoder"):
        method.encode_text(["x"])


def test_a_transformer_image_encoder_fits_in():
    method = prior(**{"image.name": "vit_tiny_patch16_224"}).eval()
    assert set(method(batch_of(method), LAST)) == TERMS


def test_paper_zero_shot_as_the_authors_compute_it():
    m = prior(**{"prototypes.similarity": "dot"}).eval()
    classes = ("cardiomegaly", "pleural effusion", "edema")
    images = m.normalise(torch.randint(0, 255, (5, 1, 64, 64), dtype=torch.uint8))
    with torch.no_grad():
        found = m.paper_zero_shot([images[:2], images[2:]], classes)
        for i, image in enumerate(images):
            features = m.image_encoder(image[None])
            g_v, V = m._global(features)[0], m._local(features)[0]
            z, a = [], []
            for name in classes:
                tokenizer = m.text_encoder.tokenizer
                pieces = tokenizer.encode(f"{name} is observed", add_special_tokens=False)
                ids = torch.tensor([[tokenizer.cls_token_id, *pieces, tokenizer.sep_token_id]])
                words = m.local_text_projection(m.text_encoder(ids, torch.ones_like(ids, dtype=torch.bool)))
                sentence = words[0, 1:].mean(dim=0)  # without [CLS], with [SEP]
                E = m.bank.embed.weight
                s = ((E @ sentence) / m.bank.temperature).softmax(dim=0) @ E
                z.append(m.logit_scale * cosine(g_v, attention_pool(m.sentence_pool, s[None])))
                c, root = m.cross_attention, math.sqrt(len(s))
                of_text = torch.sigmoid(c.image_key(V) @ c.text_query(s) / root).mean()
                of_image = torch.sigmoid(c.image_query(V) @ c.text_key(s) / root).mean()
                a.append((of_text + of_image) / 2)
            expected = torch.stack(z).softmax(0) + 0.5 * torch.stack(a).softmax(0)
            torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------- maps and use of prototypes


def test_maps_and_mixtures_by_loops():
    method = prior().eval()
    images = method.normalise(torch.randint(0, 255, (4, 1, 64, 64), dtype=torch.uint8))
    texts = [report[0] for report in REPORTS]
    with torch.no_grad():
        maps, use = method.sentence_maps(images, texts), method.prototype_use(images, texts)["sentences"]
        features, ca, E = method.image_encoder(images), method.cross_attention, method.bank.embed.weight
        words = [method.text_encoder.pad([method.text_encoder.tokens([t])]) for t in texts]
        for i, w in enumerate(words):
            hidden = method.text_encoder(w["ids"], w["mask"])[0]
            s = method.local_text_projection(hidden)[w["sentence"][0] == 0].mean(dim=0)
            p = (E @ s / method.bank.temperature).softmax(dim=0)
            torch.testing.assert_close(use[i], p)
            for y in range(features.shape[2]):
                for x in range(features.shape[3]):
                    v = method.local_image_projection(features[i, :, y, x])
                    forth = torch.sigmoid(ca.text_query(p @ E) @ ca.image_key(v) / math.sqrt(len(v)))
                    back = torch.sigmoid(ca.image_query(v) @ ca.text_key(p @ E) / math.sqrt(len(v)))
                    torch.testing.assert_close(maps["sentence to image"][i, y, x], forth)
                    torch.testing.assert_close(maps["image to sentence"][i, y, x], back)


def test_the_official_layout_has_no_maps():
    method = prior(official_layout=True).eval()
    assert method.sentence_maps(method.normalise(torch.zeros(1, 1, 64, 64, dtype=torch.uint8)), ["Edema."]) is None

"""ConVIRT: its objective against plain float64 loops, its views, its text pooling, what it freezes, and the files of
others against models written here with their attributes' names."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tokenizers
import torch
import torch.nn.functional as F
import torchvision
import transformers
from typer.testing import CliRunner

from prior_bench import recipes
from prior_bench.cli import app
from prior_bench.encoders.text import build_tokenizer
from prior_bench.errors import UserError
from prior_bench.method import StudyView
from prior_bench.methods.convirt.method import Convirt, ConvirtRecipe
from prior_bench.recipe_files import recipe_file
from prior_bench.testing import check_method
from prior_bench.types import Report
from prior_bench.weights import load_checkpoint, new_method

REPORTS = (
    ("Heart is enlarged.", "No pneumothorax.", "Small left pleural effusion.", "Lungs are otherwise clear."),
    ("Normal chest.",),
    ("Right lower lobe consolidation.", "No pneumothorax."),
    ("Lines are in place.", "Heart size is normal.", "No pleural effusion is seen today."),
)
PAIRS = (*REPORTS, REPORTS[1], ("No pneumothorax.", "Normal chest.", "No pneumothorax."))  # equal pairs and sentences
SMALL = {"image.name": "test_resnet", "image.size": 64, "text.layers": 2, "text.width": 16, "text.heads": 2,
         "text.vocabulary": 120, "width": 16}


def convirt(seed: int = 0, **values: object) -> Convirt:
    torch.manual_seed(seed)
    recipe = recipes.load(recipe_file("convirt"), "small", ConvirtRecipe, {**SMALL, **values})
    return Convirt.from_recipe(recipe, [" ".join(r) for r in REPORTS]).eval()


def batch_of(method: Convirt, reports: tuple = REPORTS) -> dict:
    rng = np.random.default_rng(0)
    views = [StudyView((rng.integers(0, 255, (64, 64), dtype=np.uint8),), Report({}, r)) for r in reports]
    return method.collate([method.view(view, rng) for view in views])


def test_the_objective_by_loops():
    method = convirt()
    batch = batch_of(method, PAIRS)
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


# ------------------------------------------------------------------------------------- files of others


class Edreis(torch.nn.Module):
    """The attributes of edreisMD's class; texts are means of all their tokens."""

    def __init__(self, image, text):
        super().__init__()
        width = text.config.hidden_size
        self.bert_model, self.bert_l1, self.bert_l2 = text, torch.nn.Linear(width, width), torch.nn.Linear(width, 24)
        self.res_features = torch.nn.Sequential(*list(image.children())[:-1])
        self.res_l1, self.res_l2 = torch.nn.Linear(512, 512), torch.nn.Linear(512, 24)

    def image(self, images):
        return self.res_l2(self.res_l1(self.res_features(images).flatten(1)).relu())

    def text(self, ids):
        return self.bert_l2(self.bert_l1(self.bert_model(ids[None]).last_hidden_state[0].mean(dim=0)).relu())


class BenchX(torch.nn.Module):
    """The attributes of BenchX's class, which is ViLMedic's; texts are the pooler's output."""

    def __init__(self, image, text):
        super().__init__()

        def head(inputs):
            return torch.nn.Sequential(torch.nn.Linear(inputs, 24), torch.nn.ReLU(), torch.nn.Linear(24, 24))

        self.visual, self.linguistic = torch.nn.Module(), torch.nn.Module()
        self.visual.model, self.linguistic.encoder = image, text
        image.fc = torch.nn.Identity()
        self.vis_proj, self.lin_proj = head(512), head(text.config.hidden_size)

    def image(self, images):
        return self.vis_proj(self.visual.model(images))

    def text(self, ids):
        return self.lin_proj(self.linguistic.encoder(ids[None]).pooler_output[0])


def word_pieces():
    return build_tokenizer([" ".join(r) for r in REPORTS], 120)


def byte_pairs():
    """A tokenizer as RoBERTa's, to which a word is another one after a space."""
    tokenizer = tokenizers.ByteLevelBPETokenizer()
    tokenizer.train_from_iterator([" ".join(r) for r in REPORTS], 300,
                                  special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer._tokenizer, cls_token="<s>", sep_token="</s>", pad_token="<pad>", unk_token="<unk>",
        mask_token="<mask>")


TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
RELEASED = {
    "edreis": (Edreis, word_pieces, lambda n: transformers.BertModel(transformers.BertConfig(vocab_size=n, **TINY)),
               lambda state: state),
    "benchx": (BenchX, byte_pairs, lambda n: transformers.RobertaModel(transformers.RobertaConfig(
        vocab_size=n, max_position_embeddings=130, pad_token_id=1, type_vocab_size=1, **TINY)),
        lambda state: {"model": state, "training_scheduler": {"epoch": 9}, "optimizer": {}, "config": {}}),
}


@pytest.fixture(params=RELEASED)
def released(request, tmp_path):
    """The name of a recipe, a model of others, its tokenizer, what builds a recipe's method, and the model's file."""
    kind, tokenizer_of, text_of, wrapped = RELEASED[request.param]
    torch.manual_seed(0)
    tokenizer = tokenizer_of()
    text = text_of(len(tokenizer))
    model = kind(torchvision.models.resnet18(), text).eval()
    tokenizer.save_pretrained(tmp_path)
    text.config.save_pretrained(tmp_path)
    torch.save(wrapped(model.state_dict()), tmp_path / "released.pth")

    def method(recipe):
        values = {"image.name": "resnet18", "image.weights": "random", "image.size": 64, "width": 24,
                  "frozen_layers": 0}
        chosen = recipes.load(recipe_file("convirt"), recipe, ConvirtRecipe, values)
        return new_method(Convirt, chosen, 1, tokenizer=tmp_path)

    return request.param, model, tokenizer, method, tmp_path / "released.pth"


def test_a_file_of_others_computes_what_it_computed(released):
    name, model, tokenizer, build, file = released
    method = build(name)
    coverage = load_checkpoint(method, file)
    assert (coverage.missing, coverage.unexpected) == ((), ())
    assert set(coverage.expected) == {"image encoder", "text encoder", "heads"}
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(method.encode_image(images).joint, F.normalize(model.image(images), dim=1))
        # BenchX's texts are reports, edreisMD's are sentences
        texts = [" ".join(r) for r in REPORTS] if name == "benchx" else [s for r in REPORTS for s in r]
        cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        ids = [torch.tensor([cls, *tokenizer(t, add_special_tokens=False)["input_ids"], sep]) for t in texts]
        expected = F.normalize(torch.stack([model.text(i) for i in ids]), dim=1)
        torch.testing.assert_close(method.encode_text(texts).joint, expected, atol=1e-5, rtol=1e-4)
    shown = CliRunner().invoke(app, ["weights", "inspect", str(file)]).stdout
    assert f"--recipe {name} --weights FILE loads the image encoder, the text encoder and the heads" in shown
    check_method(method, only="padding")


def test_a_file_of_others_is_refused_by_recipes_that_compute_otherwise(released):
    name, _, _, build, file = released
    with pytest.raises(UserError, match="encoded otherwise") as error:
        load_checkpoint(build("paper"), file)
    assert error.value.fix == f"give --recipe {name}"


def test_whole_reports_are_views():
    method = convirt(whole_reports=True)
    view = method.view(StudyView((np.zeros((64, 64), np.uint8),), Report({}, REPORTS[0])), np.random.default_rng(0))
    assert view["tokens"].ids.tobytes() == method.text_encoder.tokens(REPORTS[0]).ids.tobytes()
    assert method.encode_text([" ".join(r) for r in REPORTS]).sentences is None


def test_pooling_without_a_pooler_is_refused():
    with pytest.raises(UserError, match="no pooler"):
        convirt(text_pooling="pooler")


def test_options_that_came_later_leave_digests_as_they_were():
    fields = ConvirtRecipe().model_dump()
    assert not {"hidden", "text_pooling", "whole_reports"} & set(fields)
    assert ConvirtRecipe(hidden="input").digest() != ConvirtRecipe().digest()
    assert ConvirtRecipe.model_validate(ConvirtRecipe(text_pooling="mean").model_dump()).text_pooling == "mean"

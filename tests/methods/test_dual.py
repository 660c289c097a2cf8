"""Released dual encoders, written here as models with their classes' attributes: what the loaded method computes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from prior_bench import execution, grid, recipes
from prior_bench.cli import app
from prior_bench.encoders.text import build_tokenizer
from prior_bench.errors import UserError
from prior_bench.grid import Request
from prior_bench.methods.dual.method import MODELS, Dual, DualRecipe
from prior_bench.recipe_files import recipe_file
from prior_bench.results import result_files
from prior_bench.testing import check_method, sample_texts
from prior_bench.weights import load_checkpoint, new_method

WORDS = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32,
         "initializer_range": 0.3}  # so that texts differ
SIZE = 64


def scrambled(model):
    """Running means and deviations of batch norm away from 0 and 1."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def bert(pieces, **changes):
    return transformers.BertModel(transformers.BertConfig(vocab_size=pieces, **WORDS | changes))


def parts(**modules):
    found = nn.Module()
    for name, module in modules.items():
        setattr(found, name, module)
    return found


class MedClip(nn.Module):
    """Hidden states 1, 2 and the last, averaged over tokens; the ResNet's classifier is its projection."""

    def __init__(self, pieces):
        super().__init__()
        self.vision_model = self.vision()
        self.text_model = parts(model=bert(pieces), projection_head=nn.Linear(16, 24, bias=False))
        self.logit_scale = nn.Parameter(torch.tensor(2.6))

    def vision(self):
        model = torchvision.models.resnet18()
        model.fc = nn.Linear(512, 24, bias=False)
        return parts(model=model)

    def image(self, images):
        return self.vision_model.model(images)

    def text(self, ids):
        states = self.text_model.model(ids[None], output_hidden_states=True).hidden_states
        tokens = torch.stack([states[1], states[2], states[-1]])
        return self.text_model.projection_head(tokens.mean(dim=(0, 2)))[0]


class MedClipSwin(MedClip):
    def vision(self):
        return parts(model=transformers.SwinModel(transformers.SwinConfig()),
                     projection_head=nn.Linear(768, 24, bias=False))

    def image(self, images):
        return self.vision_model.projection_head(self.vision_model.model(images).pooler_output)


class CxrClip(nn.Module):
    """Texts are their last token; heads are linear."""

    def __init__(self, pieces):
        super().__init__()
        self.image_encoder, width = self.vision()
        self.text_encoder = parts(text_encoder=bert(pieces))
        self.image_projection = parts(projection=nn.Linear(width, 24))
        self.text_projection = parts(projection=nn.Linear(16, 24))
        self.logit_scale = nn.Parameter(torch.tensor(2.6))

    def vision(self):
        model = torchvision.models.resnet18()
        del model.fc
        return parts(resnet=model), 512

    def image(self, images):
        model = self.image_encoder.resnet
        for layer in (model.conv1, model.bn1, model.relu, model.maxpool, model.layer1, model.layer2, model.layer3,
                      model.layer4):
            images = layer(images)
        return self.image_projection.projection(images.mean(dim=(2, 3)))

    def text(self, ids):
        return self.text_projection.projection(self.text_encoder.text_encoder(ids[None]).last_hidden_state[0, -1])


class CxrClipSwin(CxrClip):
    """Their rule for transformers takes the first token, which a Swin has none for: it is the first patch."""

    def vision(self):
        return parts(image_encoder=transformers.SwinModel(transformers.SwinConfig())), 768

    def image(self, images):
        return self.image_projection.projection(self.image_encoder.image_encoder(images).last_hidden_state[:, 0])


class Convirt(nn.Module):
    """MGCA's encoders and heads; a report is its class token, and no token has a place or a type."""

    def __init__(self, pieces):
        super().__init__()
        model, width = self.vision()

        def head(inputs):
            return parts(head=nn.Sequential(nn.Linear(inputs, 2048), nn.BatchNorm1d(2048), nn.ReLU(),
                                            nn.Linear(2048, 24), nn.BatchNorm1d(24, affine=False)))

        self.img_encoder = parts(model=model, global_embed=head(width), local_embed=head(width))
        text = bert(pieces)
        text.pooler = None
        nn.init.zeros_(text.embeddings.token_type_embeddings.weight)
        self.text_encoder = parts(model=text, global_embed=head(16), local_embed=head(16))

    def vision(self):
        model = torchvision.models.resnet18()
        model.fc = nn.Identity()
        return model, 512

    def image(self, images):
        return self.img_encoder.global_embed.head(self.img_encoder.model(images))

    def text(self, ids):
        states = self.text_encoder.model(ids[None], position_ids=torch.zeros_like(ids[None])).last_hidden_state
        return self.text_encoder.global_embed.head(states[:, 0])[0]


class ConvirtVit(Convirt):
    def vision(self):
        model = timm.create_model("test_vit", num_classes=0, img_size=SIZE)
        return model, model.num_features

    def image(self, images):
        return self.img_encoder.global_embed.head(self.img_encoder.model.forward_features(images)[:, 0])


@dataclass(frozen=True)
class Case:
    model: type[nn.Module]
    image: str  # encoder of timm
    wrapper: str | None = None
    size: int = SIZE


CASES = {
    "medclip": Case(MedClip, "resnet18"),
    "medclip-swin": Case(MedClipSwin, "swin_tiny_patch4_window7_224", size=224),
    "cxr-clip": Case(CxrClip, "resnet18", "model"),
    "cxr-clip-swin": Case(CxrClipSwin, "swin_tiny_patch4_window7_224", "model", size=224),
    "convirt-mgca": Case(Convirt, "resnet18", "state_dict"),
    "convirt-mgca-vit": Case(ConvirtVit, "test_vit", "state_dict"),
}


@dataclass(frozen=True)
class Released:
    """A model of others, its tokenizer, its file, and what the recipe must be told about this small one."""

    model: nn.Module
    tokenizer: transformers.PreTrainedTokenizerFast
    file: object
    values: dict

    def method(self, recipe):
        chosen = recipes.load(recipe_file("dual"), recipe, DualRecipe, self.values)
        return new_method(Dual, chosen, 1, tokenizer=self.values["text.name"])


def published(model, folder):
    """The state dict with transformers' encoders as it writes them: in memory newer versions name a Swin otherwise."""
    state = model.state_dict()
    for name, module in model.named_modules():
        if isinstance(module, transformers.PreTrainedModel):
            module.save_pretrained(folder / name)
            state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
            state |= {f"{name}.{key}": value for key, value in load_file(folder / name / "model.safetensors").items()}
    return state


def release(layout, folder):
    case = CASES[layout]
    torch.manual_seed(0)
    tokenizer = build_tokenizer(sample_texts(), 90)
    model = scrambled(case.model(len(tokenizer)))
    tokenizer.save_pretrained(folder)
    bert(len(tokenizer)).save_pretrained(folder)
    state = {key: value for key, value in published(model, folder).items()
             if not (layout.startswith("convirt") and "token_type" in key)}  # which their BERT does not have
    torch.save({case.wrapper: state, "epoch": 3} if case.wrapper else state, folder / "released.pth")
    values = {"image.name": case.image, "image.size": case.size, "width": 24, "text.name": str(folder)}
    if layout.startswith("convirt"):
        values["text.first_layers"] = None
    return Released(model, tokenizer, folder / "released.pth", values)


@pytest.mark.parametrize("layout", CASES)
def test_a_released_file_computes_what_it_computed(layout, tmp_path):
    released = release(layout, tmp_path)
    method = released.method(layout)
    coverage = load_checkpoint(method, released.file)
    assert (coverage.missing, coverage.unexpected) == ((), ())
    assert set(coverage.expected) == {"image encoder", "text encoder", "heads"}
    size = CASES[layout].size
    images, tokenizer = torch.randn(2, 3, size, size), released.tokenizer
    with torch.no_grad():
        torch.testing.assert_close(method.encode_image(images).joint, F.normalize(released.model.image(images), dim=1),
                                   atol=1e-5, rtol=1e-4)
        plain = method.recipe.text.plain_words
        texts = [" ".join(re.findall(r"\w+", t)) for t in sample_texts()] if plain else sample_texts()
        ids = [torch.tensor([tokenizer.cls_token_id, *tokenizer(t, add_special_tokens=False)["input_ids"],
                             tokenizer.sep_token_id]) for t in texts]
        expected = F.normalize(torch.stack([released.model.text(i) for i in ids]), dim=1)
        torch.testing.assert_close(method.encode_text(sample_texts()).joint, expected, atol=1e-5, rtol=1e-4)
    shown = CliRunner().invoke(app, ["weights", "inspect", str(released.file)]).stdout
    assert f"layout: {layout} " in shown
    assert f"--method dual --recipe {layout} --weights FILE loads the image encoder, the text encoder and the heads" \
        in shown


def test_every_model_has_a_case_and_a_recipe():
    assert set(CASES) == set(MODELS) == set(recipes.names(recipe_file("dual")))


@pytest.mark.parametrize("layout", ["medclip", "cxr-clip-swin", "convirt-mgca-vit"])
def test_the_encoder_interface_is_kept(layout, tmp_path):
    released = release(layout, tmp_path)
    method = released.method(layout)
    load_checkpoint(method, released.file)
    assert len(check_method(method)) >= 6


def test_files_that_do_not_fit_are_refused(tmp_path):
    released = release("medclip", tmp_path)
    with pytest.raises(UserError, match="the file is MedCLIP, ResNet-50; this recipe is for cxr-clip") as error:
        load_checkpoint(released.method("cxr-clip"), released.file)
    assert error.value.fix == "give --recipe medclip"
    torch.save({"some.weight": torch.zeros(3)}, released.file)
    with pytest.raises(UserError, match="of no known layout"):
        load_checkpoint(released.method("medclip"), released.file)
    with pytest.raises(UserError, match="layout: Input should be"):
        replace(released, values={**released.values, "layout": "medclop"}).method("medclip")


@pytest.mark.parametrize(("layout", "change", "where"), [
    ("medclip", lambda s: {k: v for k, v in s.items() if "projection_head" not in k}, "text_head.weight"),
    ("medclip", lambda s: s | {"text_model.projection_head.bias": torch.zeros(24)}, "text_head.bias"),
    ("cxr-clip", lambda s: s | {"image_projection.fc.weight": torch.zeros(24, 24)}, "image_head.fc.weight"),
    ("cxr-clip", lambda s: s | {"text_projection.projection.weight": torch.zeros(32, 16)}, "text_head.weight"),
])
def test_other_heads_are_refused(layout, change, where, tmp_path):
    released = release(layout, tmp_path)
    content = torch.load(released.file)
    torch.save(change(content.get("model", content)), released.file)
    with pytest.raises(UserError, match="the file's heads are not those of the recipe") as error:
        load_checkpoint(released.method(layout), released.file)
    assert error.value.where == where


def test_a_file_without_a_text_encoder_makes_it_vision_only(tmp_path):
    released = release("convirt-mgca", tmp_path)
    state = torch.load(released.file)["state_dict"]
    torch.save({k: v for k, v in state.items() if not k.startswith("text_encoder")}, released.file)
    method = released.method("convirt-mgca")
    load_checkpoint(method, released.file)
    assert not method.has_text
    shown = CliRunner().invoke(app, ["weights", "inspect", str(released.file)]).stdout
    assert "--recipe convirt-mgca --weights FILE loads the image encoder, without text" in shown


def test_a_state_of_ours_is_taken_as_it_is(tmp_path):
    released = release("cxr-clip", tmp_path)
    method = released.method("cxr-clip")
    assert method.adapt_checkpoint(method.state_dict()).keys() == method.state_dict().keys()


def test_a_mean_of_layers_needs_two(tmp_path):
    released = release("medclip", tmp_path)
    bert(90, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="there is one layer"):
        released.method("medclip")


class Listener:
    def __getattr__(self, name):
        return lambda *_: None


def test_a_run_needs_the_file_and_then_does_the_tasks_with_text(tmp_path, ci_cache):
    released = release("cxr-clip", tmp_path)
    request = Request(methods=("dual",), tasks=("zero-shot", "retrieval"), datasets=("phantom-ci",), recipe="cxr-clip",
                      overrides=released.values, output=tmp_path / "results", cache=ci_cache)
    with pytest.raises(UserError, match="is for a released file") as error:
        grid.plan(request)
    assert error.value.fix == "give --weights FILE"
    assert not execution.execute(grid.plan(replace(request, weights=released.file)), Listener()).failed
    found = [json.loads(file.read_text()) for file in result_files(tmp_path / "results")]
    assert {one["cell"]["task"] for one in found} == {"zero-shot", "retrieval"}
    assert {one["status"] for one in found} == {"done"}

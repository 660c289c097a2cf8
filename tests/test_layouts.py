"""Released files by layout, written here with their true keys: what the loaded encoder computes, not key counts."""

from __future__ import annotations

import sys
import types

import pytest
import timm
import torch
import torchvision
from typer.testing import CliRunner

from prior_bench import plugins, recipes
from prior_bench.cli import app
from prior_bench.encoders.image import ImageEncoder
from prior_bench.errors import UserError
from prior_bench.recipe_files import recipe_file
from prior_bench.recipes import ImageEncoderSpec
from prior_bench.testing import sample_images, sample_texts
from prior_bench.weights import load_checkpoint, new_method, read_state

NUMBERS = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


def resnet():
    torch.manual_seed(0)
    model = torchvision.models.resnet18()
    return model.eval(), model.state_dict()


def numbered(state, prefix):
    return {f"{prefix}{NUMBERS[k.split('.')[0]]}.{k.partition('.')[2]}": v for k, v in state.items() if k[:2] != "fc"}


def prefixed(state, prefix, **more):
    return {**{f"{prefix}{key}": value for key, value in state.items() if not key.startswith("fc")}, **more}


EXTRA = torch.zeros(3)
RESNETS = {  # layout: (wrapper, state)
    "resnet": (None, lambda s: s),
    "wrapper": (None, lambda s: prefixed(s, "encoder.")),
    "gloria": ("state_dict", lambda s: prefixed(s, "gloria.img_encoder.model.", **{"gloria.temp": EXTRA})),
    "mgca": ("state_dict", lambda s: prefixed(s, "img_encoder_q.model.", **{"prototype_layer.weight": EXTRA})),
    "convirt-mgca": ("state_dict", lambda s: prefixed(s, "img_encoder.model.",
                                                      **{"img_encoder.global_embed.head.0.weight": EXTRA})),
    "convirt-benchx": ("model", lambda s: prefixed(s, "visual.model.", **{"vis_proj.0.weight": EXTRA})),
    "convirt-edreis": (None, lambda s: {**numbered(s, "res_features."), "res_l1.weight": EXTRA}),
    "medclip": (None, lambda s: prefixed(s, "vision_model.model.", **{"vision_model.model.fc.weight": EXTRA})),
    "prior-full": (None, lambda s: prefixed(s, "image_encoder.encoder.", **{"sentence_bank.embed.weight": EXTRA})),
    "cxr-clip": ("model", lambda s: prefixed(s, "image_encoder.resnet.", **{"text_projection.weight": EXTRA})),
    "biovil": (None, lambda s: prefixed(s, "encoder.encoder.", **{"projector.0.weight": EXTRA})),
}


def write(path, wrapper, state, parallel=False):
    state = {f"module.{k}": v for k, v in state.items()} if parallel else state
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, path)
    return path


@pytest.mark.parametrize("layout", RESNETS)
def test_a_released_resnet_computes_what_it_computed(layout, tmp_path):
    model, state = resnet()
    wrapper, rename = RESNETS[layout]
    file = write(tmp_path / "weights.pth", wrapper, rename(state), parallel=layout == "resnet")
    spec = ImageEncoderSpec(name="resnet18", weights=str(file), channels=3, size=64)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        body = torch.nn.Sequential(*list(model.children())[:-2])
        torch.testing.assert_close(ImageEncoder(spec).eval()(images), body(images))
    shown = CliRunner().invoke(app, ["weights", "inspect", str(file)])
    assert f"layout: {layout} " in shown.stdout
    assert "a ResNet with 3 input channels, 8 blocks" in shown.stdout


@pytest.mark.parametrize("layout", ["vit", "mrm"])
def test_a_released_transformer_computes_what_it_computed(layout, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=4).eval()
    state = model.state_dict()
    if layout == "mrm":
        state |= {"decoder_pos_embed": EXTRA, "mask_token": EXTRA, "bert_encoder.x.weight": EXTRA}
    file = write(tmp_path / "weights.pth", "model", state)
    size = model.patch_embed.img_size[0]
    encoder = ImageEncoder(ImageEncoderSpec(name="test_vit", weights=str(file), channels=3, size=size)).eval()
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images).flatten(2).mT,
                                   model.forward_features(images)[:, model.num_prefix_tokens :])
    assert f"layout: {layout} " in CliRunner().invoke(app, ["weights", "inspect", str(file)]).stdout


def test_a_truncated_encoder_is_refused(tmp_path):
    _, state = resnet()
    kept = {k: v for k, v in numbered(state, "res_features.").items() if not k.startswith("res_features.7")}
    file = write(tmp_path / "medklip.pth", "model", kept, parallel=True)
    with pytest.raises(UserError, match="layer4"):
        ImageEncoder(ImageEncoderSpec(name="resnet18", weights=str(file), channels=3, size=64))
    shown = CliRunner().invoke(app, ["weights", "inspect", str(file)]).stdout
    assert "layer4 was not trained" in shown


# ------------------------------------------------------------------------- full models, Lightning files

TINY = {"image.name": "resnet10t", "image.size": 64, "text.layers": 2, "text.width": 16, "text.heads": 2,
        "text.vocabulary": 120}
OFFICIAL = {
    "gloria": {"image_encoder.model.": "gloria.img_encoder.model.", "text_encoder.model.": "gloria.text_encoder.model.",
               "global_embedder.": "gloria.img_encoder.global_embedder.",
               "local_embedder.": "gloria.img_encoder.local_embedder."},
    "mgca": {"image_encoder.model.": "img_encoder_q.model.", "text_encoder.model.": "text_encoder_q.model.",
             "image_global.": "img_encoder_q.global_embed.head.", "image_local.": "img_encoder_q.local_embed.head.",
             "text_global.": "text_encoder_q.global_embed.head.", "text_local.": "text_encoder_q.local_embed.head.",
             "prototypes": "prototype_layer.weight"},
}


def method_of(name, seed):
    kind = plugins.load("methods", name)
    more = {"width": 8, "hidden": 12, "prototypes": 5} if name == "mgca" else {}
    return new_method(kind, recipes.load(recipe_file(name), "small", kind.recipe_class, TINY | more), seed,
                      sample_texts())


def official(name, method):
    """Its weights under the authors' names; MGCA's local heads as 1x1 convolutions, with attention that nobody uses and
    without token types."""
    def rename(key):
        ours, theirs = next((o, t) for o, t in OFFICIAL[name].items() if key.startswith(o))
        return theirs + key.removeprefix(ours)

    state = {rename(k): v.clone() for k, v in method.state_dict().items()
             if not k.startswith("official_") and not (name == "mgca" and "token_type" in k)}
    if name == "mgca":
        state = {k: v.unsqueeze(-1) if "local_embed" in k and v.dim() == 2 else v for k, v in state.items()}
        state["word_local_atten_layer.in_proj_bias"] = EXTRA
    return state


@pytest.fixture
def lightning_file(tmp_path, monkeypatch):
    """Writes a Lightning file whose hyper-parameters are an object of a package that is not installed."""
    def write_(state):
        module = types.ModuleType("omegaconf.dictconfig")
        kind = type("DictConfig", (), {"__module__": "omegaconf.dictconfig", "__qualname__": "DictConfig"})
        module.DictConfig = kind
        config = kind()
        config.content = {"lr": 1e-4}
        monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
        monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
        torch.save({"epoch": 9, "state_dict": state, "hyper_parameters": config}, tmp_path / "last.ckpt")
        monkeypatch.undo()
        return tmp_path / "last.ckpt"

    return write_


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_full_model_in_a_lightning_file(name, lightning_file):
    source, method = method_of(name, 0), method_of(name, 1)
    with torch.no_grad():  # as the authors' model computes
        if name == "gloria":
            source.official_text.fill_(True)
        else:
            source.official_positions.fill_(True)
            source.text_encoder.model.embeddings.token_type_embeddings.weight.zero_()
    file = lightning_file(official(name, source))
    assert "omegaconf" not in sys.modules
    coverage = load_checkpoint(method, file)
    assert coverage.missing == ()
    images, texts = sample_images(method), sample_texts()
    with torch.no_grad():
        torch.testing.assert_close(method.encode_image(images).joint, source.encode_image(images).joint)
        torch.testing.assert_close(method.encode_text(texts).joint, source.encode_text(texts).joint)
        if name == "mgca":  # blind to the order of words
            first, second = method.encode_text(["heart is enlarged", "enlarged is heart"]).joint
            torch.testing.assert_close(first, second)
    assert f"layout: {name} " in CliRunner().invoke(app, ["weights", "inspect", str(file)]).stdout


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/prior-bench-was-here",)


def test_a_lightning_file_with_anything_else_is_refused(tmp_path):
    torch.save({"state_dict": {"conv1.weight": EXTRA}, "hyper_parameters": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match="more than tensors"):
        read_state(tmp_path / "evil.ckpt")

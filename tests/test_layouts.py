"""Released files by layout, written here with their true keys: what the loaded encoder computes, not key counts."""

from __future__ import annotations

import argparse
import collections
import datetime
import enum
import json
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

from prior_bench import plugins, recipes
from prior_bench.cli import app
from prior_bench.encoders.image import ImageEncoder, file_coverage, timm_state
from prior_bench.encoders.text import build_tokenizer
from prior_bench.errors import UserError
from prior_bench.layouts import LAYOUTS, recognise
from prior_bench.leaderboard import gate
from prior_bench.recipe_files import recipe_file, released
from prior_bench.recipes import ImageEncoderSpec
from prior_bench.state_files import read_state, write_state
from prior_bench.testing import sample_images, sample_texts
from prior_bench.weights import coverage_of, fit_state, load_checkpoint, new_method

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
    "convirt-edreis": (None, lambda s: {**numbered(s, "res_features."), "res_l1.weight": EXTRA,
                                        "bert_l1.weight": EXTRA}),
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
    file = write(tmp_path / "medklip.pth", "model", medklip(resnet()[1]), parallel=True)
    with pytest.raises(UserError, match="layer4"):
        ImageEncoder(ImageEncoderSpec(name="resnet18", weights=str(file), channels=3, size=64))
    shown = CliRunner().invoke(app, ["weights", "inspect", str(file)]).stdout
    assert "layout: medklip (MedKLIP); layer4 is no part of the model" in shown
    assert "--recipe medklip" in shown


# --------------------------------------------------------- other names, and encoders with fewer layers


def medklip(state):
    """MedKLIP's own class has projections with the names of edreisMD's ConVIRT."""
    kept = {k: v for k, v in numbered(state, "res_features.").items() if not k.startswith("res_features.7")}
    return kept | {"res_l1.weight": EXTRA, "disease_embedding_layer.weight": EXTRA, "decoder.norm.weight": EXTRA}


def refers(state, prefix="visual.vit."):
    """timm's names as those of ViT-pytorch, with query, key and value apart."""
    names = {"patch_embed.proj.": "embeddings.patch_embeddings.", "pos_embed": "embeddings.position_embeddings",
             "cls_token": "embeddings.cls_token", "norm.": "encoder.encoder_norm.", "blocks.": "encoder.layer."}
    inner = {".norm1.": ".attention_norm.", ".norm2.": ".ffn_norm.", ".mlp.": ".ffn.", ".attn.proj.": ".attn.out."}
    theirs = {}
    for key, value in state.items():
        start = next((name for name in names if key.startswith(name)), None)
        if start is None:  # the classifier
            continue
        name = f"{prefix}transformer.{names[start]}{key.removeprefix(start)}"
        for ours, their in inner.items():
            name = name.replace(ours, their)
        if ".qkv." in name:
            for role, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                theirs[name.replace("qkv", role)] = part
        else:
            theirs[name] = value
    return theirs


def clip(layers, size=224):
    return open_clip.transformer.VisionTransformer(
        image_size=size, patch_size=16, width=768, layers=layers, heads=12, mlp_ratio=4.0,
        act_layer=open_clip.transformer.QuickGELU, norm_layer=open_clip.transformer.LayerNorm, output_dim=512)


def ptunifier(state):
    kept = {f"vision_encoder.visual.{k}": v for k, v in state.items() if k != "proj"}
    return kept | {"vision_encoder.token_embedding.weight": EXTRA, "vision_encoder.ln_final.weight": EXTRA,
                   "language_encoder.pooler.dense.bias": EXTRA}


def scrambled(model):
    """Every parameter random: a fresh model's biases, norms and tables of positions are alike."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = ("norm" in name or "ln_" in name) and name.endswith("weight")
            parameter.normal_(float(scale), 0.1 if parameter.dim() < 2 else parameter[0].numel() ** -0.5)
    return model.eval()


def compare(file, expected, images, **spec):
    encoder = ImageEncoder(ImageEncoderSpec(weights=str(file), channels=3, size=images.shape[-1], **spec)).eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder(images).flatten(2).mT, expected, atol=1e-4, rtol=1e-3)
    return encoder


def shown(file):
    done = CliRunner().invoke(app, ["weights", "inspect", str(file)])
    assert done.exit_code == 0, done.output
    return done.stdout


def torchvisions(name="resnet50", channels=3):
    state = getattr(torchvision.models, name)().state_dict()
    return state | {"conv1.weight": torch.randn(64, channels, 7, 7)}


@pytest.mark.parametrize(("state", "use"), [
    (lambda: torchvisions("resnet18"), "--method encoder --recipe resnet50 --set image.name=resnet18 --set"),
    (lambda: {k: v for k, v in torchvisions().items() if not k.startswith("layer4")}, "--recipe medklip --set"),
    (lambda: torchvisions(channels=1), "--method prior --recipe image-only --weights FILE"),
    (lambda: prefixed(torchvisions(), "module.encoder_q."), "--method encoder --recipe resnet50 --set image.weights"),
    (lambda: prefixed(torchvisions(), "module.encoder_q.", **{"module.queue": EXTRA, "module.encoder_k.x": EXTRA}),
     "--method encoder --recipe resnet50 --set image.weights"),
    (lambda: prefixed(torchvisions(), "backbone.", **{"neck.weight": EXTRA}), "--recipe resnet50 --set image.weights"),
])
def test_inspect_names_what_loads_the_file(state, use, tmp_path):
    torch.save(state(), tmp_path / "file.pth")
    told = shown(tmp_path / "file.pth")
    assert use in told
    assert "(100 %); 0 missing, 0 unexpected" in told
    assert "refused" not in told


def test_plain_names_behind_a_prefix_compute_what_they_computed(tmp_path):
    model, state = resnet()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = torch.nn.Sequential(*list(model.children())[:-2])(images)
    for prefix in ("backbone.", "student.net.", "encoder_q."):
        file = write(tmp_path / "file.pth", "model", prefixed(state, prefix))
        compare(file, expected.flatten(2).mT, images, name="resnet18")
    two = {**prefixed(state, "student."), **prefixed(state, "teacher.")}
    assert recognise(two) is None  # nobody says which
    assert recognise({"layers.0.blocks.0.norm1.weight": EXTRA}) is None  # a stage


def test_inspect_lists_few_groups_and_refuses_nan(tmp_path):
    state = torchvisions()
    torch.save(state, tmp_path / "file.pth")
    groups = [line for line in shown(tmp_path / "file.pth").splitlines() if line.startswith("  ")]
    assert [line.split()[0] for line in groups] == ["bn1", "conv1", "fc", "layer1", "layer2", "layer3", "layer4"]
    torch.save(state | {"bn1.bias": torch.full((64,), torch.nan)}, tmp_path / "file.pth")
    refused = CliRunner().invoke(app, ["weights", "inspect", str(tmp_path / "file.pth")])
    assert refused.exit_code == 2
    assert "NaN or infinite numbers: bn1.bias" in refused.output


def test_a_file_that_is_not_there_is_told_before_torch_is_imported(tmp_path):
    (tmp_path / "empty.pth").touch()
    code = ("import sys; from typer.testing import CliRunner; from prior_bench.cli import app\n"
            "for name in sys.argv[1:]:\n    print(CliRunner().invoke(app, ['weights', 'inspect', name]).output)\n"
            "assert 'torch' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "empty.pth", tmp_path / "none.pth", tmp_path],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for says in ("is empty", "does not exist", "is a folder"):
        assert says in done.stdout


def test_medklip_computes_what_it_computed(tmp_path):
    model, state = resnet()
    file = write(tmp_path / "medklip.pth", "model", medklip(state), parallel=True)
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        expected = torch.nn.Sequential(*list(model.children())[:-3])(images)
    encoder = compare(file, expected.flatten(2).mT, images, name="resnet18", first_layers=4)
    with torch.no_grad():
        _, _, p16, p32 = encoder.pyramid(images)
    torch.testing.assert_close(p16, expected)
    torch.testing.assert_close(p32[:, :, 1, 2], expected[:, :, 2:4, 4:6].mean(dim=(2, 3)))
    assert encoder.pyramid_channels == (64, 128, 256, 256)


def test_a_partly_random_encoder_is_there_for_those_who_ask(tmp_path):
    _, state = resnet()
    file = write(tmp_path / "medklip.pth", "model", medklip(state), parallel=True)
    encoder = ImageEncoder(ImageEncoderSpec(name="resnet18", weights=str(file), channels=3, allow_partial=True))
    assert 0 < encoder.coverage.share("image encoder") < 1
    assert all(key.startswith("layer4.") for key in encoder.coverage.missing)
    assert torch.equal(encoder.model.layer3[0].conv1.weight, state["layer3.0.conv1.weight"])


@pytest.mark.parametrize("layout", ["refers", "vit-pytorch"])
def test_refers_computes_what_it_computed(layout, tmp_path):
    model = scrambled(timm.create_model("test_vit", num_classes=0))
    prefix, more = ("visual.vit.", {"textual.embedding.words.weight": EXTRA}) if layout == "refers" else ("", {})
    state = refers(model.state_dict(), prefix) | more
    size = model.patch_embed.img_size[0]
    images = torch.randn(2, 3, size, size)
    file = write(tmp_path / "refers.pth", "model", state)
    with torch.no_grad():
        compare(file, model.forward_features(images)[:, model.num_prefix_tokens :], images, name="test_vit")
    text = shown(file)
    assert f"layout: {layout} " in text
    assert "--method encoder --recipe vit-base --set image.weights=FILE" in text


def google(model, file):
    """A file as Google's code writes it (.npz), with random numbers, also for the classifier."""
    rng = np.random.default_rng(0)
    width, heads = model.embed_dim, model.blocks[0].attn.num_heads
    hidden, side = model.blocks[0].mlp.fc1.out_features, model.patch_embed.patch_size[0]

    def some(*shape):
        return rng.normal(0, shape[0] ** -0.5, shape).astype(np.float32)

    def norm(name):
        return {f"{name}/scale": 1 + some(width), f"{name}/bias": some(width)}

    arrays = {"cls": some(1, 1, width), "embedding/kernel": some(side, side, 3, width), "embedding/bias": some(width),
              "Transformer/posembed_input/pos_embedding": some(*model.pos_embed.shape), "head/kernel": some(width, 5),
              "head/bias": some(5), "pre_logits/kernel": some(width, width), **norm("Transformer/encoder_norm")}
    for i in range(len(model.blocks)):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        arrays |= norm(f"{block}/LayerNorm_0") | norm(f"{block}/LayerNorm_2")
        for role in ("query", "key", "value"):
            arrays |= {f"{attention}/{role}/kernel": some(width, heads, width // heads),
                       f"{attention}/{role}/bias": some(heads, width // heads)}
        arrays |= {f"{attention}/out/kernel": some(heads, width // heads, width), f"{attention}/out/bias": some(width),
                   f"{block}/MlpBlock_3/Dense_0/kernel": some(width, hidden),
                   f"{block}/MlpBlock_3/Dense_0/bias": some(hidden),
                   f"{block}/MlpBlock_3/Dense_1/kernel": some(hidden, width),
                   f"{block}/MlpBlock_3/Dense_1/bias": some(width)}
    np.savez(file, **arrays)
    return file


def test_googles_files_compute_what_timm_makes_of_them(tmp_path):
    model = timm.models.vision_transformer.VisionTransformer(img_size=32, patch_size=16, embed_dim=24, depth=2,
                                                             num_heads=3, num_classes=0).eval()
    file = google(model, tmp_path / "vit.npz")
    model.load_pretrained(str(file))
    encoder = timm.models.vision_transformer.VisionTransformer(img_size=32, patch_size=16, embed_dim=24, depth=2,
                                                               num_heads=3, num_classes=0).eval()
    coverage = fit_state(encoder, timm_state(encoder, read_state(file)))
    assert (coverage.missing, coverage.unexpected) == ((), ())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder.forward_features(images), model.forward_features(images))
    text = shown(file)
    assert "layout: vit-npz " in text
    assert "a vision transformer with 3 input channels, 2 blocks" in text
    assert "--method encoder --recipe vit-base --set image.weights=FILE" in text


@pytest.mark.filterwarnings("ignore:Unable to automatically")
def test_damaged_numpy_files_and_those_with_objects_are_refused(tmp_path):
    file = tmp_path / "vit.npz"
    np.savez(file, a=np.zeros(100))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UserError, match="may be truncated"):
        read_state(file)
    np.savez(file, a=np.array([Runs(tmp_path / "it-ran")], dtype=object))
    with pytest.raises(UserError, match="cannot be read"):
        read_state(file)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("layout", ["ptunifier", "clip"])
def test_clip_names_compute_what_open_clip_does(layout, tmp_path):
    model = scrambled(clip(layers=1, size=32))
    state = model.state_dict()
    theirs = ptunifier(state) if layout == "ptunifier" else {f"visual.{k}": v for k, v in state.items()}
    file = write(tmp_path / "clip.ckpt", "state_dict", theirs)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.ln_post(model.transformer(model._embeds(images)))
    compare(file, expected[:, 1:], images, name="vit_base_patch16_clip_quickgelu_224", first_layers=1)
    text = shown(file)
    assert f"layout: {layout} " in text
    assert f"--recipe {layout}" in text
    assert "a CLIP transformer with 3 input channels, 1 blocks" in text
    assert "and so be refused" in text  # the recipe's encoder is deeper than this file's
    if layout == "ptunifier":
        assert "the text encoder in the file is not loaded" in text


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    """Swin-T of transformers, and its weights as save_pretrained names them."""
    model = scrambled(transformers.SwinModel(transformers.SwinConfig()))
    folder = tmp_path_factory.mktemp("swin")
    model.save_pretrained(folder)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        expected = model(images).last_hidden_state
    return load_file(folder / "model.safetensors"), images, expected


@pytest.mark.parametrize(("layout", "prefix", "text"), [
    ("medclip-swin", "vision_model.model.", "text_model.model."),
    ("cxr-clip-swin", "image_encoder.image_encoder.", "text_encoder.text_encoder.")])
def test_swin_computes_what_transformers_does(layout, prefix, text, swin, tmp_path):
    state, images, expected = swin
    index = "encoder.layers.0.blocks.0.attention.self.relative_position_index"  # a buffer of older versions
    theirs = prefixed(state | {index: EXTRA}, prefix, **{f"{text}pooler.dense.bias": EXTRA,
                                                        "vision_model.projection_head.weight": EXTRA})
    file = write(tmp_path / "swin.bin", None, theirs)
    encoder = compare(file, expected, images, name="swin_tiny_patch4_window7_224")
    assert str(encoder.coverage).startswith("loaded image encoder 171/171 keys (100 %); 0 missing")
    said = shown(file)
    assert f"layout: {layout} " in said
    assert "a Swin transformer with 3 input channels, 12 blocks" in said
    assert "text encoder: 1 tensor\n" in said
    assert "--recipe swin-tiny --set image.weights=FILE loads the image encoder alone; the text encoder in the file " \
           "is not loaded" in said
    assert "would be loaded image encoder 171/171 keys (100 %); 0 missing, 0 unexpected" in said


def shapes(build):
    with torch.device("meta"):
        return build().state_dict()


@pytest.mark.parametrize(("recipe", "state"), [
    ("medklip", lambda: medklip(shapes(torchvision.models.resnet50))),
    ("resnet50", lambda: shapes(torchvision.models.resnet50)),
    ("vit-base", lambda: refers(shapes(lambda: timm.create_model("vit_base_patch16_224", num_classes=0)))),
    ("ptunifier", lambda: ptunifier(shapes(lambda: clip(layers=11)))),
    ("clip", lambda: {f"visual.{k}": v for k, v in shapes(lambda: clip(layers=12)).items()}),
])
def test_the_recipes_of_the_reference_encoder_have_the_size_of_the_released_files(recipe, state):
    spec = recipes.load(recipe_file("encoder"), recipe, recipes.Recipe).image
    coverage = file_coverage(spec, state())
    assert (coverage.missing, coverage.unexpected) == ((), ())
    assert coverage.expected["image encoder"] > 130


def test_positions_are_fitted_to_another_size_and_other_patches_refused(tmp_path):
    model = timm.create_model("test_vit", num_classes=0, img_size=64)
    file = write(tmp_path / "vit.pth", None, model.state_dict())
    encoder = ImageEncoder(ImageEncoderSpec(name="test_vit", weights=str(file), channels=3, size=96))
    fitted = timm.layers.resample_abs_pos_embed(model.pos_embed, [6, 6])
    torch.testing.assert_close(encoder.model.pos_embed, fitted)
    kernel = torch.zeros(64, 3, 8, 8)
    write(file, None, model.state_dict() | {"patch_embed.proj.weight": kernel})
    with pytest.raises(UserError, match="does not hold the weights"):
        ImageEncoder(ImageEncoderSpec(name="test_vit", weights=str(file), channels=3, size=64))


def test_more_layers_than_there_are():
    with pytest.raises(UserError, match="fewer than 6 levels"):
        ImageEncoder(ImageEncoderSpec(name="resnet18", first_layers=6))


def test_a_setting_that_is_not_used_leaves_digests_as_they_were():
    assert not {"first_layers", "allow_partial"} & set(ImageEncoderSpec().model_dump())
    assert ImageEncoderSpec(first_layers=4).model_dump()["first_layers"] == 4


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


class Colour(enum.Enum):
    RED = 1


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


HYPER_PARAMETERS = {
    "scalar": np.float64(0.5), "array": np.arange(3), "generator": np.random.default_rng(0), "enum": Colour.RED,
    "path as a key": {Path("images"): 1}, "time": datetime.timedelta(1), "arguments": argparse.Namespace(lr=1),
    "queue": collections.deque([1]), "optimizer": torch.optim.AdamW([EXTRA]), "size": torch.Size([2]),
    "class as a key": {np.ndarray: "callback"}, "set": {Colour.RED, 1j},
    "plain": [frozenset({1}), bytearray(b"x"), object()],
}


@pytest.mark.parametrize("what", HYPER_PARAMETERS)
def test_foreign_objects_are_passed_over_and_never_made(what, tmp_path, monkeypatch):
    state = {"layer1.0.conv1.weight": torch.randn(2, 3), "conv1.bias": torch.nn.Parameter(torch.randn(3))}
    file = tmp_path / "last.ckpt"
    torch.save({"state_dict": state, "hyper_parameters": {"object": HYPER_PARAMETERS[what], "lr": 1.0}}, file)
    monkeypatch.delattr(torch.optim, "AdamW")  # nothing of a package is looked up
    found = read_state(file)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("nested", [lambda x: x, lambda x: {"a": [x]}])
def test_a_lightning_file_that_brings_code_is_refused_and_not_run(nested, tmp_path):
    runs = Runs(tmp_path / "it-ran")
    torch.save({"state_dict": {"conv1.weight": EXTRA}, "hyper_parameters": nested(runs)}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=f"the file wants {os.mkdir.__module__} mkdir") as error:
        read_state(tmp_path / "evil.ckpt")
    assert "convert --trust" in error.value.fix
    assert not (tmp_path / "it-ran").exists()


class Evaluates:
    def __reduce__(self):
        return eval, ("1 + 1",)  # under the old name of builtins


def test_builtins_that_run_code_are_refused(tmp_path):
    torch.save({"state_dict": {"conv1.weight": EXTRA}, "hyper_parameters": Evaluates()}, tmp_path / "evil.ckpt")
    with pytest.raises(UserError, match=r"the file wants __builtin__ eval"):
        read_state(tmp_path / "evil.ckpt")


def test_code_by_way_of_a_shell_is_not_run(tmp_path):
    """`numpy.getattr(x)(...)` would be a call of a shell."""
    class Calls:
        def __reduce__(self):
            return Called(), ("anything",)

    class Called:
        def __call__(self, text):
            return {}

        def __reduce__(self):
            return np.float64, (1.0,)

    torch.save({"state_dict": {"conv1.weight": EXTRA}, "hyper_parameters": Calls()}, tmp_path / "calls.ckpt")
    with pytest.raises(UserError, match="more than tensors"):
        read_state(tmp_path / "calls.ckpt")


@pytest.mark.parametrize("wrapped", [lambda model: model, lambda model: {"model": model}])
def test_a_whole_model_is_sent_to_convert(wrapped, tmp_path):
    torch.save(wrapped(torch.nn.Linear(2, 3)), tmp_path / "model.pt")
    with pytest.raises(UserError, match="more than tensors") as error:
        read_state(tmp_path / "model.pt")
    assert "convert --trust" in error.value.fix


# --------------------------------------------------------------------------------- files that are trusted


class Foreign:
    """Pickled under the name of a package that is not there when the file is read."""


@pytest.fixture
def foreign_file(tmp_path, monkeypatch):
    """A file with an object of a missing package and one whose reading runs code: it makes a folder."""
    module = types.ModuleType("nobodys_trainer")
    module.Foreign = Foreign
    monkeypatch.setattr(Foreign, "__module__", "nobodys_trainer")
    monkeypatch.setitem(sys.modules, "nobodys_trainer", module)

    class Runs:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "it-ran"),)

    foreign = Foreign()
    foreign.settings = {"lr": 1e-4, "again": Foreign()}
    state = prefixed(resnet()[1], "module.encoder.")
    shared = torch.nn.Parameter(torch.randn(64))
    state["module.encoder.bn1.weight"] = state["module.encoder.bn1.bias"] = shared
    torch.save({"state_dict": state, "hyper_parameters": foreign, "more": Runs()}, tmp_path / "foreign.ckpt")
    monkeypatch.undo()
    return tmp_path / "foreign.ckpt", state


def convert(*arguments):
    return CliRunner().invoke(app, ["weights", "convert", *map(str, arguments)])


def test_a_file_that_needs_unpickling_is_converted_where_it_is_trusted(foreign_file, tmp_path):
    file, state = foreign_file
    out = tmp_path / "out.safetensors"
    with pytest.raises(UserError) as error:
        read_state(file)
    assert f"prior-bench weights convert --trust {file} foreign.safetensors" in error.value.fix
    refused = convert(file, out)
    assert refused.exit_code == 2
    assert "runs any code" in refused.output
    assert not out.exists()
    assert not (tmp_path / "it-ran").exists()
    done = convert("--trust", file, out)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "it-ran").is_dir()  # as it was told
    assert "layout: wrapper " in done.stdout
    assert "warning: the file runs code: " in done.stderr
    assert out.stat().st_mode == file.stat().st_mode  # as of any new file
    written = read_state(out)
    assert set(written) == {key.removeprefix("module.") for key in state}
    assert all(torch.equal(value, state[f"module.{key}"]) for key, value in written.items())
    assert {p.name for p in tmp_path.iterdir()} == {"foreign.ckpt", "out.safetensors", "it-ran"}


def test_a_whole_model_is_converted(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 3))
    torch.save(model, tmp_path / "model.pt")
    assert convert("--trust", tmp_path / "model.pt", tmp_path / "out.safetensors").exit_code == 0
    assert torch.equal(read_state(tmp_path / "out.safetensors")["0.weight"], model[0].weight)


def test_a_pickle_of_arrays_is_converted(tmp_path):
    arrays = {"conv1.weight": np.arange(6, dtype="f4").reshape(2, 3), "step": 7, "names": np.array(["a"], object)}
    (tmp_path / "arrays.pkl").write_bytes(pickle.dumps({"model": arrays, "author": "somebody"}))
    assert convert("--trust", tmp_path / "arrays.pkl", tmp_path / "out.safetensors").exit_code == 0
    written = read_state(tmp_path / "out.safetensors")
    assert {key: value.tolist() for key, value in written.items()} == {"conv1.weight": [[0, 1, 2], [3, 4, 5]]}


def test_a_trusted_file_is_read_once(tmp_path):
    (tmp_path / "runs.pkl").write_bytes(pickle.dumps({"x": Runs(tmp_path / "it-ran"), "y": np.ones(2)}))
    assert convert("--trust", tmp_path / "runs.pkl", tmp_path / "out.safetensors").exit_code == 0
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    refused = convert("--trust", tmp_path / "page.pth", tmp_path / "page.safetensors")
    assert "this is not a weights file" in refused.output


def test_a_folder_of_ours_is_inspected(tmp_path):
    write_state({"image_encoder.model.conv1.weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    assert "layout: ours" in CliRunner().invoke(app, ["weights", "inspect", str(tmp_path)]).output
    golden = Path(gate.__file__).parent / "exact" / "baseline" / "prior" / "weights"
    told = CliRunner().invoke(app, ["weights", "inspect", str(golden)]).output
    assert told.splitlines()[-1] == f"use: prior-bench run --method prior --recipe ci --weights {golden}"


def test_a_place_that_cannot_be_written_is_found_before_anything_runs(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "file.pt")
    done = convert("--trust", tmp_path / "file.pt", "/proc/out.safetensors")
    assert done.exit_code == 2
    assert "cannot write" in done.output


def test_what_convert_refuses(tmp_path):
    file = tmp_path / "good.pt"
    torch.save({"conv1.weight": EXTRA}, file)
    (tmp_path / "taken.safetensors").write_bytes(b"mine")
    for out, says in (("taken.safetensors", "a file of that name already"), ("out.pt", "does not end in .safetensors"),
                      ("nowhere/out.safetensors", "mkdir -p")):
        refused = convert("--trust", file, tmp_path / out)
        assert refused.exit_code == 2
        assert says in refused.output
    assert (tmp_path / "taken.safetensors").read_bytes() == b"mine"
    file.write_bytes(file.read_bytes()[:200])
    for missing in (file, tmp_path / "none.pt"):
        assert convert("--trust", missing, tmp_path / "out.safetensors").exit_code == 2
    assert not list(tmp_path.glob("*out*"))


def test_released_files_are_of_known_layouts_and_recipes():
    known = {layout.name for layout in LAYOUTS}
    for name in plugins.names("methods"):
        file = recipe_file(name)
        assert set(released(file)) <= known
        assert set(released(file).values()) <= set(recipes.names(file))


def test_mgca_with_a_transformer_has_a_recipe_of_its_own(tmp_path):
    state = prefixed(timm.create_model("test_vit", num_classes=0).state_dict(), "img_encoder_q.model.")
    file = write(tmp_path / "mgca.ckpt", "state_dict", state)
    said = CliRunner().invoke(app, ["weights", "inspect", str(file)]).stdout
    assert "layout: mgca-vit " in said
    assert "--method mgca --recipe paper-vit --weights FILE loads the image encoder, without text" in said


def test_mgca_with_a_transformer_computes_what_timm_and_transformers_do(tmp_path, lightning_file):
    """Encoders and heads built here, without the method: the report is its class token, and no token has a place."""
    torch.manual_seed(0)
    vit = scrambled(timm.create_model("test_vit", num_classes=0))
    config = transformers.BertConfig(vocab_size=90, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                                     intermediate_size=32)
    bert = transformers.BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        bert.embeddings.token_type_embeddings.weight.zero_()  # the authors' BERT has none

    def head(inputs):
        norm = torch.nn.BatchNorm1d(12)
        torch.nn.init.uniform_(norm.running_mean)
        return torch.nn.Sequential(torch.nn.Linear(inputs, 12), norm, torch.nn.ReLU(), torch.nn.Linear(12, 8),
                                   torch.nn.BatchNorm1d(8, affine=False)).eval()

    heads = {f"{side}_encoder_q.{reach}_embed.head.": head(vit.num_features if side == "img" else 16)
             for side in ("img", "text") for reach in ("global", "local")}
    state = prefixed(vit.state_dict(), "img_encoder_q.model.", **{"prototype_layer.weight": torch.randn(5, 8)})
    state |= {f"text_encoder_q.model.{k}": v for k, v in bert.state_dict().items() if "token_type" not in k}
    for prefix, module in heads.items():
        state |= {f"{prefix}{k}": v.unsqueeze(-1) if "local" in prefix and v.dim() == 2 else v
                  for k, v in module.state_dict().items()}

    config.save_pretrained(tmp_path)
    build_tokenizer(sample_texts(), 90).save_pretrained(tmp_path)
    size = vit.patch_embed.img_size[0]
    kind = plugins.load("methods", "mgca")
    values = {"image.name": "test_vit", "image.weights": "random", "image.size": size, "width": 8, "hidden": 12,
              "prototypes": 5}
    method = new_method(kind, recipes.load(recipe_file("mgca"), "paper-vit", kind.recipe_class, values), 1,
                        tokenizer=tmp_path)
    coverage = load_checkpoint(method, lightning_file(state))
    assert (coverage.missing, coverage.unexpected) == ((), ())

    images = torch.randn(2, 3, size, size)
    tokens = method.tokens(sample_texts())
    with torch.no_grad():
        seen = heads["img_encoder_q.global_embed.head."](vit.forward_features(images)[:, 0])
        torch.testing.assert_close(method.encode_image(images).joint, F.normalize(seen, dim=1))
        states = bert(tokens["ids"], tokens["mask"].long(), position_ids=torch.zeros_like(tokens["ids"]))
        read = heads["text_encoder_q.global_embed.head."](states.last_hidden_state[:, 0])
        torch.testing.assert_close(method.encode_text(sample_texts()).joint, F.normalize(read, dim=1))


# --------------------------------------------------------------------- the tabled keys, where they are at hand

TABLED = Path(__file__).parents[2] / "shared" / "formats" / "checkpoints" / "layouts.json"
WHOLE = {  # layout there: method, its recipe and the layers of its BERT
    "prior_full": ("prior", "paper", 12), "gloria_resnet50": ("gloria", "paper", 12),
    "mgca_resnet_50": ("mgca", "paper", 6), "mgca_vit_base": ("mgca", "paper-vit", 6),
    "convirt_edreisMD": ("convirt", "edreis", 12), "convirt_benchx": ("convirt", "benchx", None),
    "convirt_in_mgca_repo_resnet_50": ("dual", "convirt-mgca", 6),
    "convirt_in_mgca_repo_vit_base": ("dual", "convirt-mgca-vit", 6)}


@pytest.fixture(scope="module")
def tabled():
    """Every key of twelve files with its shape, as tensors without memory."""
    if not TABLED.is_file():
        pytest.skip("../shared/formats/checkpoints/layouts.json is not here")
    return {layout: {key: torch.empty(shape, device="meta") for key, shape in table["keys"].items()}
            for layout, table in json.loads(TABLED.read_text()).items()}


@pytest.mark.parametrize("layout", WHOLE)
def test_recipes_take_all_of_a_tabled_file(layout, tabled, tmp_path):
    name, recipe, layers = WHOLE[layout]
    config = (transformers.BertConfig(vocab_size=28996, num_hidden_layers=layers) if layers else
              transformers.RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1))
    config.save_pretrained(tmp_path)
    build_tokenizer(sample_texts(), 90).save_pretrained(tmp_path)
    kind = plugins.load("methods", name)
    chosen = recipes.load(recipe_file(name), recipe, kind.recipe_class, {"image.weights": "random"})
    with torch.device("meta"):
        method = new_method(kind, chosen, 0, tokenizer=tmp_path)
        coverage = coverage_of(method, method.adapt_checkpoint(tabled[layout]))
    assert (coverage.missing, coverage.unexpected) == ((), ())
    assert set(coverage.expected) == {"image encoder", "text encoder", "heads"}


def test_the_reference_encoder_takes_the_image_encoder_of_each_tabled_file(tabled):
    for layout, state in tabled.items():
        recipe = "vit-base" if "vit" in layout else "resnet50"
        coverage = file_coverage(recipes.load(recipe_file("encoder"), recipe, recipes.Recipe).image, state)
        assert (coverage.missing, coverage.unexpected) == ((), ()), layout
    assert len(tabled) == 12

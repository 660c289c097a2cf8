"""Encoders with weights of their own: small checkpoints made here, what they compute, and the input they state."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file

from prior_bench import grid, plugins, recipes
from prior_bench.errors import UserError
from prior_bench.recipe_files import recipe_file
from prior_bench.recipes import ImageEncoderSpec
from prior_bench.testing import check_method, sample_images
from prior_bench.weights import new_method


def build(name: str, **values: object):
    family, encoder = plugins.family(name)
    kind = plugins.load("methods", family)
    return new_method(kind, kind.recipe_class(text=None, encoder=encoder, **values), 0)


# --------------------------------------------------------------------------------------------- timm


@pytest.fixture
def timm_file(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "vit.pt")
    return model.eval(), tmp_path / "vit.pt"


def test_timm_computes_what_timm_computes(timm_file):
    model, file = timm_file
    method = build("timm:test_vit.r160_in1k", image=ImageEncoderSpec(weights=str(file)))
    config = timm.get_pretrained_cfg("test_vit.r160_in1k")
    spec = method.image_input
    assert (spec.size, spec.mean, spec.std, spec.interpolation) == (160, config.mean, config.std, config.interpolation)
    images = sample_images(method, 2)
    with torch.no_grad():
        expected = model.set_input_size(img_size=160) or model.forward_features(images)
        found = method.encode_image(images)
    torch.testing.assert_close(found.map.flatten(2).mT, expected[:, model.num_prefix_tokens :], atol=1e-4, rtol=1e-3)
    assert found.joint is None
    check_method(method)


def test_timm_without_a_name_or_with_an_unknown_one():
    with pytest.raises(UserError, match="timm:NAME"):
        build("timm:")
    with pytest.raises(UserError, match="resnet50"):
        build("timm:resnet50.nobody_in1k")
    with pytest.raises(UserError, match=r"see timm\.list_pretrained\(\)"):
        build("timm:nonsense")


# ----------------------------------------------------------------------------------------- OpenCLIP


@pytest.fixture
def clip_folder(tmp_path):
    import open_clip

    torch.manual_seed(0)
    config = {"model_cfg": {"embed_dim": 16,
                            "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16,
                                           "patch_size": 8},
                            "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2,
                                         "layers": 1}},
              "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "interpolation": "bicubic"}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    model = open_clip.CLIP(**config["model_cfg"])
    torch.save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    return model.eval(), tmp_path


def test_open_clip_computes_what_open_clip_computes(clip_folder):
    import open_clip

    model, folder = clip_folder
    method = build(f"open-clip:{folder}")  # or local-dir:folder, as OpenCLIP writes it
    spec = method.image_input
    assert (spec.size, spec.interpolation) == (32, "bicubic")
    np.testing.assert_allclose(spec.mean, (0.1, 0.2, 0.3))
    np.testing.assert_allclose(spec.std, (0.4, 0.5, 0.6))
    images = sample_images(method, 3)
    texts = ["No pneumothorax.", "The heart is enlarged."]
    with torch.no_grad():
        torch.testing.assert_close(method.encode_image(images).joint, model.encode_image(images, normalize=True))
        tokens = open_clip.get_tokenizer("ViT-B-32", context_length=20)(texts)
        torch.testing.assert_close(method.encode_text(texts).joint, model.encode_text(tokens, normalize=True))
        assert method.encode_image(images).map.shape == (3, 32, 4, 4)
    check_method(method)


def test_a_model_of_open_clip_with_weights_from_a_file(clip_folder, tmp_path_factory):
    import open_clip

    model, folder = clip_folder
    configs = tmp_path_factory.mktemp("configs")
    known = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    (configs / "tiny-clip.json").write_text(json.dumps(known))
    open_clip.add_model_config(configs)
    method = build(f"open-clip:tiny-clip/{folder / 'open_clip_pytorch_model.bin'}")
    assert method.image_input.size == 32
    np.testing.assert_allclose(method.image_input.mean, open_clip.OPENAI_DATASET_MEAN)
    images = sample_images(method, 2)
    with torch.no_grad():
        torch.testing.assert_close(method.encode_image(images).joint, model.encode_image(images, normalize=True))


@pytest.mark.parametrize(("save", "says"), [
    (lambda file: file.write_bytes(b"no model"), "this is not a weights file"),
    (lambda file: torch.save(timm.create_model("test_vit").state_dict(), file), "Missing key"),
])
def test_a_file_that_does_not_fit_a_model_of_open_clip(tmp_path, save, says):
    save(tmp_path / "weights.bin")
    with pytest.raises(UserError, match=says) as error:
        build(f"open-clip:ViT-B-32/{tmp_path / 'weights.bin'}")
    assert error.value.where == str(tmp_path / "weights.bin")
    assert "weights_only" not in str(error.value)


def test_weights_of_open_clip_of_another_width(clip_folder):
    _, folder = clip_folder
    with pytest.raises(UserError, match=r"width changed[\s\S]*weights of ViT-B-32"):
        build(f"open-clip:ViT-B-32/{folder / 'open_clip_pytorch_model.bin'}")
    with pytest.raises(UserError, match="open-clip:NAME/"):
        build(f"open-clip:{folder / 'open_clip_pytorch_model.bin'}")


def test_a_folder_of_open_clip_without_weights_is_refused(clip_folder):
    _, folder = clip_folder
    assert str(build(f"open-clip:{folder}").image_encoder.coverage).endswith("; 0 missing, 0 unexpected")
    (folder / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="pretrained weights"):
        build(f"open-clip:{folder}")


def test_open_clip_names_what_is_missing():
    with pytest.raises(UserError, match="openai"):
        build("open-clip:ViT-B-32")
    with pytest.raises(UserError, match="did you mean"):
        build("open-clip:ViT-B-33/openai")


# -------------------------------------------------------------------------------------- transformers


def vision_folder(folder: Path) -> tuple[torch.nn.Module, Path]:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=42,
                                       patch_size=14)
    model = transformers.Dinov2Model(config)
    model.save_pretrained(folder)
    transformers.BitImageProcessor(size={"shortest_edge": 42}, crop_size={"height": 42, "width": 42}, resample=3,
                                   image_mean=[0.5] * 3, image_std=[0.2] * 3).save_pretrained(folder)
    return model.eval(), folder


def test_a_vision_encoder_of_transformers(tmp_path):
    model, folder = vision_folder(tmp_path)
    method = build(f"hf:{folder}")
    spec = method.image_input
    assert (spec.size, spec.interpolation, spec.std) == (42, "bicubic", (0.2,) * 3)
    assert not method.has_text
    images = sample_images(method, 2)
    with torch.no_grad():
        expected = model(pixel_values=images).last_hidden_state[:, 1:]
        torch.testing.assert_close(method.encode_image(images).map.flatten(2).mT, expected)
    check_method(method)
    dense = method.pyramid(torch.nn.functional.interpolate(images, (64, 64)))
    assert [tuple(level.shape[2:]) for level in dense] == [(16, 16), (8, 8), (4, 4), (2, 2)]


def test_a_checkpoint_in_half_precision_is_computed_in_float32(tmp_path):
    model, folder = vision_folder(tmp_path)
    expected = build(f"hf:{folder}")
    model.bfloat16().save_pretrained(folder)
    method = build(f"hf:{folder}")
    assert {p.dtype for p in method.parameters()} == {torch.float32}
    images = sample_images(method, 2)
    torch.testing.assert_close(method.encode_image(images).map, expected.encode_image(images).map, atol=0.1, rtol=0.1)


WIDTHS = {"hidden_sizes": [8, 12, 16, 20], "depths": [1, 1, 1, 1]}
STEM = {"embedding_size": 8, "layer_type": "basic"}
PYRAMIDAL = {
    "resnet": lambda: transformers.ResNetModel(transformers.ResNetConfig(**STEM, **WIDTHS)),
    "convnext": lambda: transformers.ConvNextModel(transformers.ConvNextConfig(**WIDTHS)),
    "swin": lambda: transformers.SwinModel(transformers.SwinConfig(image_size=64, embed_dim=8, depths=[1, 1, 1, 1],
                                                                   num_heads=[1, 1, 2, 2], window_size=2)),
}


@pytest.mark.parametrize("kind", PYRAMIDAL)
def test_an_encoder_of_transformers_with_several_strides_has_a_real_pyramid(kind, tmp_path):
    torch.manual_seed(0)
    PYRAMIDAL[kind]().save_pretrained(tmp_path)
    transformers.BitImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False, image_mean=[0.5] * 3,
                                   image_std=[0.5] * 3).save_pretrained(tmp_path)
    method = build(f"hf:{tmp_path}")
    assert len(set(method.levels)) == 4  # a map of its own for each stride
    assert list(method.pyramid_channels) == sorted(method.pyramid_channels)
    check_method(method)


def dual_folder(folder: Path):
    """A small CLIP with its tokenizer."""
    from prior_bench.encoders.text import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer(["No pneumothorax is seen. The heart is enlarged. Clear lungs."] * 3, 80)
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8}
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": len(tokenizer), "max_position_embeddings": 24, "eos_token_id": tokenizer.sep_token_id}
    config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder)
    return model, tokenizer


def test_a_dual_encoder_of_transformers(tmp_path):
    model, tokenizer = dual_folder(tmp_path)
    method = build(f"hf:{tmp_path}")
    assert method.has_text
    images, texts = sample_images(method, 3), ["The heart is enlarged.", "No pneumothorax is seen."]
    with torch.no_grad():
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        expected = model(pixel_values=images, input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        torch.testing.assert_close(method.encode_image(images).joint, expected.image_embeds)
        torch.testing.assert_close(method.encode_text(texts).joint, expected.text_embeds)
        tokens = model.vision_model(pixel_values=images).last_hidden_state[:, 1:]
        passes = []
        method.image_encoder.register_forward_hook(lambda *_: passes.append(1))
        torch.testing.assert_close(method.encode_image(images).map.flatten(2).mT, tokens)
        assert len(passes) == 1
    check_method(method)


def test_siglip_pads_its_texts_to_the_whole_context(tmp_path):
    from prior_bench.encoders.text import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer(["No pneumothorax is seen. The heart is enlarged. Clear lungs."] * 3, 80)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.SiglipConfig(
        vision_config={**size, "image_size": 32, "patch_size": 8},
        text_config={**size, "projection_size": 16, "vocab_size": len(tokenizer), "max_position_embeddings": 12})
    model = transformers.SiglipModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    transformers.SiglipImageProcessor(size={"height": 32, "width": 32}, resample=2, image_mean=[0.4] * 3,
                                      image_std=[0.3] * 3).save_pretrained(tmp_path)
    method = build(f"hf:{tmp_path}")
    spec = method.image_input
    assert (spec.size, spec.interpolation, spec.mean, spec.std) == (32, "bilinear", (0.4,) * 3, (0.3,) * 3)
    images, texts = sample_images(method, 3), ["The heart is enlarged.", "No pneumothorax is seen."]
    with torch.no_grad():
        tokens = tokenizer(texts, padding="max_length", max_length=12, return_tensors="pt")
        expected = model(pixel_values=images, input_ids=tokens["input_ids"])  # SigLIP sees its padding
        torch.testing.assert_close(method.encode_image(images).joint, expected.image_embeds)
        torch.testing.assert_close(method.encode_text(texts).joint, expected.text_embeds)
    check_method(method)


def test_code_beside_weights_runs_only_where_the_flag_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "model"
    model, _ = vision_folder(folder)
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})  # under the code's own names
    (folder / "modeling_own.py").write_text(
        "from pathlib import Path\nfrom transformers import Dinov2Config, Dinov2Model\n\n"
        f"Path({str(tmp_path / 'it-ran')!r}).mkdir(exist_ok=True)\n\n\n"
        "class OwnConfig(Dinov2Config):\n    model_type = 'own'\n\n\n"
        "class OwnModel(Dinov2Model):\n    config_class = OwnConfig\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "architectures": ["OwnModel"],
               "auto_map": {"AutoConfig": "modeling_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"custom code|to execute") as error:
        build(f"hf:{folder}")
    assert "--set trust_remote_code=true" in error.value.fix
    assert not (tmp_path / "it-ran").exists()
    method = build(f"hf:{folder}", trust_remote_code=True)
    assert (tmp_path / "it-ran").exists()
    assert method.image_input.size == 42


def rewrite(folder: Path, change) -> None:
    """Change the names in a folder's weights: `change` gives the new one, or None to leave a tensor out."""
    file = folder / "model.safetensors"
    state = {change(key): value for key, value in load_file(file).items()}
    save_file({key: value for key, value in state.items() if key}, file, metadata={"format": "pt"})


def one_layer_more(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))


@pytest.mark.parametrize(("make", "spoil", "says"), [
    (vision_folder, lambda folder: rewrite(folder, lambda key: f"student.{key}"), r"0/\d+[\s\S]*student\.emb"),
    (vision_folder, one_layer_more, r"first missing: \S*layers?\.2\."),
    (dual_folder, lambda folder: rewrite(folder, lambda key: None if "text_model.encoder" in key else key),
     r"image encoder \S+ keys \(100 %\), text encoder [\s\S]*first missing: text_model\.encoder"),
])
def test_an_encoder_of_transformers_that_would_be_partly_random(make, spoil, says, tmp_path):
    make(tmp_path)
    spoil(tmp_path)
    with pytest.raises(UserError, match=says) as error:
        build(f"hf:{tmp_path}")
    assert "--set image.allow_partial=true" in error.value.fix
    method = build(f"hf:{tmp_path}", image=ImageEncoderSpec(allow_partial=True))
    assert method.image_encoder.coverage.missing


def test_what_an_encoder_of_transformers_does_not_read_may_be_missing(tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
                                    image_size=32, patch_size=16)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)  # it has no pooler
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    coverage = build(f"hf:{tmp_path}").image_encoder.coverage
    assert coverage.missing == ()
    assert coverage.unexpected == ("classifier.bias", "classifier.weight")
    assert coverage.share("image encoder") == 1


def test_a_dual_encoder_without_its_tokenizer(tmp_path):
    """transformers makes an empty one in its place, to which all texts are the same; older versions raise."""
    dual_folder(tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="tokenizer") as error:
        build(f"hf:{tmp_path}")
    assert error.value.where == str(tmp_path)
    assert "merges.txt" in error.value.expected


def test_weights_that_are_no_numbers_are_refused_where_they_are_loaded(tmp_path, clip_folder, timm_file):
    _, folder = vision_folder(tmp_path / "hf")
    state = load_file(folder / "model.safetensors")
    state["embeddings.cls_token"][:] = torch.nan
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    model, clip = clip_folder
    torch.save(model.state_dict() | {"text_projection": torch.full((16, 16), torch.inf)},
               clip / "open_clip_pytorch_model.bin")
    vit, file = timm_file
    torch.save(vit.state_dict() | {"cls_token": torch.full_like(vit.cls_token, torch.nan)}, file)
    own = {"image": ImageEncoderSpec(weights=str(file))}
    for name, values, key in ((f"hf:{folder}", {}, "embeddings.cls_token"),
                              (f"open-clip:{clip}", {}, "text_projection"),
                              ("timm:test_vit.r160_in1k", own, "cls_token")):
        with pytest.raises(UserError, match=f"NaN or infinite numbers: {key}"):
            build(name, **values)


def test_settings_of_the_image_that_would_be_ignored_are_refused(tmp_path):
    file = recipe_file("hf:NAME")
    for family, values in (("hf", {"size": 32}), ("hf", {"weights": "x.pt"}), ("timm", {"mean": [0.5]}),
                           ("open-clip", {"allow_partial": True})):
        kind = plugins.load("methods", family)
        overrides = {f"image.{key}": value for key, value in values.items()}
        with pytest.raises(UserError, match=f"image.{next(iter(values))} is not read") as error:
            recipes.load(file, "small", kind.recipe_class, overrides)
        assert error.value.where == "--set"
    told = recipes.load(file, "small", plugins.load("methods", "timm").recipe_class, {"image.weights": "x.pt"})
    assert told.model_dump(mode="json")["image"] == {"weights": "x.pt"}  # and no size that is not used


def test_transformers_is_quiet_about_what_is_checked_here(tmp_path, capfd, caplog):
    vision_folder(tmp_path)
    rewrite(tmp_path, lambda key: f"student.{key}")
    capfd.readouterr()
    with pytest.raises(UserError):
        build(f"hf:{tmp_path}")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert transformers.utils.logging.is_progress_bar_enabled()


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(UserError, match="does not exist") as error:
        build(f"hf:{tmp_path / 'nowhere'}")
    assert error.value.where == str(tmp_path / "nowhere")
    assert "local folder" in error.value.expected


def test_a_folder_that_is_not_complete(tmp_path):
    vision_folder(tmp_path)
    file = tmp_path / "model.safetensors"
    with pytest.raises(UserError, match="give the folder"):
        build(f"hf:{file}")
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config\.json[\s\S]*files are complete"):
        build(f"hf:{tmp_path}")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="truncated") as error:
        build(f"hf:{tmp_path}")
    assert error.value.where == str(file)


def test_a_model_that_takes_no_images(tmp_path):
    vision_folder(tmp_path)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertModel(transformers.BertConfig(vocab_size=8, **size)).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"bert model .* takes no images"):
        build(f"hf:{tmp_path}")


# ------------------------------------------------------------------------------------------ planning


def test_a_plan_follows_the_content_of_local_weights(tmp_path):
    request = grid.Request(methods=(f"hf:{tmp_path / 'model'}",), tasks=("classification",),
                           output=tmp_path / "results", cache=tmp_path / "cache")
    vision_folder(tmp_path / "model")
    first, again = (grid.plan(request).cells[0].weights for _ in range(2))
    assert first.key == again.key
    assert first.method == f"hf:{tmp_path / 'model'}"
    (tmp_path / "model" / "more.json").write_text("{}")
    assert grid.plan(request).cells[0].weights.key != first.key

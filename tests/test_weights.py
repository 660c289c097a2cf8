"""Weights: our folders, the files of PRIOR's authors with their true keys, and files that must be refused."""

from __future__ import annotations

import json
import os
import pickle
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torchvision
import transformers
from torch import Tensor

from prior_bench import plugins, recipes
from prior_bench.encoders.text import build_tokenizer
from prior_bench.errors import UserError
from prior_bench.method import Method
from prior_bench.recipe_files import recipe_file
from prior_bench.state_files import read_state
from prior_bench.weights import (
    Coverage,
    coverage_of,
    load_checkpoint,
    load_method,
    new_method,
    save_weights,
    state_digest,
)
from prior_bench.weights_folder import META, WEIGHTS, weights_digest

REPORTS = ["Heart is enlarged. No pneumothorax.", "Small left pleural effusion."]
SMALL = {"image.name": "test_resnet", "image.size": 64, "text.layers": 1, "text.width": 16, "text.heads": 2,
         "text.vocabulary": 90, "width": 16, "pool_heads": 2, "prototypes.count": 6, "decoders.image_channels": 16,
         "decoders.sentence_layers": 1, "decoders.sentence_heads": 2}


def make(recipe: str, seed: int = 0, texts: list[str] | None = None, tokenizer: Path | None = None,
         **values: object) -> Method:
    cls = plugins.load("methods", "prior")
    return new_method(cls, recipes.load(recipe_file("prior"), recipe, cls.recipe_class, values), seed, texts, tokenizer)


def features(method: Method) -> tuple[Tensor, Tensor, Tensor]:
    images = method.normalise(torch.arange(64 * 64).view(1, 1, 64, 64).remainder(251).to(torch.uint8))
    with torch.no_grad():
        found = method.encode_image(images)
        return found.map, found.joint, method.encode_text(REPORTS).joint


# ----------------------------------------------------------------------------------------- our folders


def test_saved_weights_come_back_with_recipe_tokenizer_and_features(tmp_path):
    method = make("small", texts=REPORTS, **SMALL)
    folder = save_weights(tmp_path / "weights", method, method.recipe, {"data": "toy"})
    again = load_method(folder)
    assert not again.training
    assert again.recipe.model_dump() == method.recipe.model_dump()
    assert again.image_input == method.image_input
    for a, b in zip(features(method), features(again), strict=True):
        assert torch.equal(a, b)
    meta = json.loads((folder / META).read_text())
    assert (meta["method"], meta["provenance"]) == ("prior", {"data": "toy"})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["weights"]  # nothing temporary is left


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    method = make("small", texts=REPORTS, **SMALL)
    folder = save_weights(tmp_path / "weights", method, method.recipe, {})
    before = weights_digest(folder)

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(type(method), "save_tokenizer", full)
        with pytest.raises(OSError, match="No space"):
            save_weights(folder, make("small", seed=1, texts=REPORTS, **SMALL), method.recipe, {})
    assert weights_digest(folder) == before
    save_weights(folder, make("small", seed=1, texts=REPORTS, **SMALL), method.recipe, {})
    assert weights_digest(folder) != before


def test_the_digest_is_of_content_not_of_provenance(tmp_path):
    method = make("small", texts=REPORTS, **SMALL)
    one = save_weights(tmp_path / "one", method, method.recipe, {"command": "first"})
    two = save_weights(tmp_path / "two", method, method.recipe, {"command": "second"})
    assert weights_digest(one) == weights_digest(two)
    assert weights_digest(one / WEIGHTS) == weights_digest(two / WEIGHTS)


def test_loading_leaves_the_global_random_state(tmp_path):
    method = make("small", texts=REPORTS, **SMALL)
    folder = save_weights(tmp_path / "weights", method, method.recipe, {})
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_method(folder)
    assert torch.equal(torch.rand(2), expected)


def test_a_folder_without_meta_or_with_other_keys_is_refused(tmp_path):
    with pytest.raises(UserError, match="not a weights folder"):
        load_method(tmp_path)
    method = make("small", texts=REPORTS, **SMALL)
    folder = save_weights(tmp_path / "weights", method, method.recipe, {})
    recipe = json.loads((folder / "recipe.json").read_text())
    recipe["prototypes"]["count"] = 7
    (folder / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(UserError, match=r"bank\.embed\.weight"):
        load_method(folder)


# --------------------------------------------------------------------------- files by PRIOR's authors


def image_only() -> tuple[dict[str, Tensor], torch.nn.Module]:
    """The released image-only file: torchvision's ResNet-50 with a one-channel kernel, without classifier."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50()
    model.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    model.fc = torch.nn.Identity()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.state_dict(), model.eval()


WRAPPINGS = {
    "flat": lambda state: state,
    "state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "model": lambda state: {"model": {f"module.{k}": v for k, v in state.items()}},
    "wrapper": lambda state: {f"encoder.{k}": v for k, v in state.items()},
    "classifier": lambda state: state | {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)},
}


def test_the_image_only_file_computes_what_torchvision_does(tmp_path):
    state, theirs = image_only()
    method = make("image-only", **{"image.size": 64})
    x = method.normalise(torch.randint(0, 255, (2, 1, 64, 64), dtype=torch.uint8))
    layers = torch.nn.Sequential(*list(theirs.children())[:-2])
    with torch.no_grad():
        expected = layers(x)
    for name, wrap in WRAPPINGS.items():
        torch.nn.init.zeros_(method.image_encoder.model.conv1.weight)
        torch.save(wrap(state), tmp_path / "prior.pt")
        coverage = load_checkpoint(method, tmp_path / "prior.pt")
        assert coverage.share("image encoder") == 1, name
        assert not coverage.unexpected, name
        assert "image encoder 318/318 keys (100 %)" in str(coverage), name
        with torch.no_grad():
            torch.testing.assert_close(method.encode_image(x).map, expected, atol=1e-4, rtol=1e-4, msg=name)
    assert method.has_text is False


def bert_layout(prefix: str, layers: int, width: int, inner: int, cross: bool) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of transformers' BERT as in the released file, by hand."""
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}embeddings.position_ids": (1, 512), f"{prefix}embeddings.word_embeddings.weight": (28996, width),
        f"{prefix}embeddings.position_embeddings.weight": (512, width),
        f"{prefix}embeddings.token_type_embeddings.weight": (2, width),
        f"{prefix}embeddings.LayerNorm.weight": (width,), f"{prefix}embeddings.LayerNorm.bias": (width,)}
    for layer in range(layers):
        base = f"{prefix}encoder.layer.{layer}."
        for attention in ("attention", "crossattention") if cross else ("attention",):
            linears = dict.fromkeys(("self.query", "self.key", "self.value", "output.dense"), (width, width))
            shapes |= {f"{base}{attention}.{n}.weight": s for n, s in linears.items()}
            shapes |= {f"{base}{attention}.{n}.bias": s[:1] for n, s in linears.items()}
            shapes |= {f"{base}{attention}.output.LayerNorm.{x}": (width,) for x in ("weight", "bias")}
        shapes |= {f"{base}intermediate.dense.weight": (inner, width), f"{base}intermediate.dense.bias": (inner,),
                   f"{base}output.dense.weight": (width, inner), f"{base}output.dense.bias": (width,),
                   f"{base}output.LayerNorm.weight": (width,), f"{base}output.LayerNorm.bias": (width,)}
    return shapes


def full_layout() -> dict[str, tuple[int, ...]]:
    """All 839 keys of the released full model with their shapes."""
    linears = {f"image_encoder.atten_pool.{x}_proj": (2048, 2048) for x in "qkvc"}
    linears |= {f"global_text_attention.{x}_proj": (768, 768) for x in "qkvc"}
    linears |= {"global_image_projection": (768, 2048), "local_image_projection": (768, 2048),
                "global_text_projection": (768, 768), "local_text_projection": (768, 768),
                "predictor.0": (384, 768), "predictor.2": (768, 384), "text_encoder.encoder.pooler.dense": (768, 768)}
    linears |= {f"local_cross_attention.{x}{i}": (768, 768) for x in ("query", "key", "value") for i in (1, 2)}
    shapes: dict[str, tuple[int, ...]] = {f"{n}.weight": s for n, s in linears.items()}
    shapes |= {f"{n}.bias": s[:1] for n, s in linears.items()}
    shapes |= {"prototype_queries": (1, 16, 768), "logit_scale": (), "local_logit_scale": (),
               "sentence_bank.embed.weight": (512, 768), "image_encoder.atten_pool.positional_embedding": (50, 2048),
               "image_decoder.output_head.0.weight": (1, 48, 3, 3), "image_decoder.output_head.0.bias": (1,)}
    widths = (1536, 768, 384, 192, 96, 48)
    for block, (a, b) in enumerate(pairwise(widths)):
        for conv, inputs in (("conv1", a), ("conv2", b)):
            base = f"image_decoder.blocks.{block}.{conv}."
            shapes |= {f"{base}0.weight": (b, inputs, 3, 3), f"{base}1.num_batches_tracked": ()}
            shapes |= {f"{base}1.{x}": (b,) for x in ("weight", "bias", "running_mean", "running_var")}
    with torch.device("meta"):
        resnet = torchvision.models.resnet50().state_dict()
    shapes |= {f"image_encoder.encoder.{k}": tuple(v.shape) for k, v in resnet.items() if not k.startswith("fc.")}
    shapes["image_encoder.encoder.conv1.weight"] = (64, 1, 7, 7)
    shapes |= bert_layout("text_encoder.encoder.", 12, 768, 3072, cross=False)
    return shapes | bert_layout("sentence_decoder.", 8, 768, 3072, cross=True)


def bio_clinical_bert(folder: Path, **smaller: int) -> Path:
    """A folder as `save_tokenizer` writes it: Bio_ClinicalBERT's configuration, without its weights."""
    values = {"vocab_size": 28996, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
              "intermediate_size": 3072, "max_position_embeddings": 512} | smaller
    transformers.BertConfig(**values).save_pretrained(folder)
    build_tokenizer(REPORTS, 90).save_pretrained(folder)
    return folder


def test_the_full_model_of_the_authors_fills_the_paper_recipe(tmp_path):
    layout = full_layout()
    assert len(layout) == 839
    with torch.device("meta"):  # shapes without memory
        method = make("paper", tokenizer=bio_clinical_bert(tmp_path), **{"image.weights": "random"})
        state = {key: torch.empty(shape) for key, shape in layout.items()}
    for variant in (state, {k.replace("_projection.", "_projection.0."): v for k, v in state.items()}):
        coverage = coverage_of(method, method.adapt_checkpoint(variant))
        assert (coverage.missing, coverage.unexpected) == ((), ())
        assert coverage.expected["image encoder"] == 318


def test_the_full_model_answers_as_its_authors_code(tmp_path):
    """A narrow model with the authors' names: local scores come from the buffer read without a transpose."""
    torch.manual_seed(0)
    folder = bio_clinical_bert(tmp_path / "bert", vocab_size=90, hidden_size=16, num_hidden_layers=1,
                               num_attention_heads=2, intermediate_size=32)
    values = {"image.weights": "random", "image.size": 64, "image.name": "resnet18", "width": 16, "pool_heads": 2,
              "prototypes.count": 6, "decoders.image_channels": 16, "decoders.image_blocks": 2,
              "decoders.sentence_layers": 1, "decoders.sentence_heads": 2}
    source = make("paper", seed=1, tokenizer=folder, **values)
    ours_alone = {"official_layout", "bank.temperature"}
    theirs = {official_name(key): value for key, value in source.state_dict().items() if key not in ours_alone}
    theirs = unfused(theirs) | {"global_text_projection.0.weight": torch.zeros(16, 16)}
    torch.save({"state_dict": theirs, "epoch": 149, "pytorch-lightning_version": "1.5.9"}, tmp_path / "total.ckpt")

    method = make("paper", seed=2, tokenizer=folder, **values)
    coverage = load_checkpoint(method, tmp_path / "total.ckpt")
    assert (coverage.missing, coverage.unexpected) == ((), ())
    assert method.has_text
    for a, b in zip(features(source), features(method), strict=True):
        assert torch.equal(a, b)
    images = method.normalise(torch.randint(0, 255, (2, 1, 64, 64), dtype=torch.uint8))
    with torch.no_grad():
        maps = method.image_encoder(images)
        tokens = method.local_image_projection(maps.contiguous().view(2, 4, 512))
        sentence = method.encode_text(["No pneumothorax."]).sentences[0]
        expected = method.cross_attention.score(tokens, sentence)
        torch.testing.assert_close(method.local_score(images, ["No pneumothorax."]), expected)
    again = load_method(save_weights(tmp_path / "weights", method, method.recipe, {}))
    assert again.official_layout


OFFICIAL = {"image_encoder.model.": "image_encoder.encoder.", "image_pool.": "image_encoder.atten_pool.",
            "text_encoder.model.": "text_encoder.encoder.", "sentence_pool.": "global_text_attention.",
            "bank.": "sentence_bank.", "sentence_decoder.queries": "prototype_queries",
            "sentence_decoder.norm.": "sentence_decoder.embeddings.LayerNorm.",
            "sentence_decoder.position": "sentence_decoder.embeddings.position",
            "sentence_decoder.token": "sentence_decoder.embeddings.token",
            "sentence_decoder.layers.layers.": "sentence_decoder.encoder.layer.",
            "image_decoder.head.": "image_decoder.output_head.0.",
            **{f"cross_attention.{n}_{r}.": f"local_cross_attention.{r}{i}." for i, n in ((1, "image"), (2, "text"))
               for r in ("query", "key", "value")}}
LAYER = {".self_attn.out_proj.": ".attention.output.dense.", ".norm1.": ".attention.output.LayerNorm.",
         ".multihead_attn.out_proj.": ".crossattention.output.dense.", ".norm2.": ".crossattention.output.LayerNorm.",
         ".linear1.": ".intermediate.dense.", ".linear2.": ".output.dense.", ".norm3.": ".output.LayerNorm."}


def official_name(key: str) -> str:
    for ours, theirs in OFFICIAL.items():
        if key.startswith(ours):
            key = theirs + key.removeprefix(ours)
            break
    if key.startswith("sentence_decoder.encoder.layer."):
        for ours, theirs in LAYER.items():
            key = key.replace(ours, theirs)
    return key


def unfused(state: dict[str, Tensor]) -> dict[str, Tensor]:
    parts: dict[str, Tensor] = {}
    for key, value in state.items():
        base, fused, kind = key.partition(".in_proj_")
        if not fused:
            parts[key] = value
            continue
        base = base.replace("self_attn", "attention.self").replace("multihead_attn", "crossattention.self")
        parts |= {f"{base}.{role}.{kind}": x for role, x in zip(("query", "key", "value"), value.chunk(3), strict=True)}
    return parts


# --------------------------------------------------------------------------------------------- refusals


def test_a_vision_only_method_is_saved_without_a_tokenizer(tmp_path):
    method = new_method(plugins.load("methods", "random"), recipes.Recipe(text=None), seed=3)
    again = load_method(save_weights(tmp_path / "weights", method, recipes.Recipe(text=None), {}))
    assert not list((tmp_path / "weights" / "tokenizer").iterdir())
    assert state_digest(again) == state_digest(method)


def test_another_architecture_is_refused_unless_allowed(tmp_path):
    method = make("image-only", **{"image.size": 64})
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "r18.pt")
    before = method.image_encoder.model.conv1.weight.clone()
    with pytest.raises(UserError, match=r"r18\.pt") as error:
        load_checkpoint(method, tmp_path / "r18.pt")
    assert "recipe" in error.value.fix
    assert "--allow-partial-weights" in error.value.fix
    assert torch.equal(method.image_encoder.model.conv1.weight, before)  # refused before anything was loaded
    assert 0 < load_checkpoint(method, tmp_path / "r18.pt", allow_partial=True).share("image encoder") < 1


def test_a_released_file_is_told_the_recipe_that_serves_it(tmp_path):
    method = make("image-only", **{"image.size": 64})
    torch.save({"sentence_bank.embed.weight": torch.zeros(2, 2),
                "image_encoder.encoder.conv1.weight": torch.zeros(64, 1, 7, 7)}, tmp_path / "prior.pt")
    with pytest.raises(UserError, match="--method prior --recipe paper serves files of PRIOR, image and text"):
        load_checkpoint(method, tmp_path / "prior.pt")


def test_weights_that_are_no_numbers_are_named_before_they_are_loaded(tmp_path):
    state, _ = image_only()
    state["layer2.0.bn1.bias"] = torch.full((128,), torch.nan)
    torch.save(state | {"not.loaded": torch.full((3,), -torch.inf)}, tmp_path / "prior.pt")
    with pytest.raises(UserError, match=r"1 of 318 tensors .* numbers: \S*layer2\.0\.bn1\.bias") as error:
        load_checkpoint(make("image-only", **{"image.size": 64}), tmp_path / "prior.pt")
    assert error.value.where == str(tmp_path / "prior.pt")


@pytest.mark.parametrize(("loaded", "shown"), [(0, "0 %"), (1, "0.1 %"), (500, "50 %"), (999, "99.9 %"),
                                               (1000, "100 %")])
def test_only_all_keys_are_100_percent(loaded, shown):
    assert f"({shown})" in str(Coverage({"heads": loaded}, {"heads": 1000}))


def test_shapes_are_told_in_words():
    coverage = coverage_of(torch.nn.Linear(2, 3), {"weight": torch.zeros(3, 4), "bias": torch.zeros(())})
    assert coverage.first().startswith("first missing: weight (it is 3 x 4 there, 3 x 2 here), bias (it is one number")


def test_a_file_without_text_makes_the_method_vision_only(tmp_path):
    method = make("small", texts=REPORTS, **SMALL)
    state = {k: v for k, v in method.state_dict().items() if k.startswith("image_encoder.")}
    torch.save(state, tmp_path / "image.pt")
    coverage = load_checkpoint(method, tmp_path / "image.pt")
    assert (coverage.share("image encoder"), coverage.share("text encoder")) == (1, 0)
    assert not method.has_text
    assert method.encode_image(torch.zeros(1, 1, 64, 64)).joint is None
    assert not load_method(save_weights(tmp_path / "weights", method, method.recipe, {})).has_text


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file_is_named(tmp_path, suffix):
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save({"conv1.weight": torch.zeros(1000)}, file)
    else:
        from safetensors.torch import save_file

        save_file({"conv1.weight": torch.zeros(1000)}, file)
    for size in (file.stat().st_size // 2, 10, 0):
        os.truncate(file, size)
        with pytest.raises(UserError, match=f"weights{suffix}") as error:
            read_state(file)
        assert error.value.fix


@pytest.mark.parametrize(("content", "says"), [(b"", "is empty"), (b"# Read me", "this is not a weights file"),
                                               (b"\x80\x02q", "convert --trust")])
def test_unpickling_is_advised_for_pickles_alone(tmp_path, content, says):
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        read_state(tmp_path / "weights.pt")
    assert ("--trust" in str(error.value)) == ("--trust" in says)


class Malicious:
    def __reduce__(self):
        return os.mkdir, (os.environ["PRIOR_BENCH_TEST_TRAP"],)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_malicious_pickle_is_not_run(tmp_path, monkeypatch):
    trap = tmp_path / "trap"
    monkeypatch.setenv("PRIOR_BENCH_TEST_TRAP", str(trap))
    torch.save({"conv1.weight": Malicious()}, tmp_path / "evil.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Malicious()))
    for name in ("evil.pt", "bare.pt"):
        with pytest.raises(UserError, match=name) as error:
            read_state(tmp_path / name)
        assert not trap.exists()
        assert "safetensors" in error.value.fix


def test_weights_of_another_version_are_named(tmp_path):
    method = make("small", texts=REPORTS, **SMALL)
    save_weights(tmp_path / "weights", method, method.recipe, {})
    file = tmp_path / "weights" / "recipe.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"rotation": 5.0}))
    with pytest.raises(UserError, match="not one of this version of prior: rotation"):
        load_method(tmp_path / "weights")


def test_files_without_tensors_and_missing_files_are_named(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, what in (("empty.pt", "no tensors"), ("list.pt", "holds a list"), ("none.pt", "does not exist"),
                       ("", "is a folder"), ("/dev/null", "is a device")):
        with pytest.raises(UserError, match=what) as error:
            read_state(tmp_path / name)
        assert error.value.fix

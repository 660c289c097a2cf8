"""The conformance suite: every built-in method passes it, and a method that breaks a rule is caught by name."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from typer.testing import CliRunner

from prior_bench import plugins, recipes
from prior_bench.cli import app
from prior_bench.losses import gather, info_nce_directions, pair_cross_entropy, world_size
from prior_bench.method import ImageFeatures, TextFeatures
from prior_bench.methods.convirt.method import Convirt
from prior_bench.recipe_files import recipe_file
from prior_bench.testing import ENCODING, TEXT, TRAINING, CheckFailed, check_method, sample_texts
from prior_bench.weights import new_method

TINY = {"image.name": "test_resnet", "image.size": 64}
TINY_TEXT = {**TINY, "text.layers": 2, "text.width": 16, "text.heads": 2, "text.vocabulary": 120}
HEADS = {"width": 8, "hidden": 12}
FUSION = {"fusion.heads": 2, "fusion.memory": 12, "fusion.memory_width": 4, "fusion.top": 3, "decoder.width": 8,
          "decoder.heads": 2, "decoder.layers": 1}
VIT = {"image.name": "test_vit"}
PLACE = {**HEADS, "queries": 3, "query_width": 8, "query_heads": 2, "grid": 3}
PRIOR = {"width": 16, "pool_heads": 2, "prototypes.count": 6, "prototypes.memory": 32, "decoders.image_channels": 16,
         "decoders.image_blocks": 3, "decoders.queries": 3, "decoders.sentence_layers": 1, "decoders.sentence_heads": 2}
CASES = {
    "prior": {**TINY_TEXT, **PRIOR},
    "convirt": {**TINY_TEXT, "width": 16},
    "gloria": TINY_TEXT,
    "mgca": {**TINY_TEXT, **HEADS, "prototypes": 5},
    "mgca (vit)": {**TINY_TEXT, **HEADS, **VIT, "prototypes": 5},
    "place": {**TINY_TEXT, **PLACE},
    "place (vit)": {**TINY_TEXT, **PLACE, **VIT},
    "mpma": {**TINY_TEXT, **VIT, "width": 8, **FUSION},
    "random": TINY, "thumbnail": TINY, "supervised": TINY,
    "imagenet": {**TINY, "image.weights": "random"},
}
# checked in tests/methods/test_pretrained.py, test_reference.py and test_dual.py, on small checkpoints
WITH_WEIGHTS = {"timm", "open-clip", "hf", "encoder", "dual"}


def build(name, settings, kind=None):
    kind = kind or plugins.load("methods", name)
    known = recipes.names(recipe_file(name))
    chosen = next(recipe for recipe in ("small", "small-vit", *known) if recipe in known)
    recipe = recipes.load(recipe_file(name), chosen, kind.recipe_class, settings)
    return new_method(kind, recipe, 0, sample_texts())


def test_every_built_in_method_is_here():
    assert {case.partition(" ")[0] for case in CASES} | WITH_WEIGHTS == set(plugins.names("methods"))


@pytest.mark.parametrize("case", CASES)
def test_built_in(case):
    outcomes = check_method(build(case.partition(" ")[0], CASES[case]))
    assert len(outcomes) >= 6


class LocalNegatives(Convirt):
    """Forgets the other ranks' pairs."""

    def losses(self, batch, progress):
        image, text = vectors(self, batch)
        return {"l": (1.0, F.cross_entropy(image @ text.T / 0.1, torch.arange(len(image))))}


class GradientOfOwnRows(Convirt):
    """Sees the other ranks' rows, right loss and all, but sends no gradient back to them."""

    def losses(self, batch, progress):
        image, text = vectors(self, batch)
        (images, texts), before = gather(image.detach(), text.detach())
        own = slice(before, before + len(image))
        images, texts = (torch.cat([x[: own.start], y, x[own.stop :]]) for x, y in ((images, image), (texts, text)))
        return {"l": (1.0, pair_cross_entropy(10 * image @ texts.T, before) + pair_cross_entropy(
            10 * text @ images.T, before))}


class EqualRanks(Convirt):
    """Takes for granted that all ranks have as many rows as this one."""

    def losses(self, batch, progress):
        image, text = vectors(self, batch)
        texts = [torch.zeros_like(text) for _ in range(world_size())]
        if world_size() > 1:
            dist.all_gather(texts, text.detach())
        before = dist.get_rank() * len(image) if world_size() > 1 else 0
        texts[before // len(image)] = text
        return {"l": (1.0, pair_cross_entropy(10 * image @ torch.cat(texts).T, before))}


class MeanOfRanks(Convirt):
    """Takes means over a rank's rows, so that rows of a short batch weigh more."""

    def losses(self, batch, progress):
        image, text = vectors(self, batch)
        return {"l": (1.0, (image - text).square().mean())}


class Noisy(Convirt):
    def encode_image(self, images):
        found = super().encode_image(images)
        return ImageFeatures(found.joint, found.map + 1e-3 * torch.randn_like(found.map))


class NoisyVectors(Convirt):
    """Less noise than other checks would see, and in the joint vectors alone."""

    def encode_image(self, images):
        found = super().encode_image(images)
        return ImageFeatures(F.normalize(found.joint + 1e-5 * torch.randn_like(found.joint), dim=1), found.map)


class NoisyScores(Convirt):
    def local_score(self, images, texts):
        scores = self.encode_image(images).joint @ self.encode_text(texts).joint.T
        return scores + 1e-5 * torch.rand_like(scores)


class DrawsElsewhere(Convirt):
    def view(self, study, rng):
        return super().view(study, np.random.default_rng(np.random.randint(1 << 30)))


class ReadsPadding(Convirt):
    def _text(self, ids, mask):
        words = self.text_encoder(ids, mask)
        return nn.functional.normalize(self.text_head(words.mean(dim=1)).float(), dim=-1)


class SentencesOfTheBatch(Convirt):
    def encode_text(self, texts):
        found = super().encode_text(texts)
        return TextFeatures(found.joint, found.sentences / len(texts), found.sentence_mask)


class LongVectors(Convirt):
    def encode_text(self, texts):
        return TextFeatures(2 * super().encode_text(texts).joint)


class NormalisesOverTheBatch(Convirt):
    def encode_image(self, images):
        found = super().encode_image(images)
        return ImageFeatures(found.joint, found.map - found.map.mean(dim=0))


class TurnsMapsInBatches(Convirt):
    """The mean over the map stays what it is."""

    def encode_image(self, images):
        found = super().encode_image(images)
        return ImageFeatures(found.joint, found.map.flip(3) if len(images) > 1 else found.map)


class WrongStrides(Convirt):
    def pyramid(self, images):
        return tuple(reversed(super().pyramid(images)))


class LastLevelTooSmall(Convirt):
    def pyramid(self, images):
        *first, last = super().pyramid(images)
        return (*first, F.avg_pool2d(last, 2))


class StridesOfOneSize(Convirt):
    def pyramid(self, images):
        own = self.image_input.size
        return tuple(F.adaptive_avg_pool2d(level, own // stride)
                     for level, stride in zip(super().pyramid(images), (4, 8, 16, 32), strict=True))


class MapsOfTheBatch(Convirt):
    """Weights each map by its share of the batch."""

    def sentence_maps(self, images, texts):
        found = self.image_encoder(images).mean(dim=1)
        return {"sentence to image": found / found.sum(dim=0)}


class SumsOverPairs(Convirt):
    def losses(self, batch, progress):
        return {name: (weight, value * len(batch["ids"]))
                for name, (weight, value) in super().losses(batch, progress).items()}


class LongInTheLoss(Convirt):
    """Its logits are thirty times too large."""

    def losses(self, batch, progress):
        image, text = vectors(self, batch)
        forth, back = info_nce_directions(30 * image, text, 10.0)
        return {"l_v_to_u": (0.75, forth), "l_u_to_v": (0.25, back)}


class LossInBf16(Convirt):
    def losses(self, batch, progress):
        def coarse(value):
            return value.bfloat16() + 512 - 512 if torch.is_autocast_enabled("cpu") else value

        return {name: (weight, coarse(value)) for name, (weight, value) in super().losses(batch, progress).items()}


class VectorsInBf16(Convirt):
    def _image(self, features):
        hidden = self.image_head[:2](features.mean(dim=(2, 3)))
        return F.normalize((self.image_head[2](hidden) + 1000 - 1000).float(), dim=1)


class InfiniteAtTheEnd(Convirt):
    def losses(self, batch, progress):
        return {name: (weight, value / (progress < 0.9))
                for name, (weight, value) in super().losses(batch, progress).items()}


class PlainState(Convirt):
    """Training moves a tensor that is no buffer."""

    def __init__(self, recipe, text_encoder):
        super().__init__(recipe, text_encoder)
        self.centre = torch.zeros(recipe.width)

    def _image(self, features):
        return F.normalize(super()._image(features) - self.centre, dim=1)

    def after_step(self, progress):
        self.centre = self.centre + torch.linspace(0, 1, len(self.centre))


class RandomState(Convirt):
    """A layer that is drawn at the start and in no state dict."""

    def __init__(self, recipe, text_encoder):
        super().__init__(recipe, text_encoder)
        self.layers = [nn.Linear(recipe.width, recipe.width)]

    def _image(self, features):
        return F.normalize(self.layers[0](super()._image(features)), dim=1)


class ReadsTheFirstSentence(Convirt):
    def encode_text(self, texts):
        return super().encode_text([text.partition(".")[0] for text in texts])


class FrozenText(Convirt):
    def _text(self, ids, mask):
        return super()._text(ids, mask).detach()


class FrozenImages(Convirt):
    def _image(self, features):
        return super()._image(features.detach())


class OtherName(Convirt):
    """Nobody can tell that its image encoder is one."""

    def losses(self, batch, progress):
        found = super().losses(batch, progress)
        self.tower = self._modules.pop("image_encoder")
        return found


def vectors(method, batch):
    return method._image(method.image_encoder(method.normalise(batch["image"]))), method._text(
        batch["ids"], batch["mask"])


@pytest.mark.parametrize(("kind", "check", "seen"), [
    (LocalNegatives, "two ranks equal one process", "l on two ranks differs"),
    (GradientOfOwnRows, "two ranks equal one process", "the gradient of .* on two ranks differs"),
    (EqualRanks, "two ranks equal one process", "(a rank failed: .* the same collectives|l on two ranks differs)"),
    (MeanOfRanks, "two ranks equal one process", "l on two ranks differs"),
    (Noisy, "encoding is deterministic", "second call gives differs"),
    (NoisyVectors, "encoding is deterministic", "joint image vectors: what a second call gives differs"),
    (NoisyScores, "encoding is deterministic", "local scores: what a second call gives differs"),
    (DrawsElsewhere, "views depend on their generator alone", "drawn again with equal generators differs"),
    (ReadsPadding, "texts do not depend on batch or padding", "alone differs"),
    (SentencesOfTheBatch, "texts do not depend on batch or padding", "the sentences of text 0 alone differs"),
    (LongVectors, "texts do not depend on batch or padding", "the length of a joint vector"),
    (NormalisesOverTheBatch, "images do not depend on batch or order", "alone differs"),
    (TurnsMapsInBatches, "images do not depend on batch or order", "the map of an image alone differs"),
    (WrongStrides, "pyramid has its strides and channels", "stride 4"),
    (LastLevelTooSmall, "pyramid has its strides and channels", "stride 32 of images of 64 pixels: a side of 1, not"),
    (StridesOfOneSize, "pyramid has its strides and channels", "stride 4 of images of 96 pixels: a side of 16, not"),
    (MapsOfTheBatch, "maps and use depend on their pair alone", "the map 'sentence to image' of a pair alone differs"),
    (SumsOverPairs, "info nce of equal pairs is log batch", "l_v_to_u of 6 equal pairs differs"),
    (LongInTheLoss, "info nce starts near log batch", "l_v_to_u starts at .* guessing costs 1.79"),
    (LossInBf16, "losses in bf16 are close to fp32", "l_v_to_u in bf16 differs"),
    (VectorsInBf16, "bf16 is close to fp32", "joint image vectors in bf16 have a cosine"),
    (InfiniteAtTheEnd, "losses are finite and named", "l_v_to_u is inf at progress 0.99"),
    (PlainState, "weights survive saving", "joint image vectors after loading differs"),
    (RandomState, "weights survive saving", "joint image vectors after loading differs"),
    (ReadsTheFirstSentence, "the order of sentences does not matter", "sentences reversed differs"),
    (FrozenText, "gradients reach both encoders", "no gradient reaches the text_encoder"),
    (FrozenImages, "gradients reach both encoders", "no gradient reaches the image_encoder"),
    (OtherName, "gradients reach both encoders", "no module image_encoder"),
])
def test_a_broken_rule_is_caught_by_name(kind, check, seen, monkeypatch):
    method = build("convirt", CASES["convirt"], kind)
    monkeypatch.setitem(plugins._from_files["methods"], "convirt", kind)  # or its weights would be loaded as ConVIRT's
    with pytest.raises(CheckFailed, match=f"{check}: .*{seen}.*\n    The rule: "):
        check_method(method, only=check)


def test_every_check_says_its_rule():
    assert all(check.__doc__ for check in (*ENCODING, *TEXT, *TRAINING))


def test_what_does_not_apply_is_said_and_no_check_of_a_name_is_an_error():
    outcomes = {o.name: o.skipped for o in check_method(build("convirt", CASES["convirt"]), only="depend on their")}
    assert outcomes == {"local scores depend on their pair alone": "it has no local scores",
                        "maps and use depend on their pair alone": "it has neither maps of sentences nor prototypes",
                        "views depend on their generator alone": ""}
    with pytest.raises(ValueError, match="stirdes"):
        check_method(build("random", TINY), only="stirdes")


def test_checks_leave_the_global_generators_as_they_were():
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    check_method(build("random", TINY), only="deterministic")
    assert (torch.rand(1), np.random.rand()) == expected


PLUGIN = """
import torch
from prior_bench.methods.convirt.method import Convirt


class Doubled(Convirt):
    name = "doubled"

    def pyramid(self, images):
        return super().pyramid(torch.cat([images, images], dim=3))
"""
RECIPE = """
small:
  image: {name: test_resnet, size: 64}
  text: {layers: 2, width: 16, heads: 2, vocabulary: 120}
  width: 16
  training: {batch: 16, epochs: 1, stages: [{share: 1, lr: 0.001}]}
"""


def test_the_verb_names_what_failed_and_its_rule(tmp_path, monkeypatch):
    monkeypatch.setattr("prior_bench.testing.TRAINING", ())  # two processes of its own are tested above
    (tmp_path / "doubled.py").write_text(PLUGIN)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = CliRunner().invoke(app, ["check-method", "doubled", "--plugin", str(tmp_path / "doubled.py")])
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    at = lines.index("FAILED  pyramid has its strides and channels")
    assert lines[at + 1].strip() == "stride 4 of images of 64 pixels: a side of 32, not about 16"
    assert lines[at + 2].strip().startswith("The rule: `pyramid` gives maps of strides 4, 8, 16 and 32")
    assert "-       local scores depend on their pair alone: it has no local scores" in lines
    assert re.fullmatch(r"doubled \(small\): (\d+) of (\d+) checks passed, 2 do not apply", lines[-1])

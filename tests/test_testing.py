"""The conformance suite: every built-in method passes it, and a method that breaks a rule is caught by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prior_bench import plugins, recipes
from prior_bench.method import ImageFeatures, TextFeatures
from prior_bench.methods.convirt.method import Convirt
from prior_bench.recipe_files import recipe_file
from prior_bench.testing import CheckFailed, check_method, sample_texts
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
    "random": TINY, "thumbnail": TINY, "supervised": TINY, "encoder": TINY,
    "imagenet": {**TINY, "image.weights": "random"},
}
WITH_WEIGHTS = {"timm", "open-clip", "hf"}  # checked in tests/methods/test_pretrained.py, on small checkpoints


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
        from torch.nn.functional import cross_entropy

        image = self._image(self.image_encoder(self.normalise(batch["image"])))
        text = self._text(batch["ids"], batch["mask"])
        return {"l": (1.0, cross_entropy(image @ text.T / 0.1, torch.arange(len(image))))}


class Noisy(Convirt):
    def encode_image(self, images):
        found = super().encode_image(images)
        return ImageFeatures(found.joint, found.map + 1e-3 * torch.randn_like(found.map))


class ReadsPadding(Convirt):
    def _text(self, ids, mask):
        words = self.text_encoder(ids, mask)
        return nn.functional.normalize(self.text_head(words.mean(dim=1)).float(), dim=-1)


class LongVectors(Convirt):
    def encode_text(self, texts):
        return TextFeatures(2 * super().encode_text(texts).joint)


class NormalisesOverTheBatch(Convirt):
    def encode_image(self, images):
        found = super().encode_image(images)
        return ImageFeatures(found.joint, found.map - found.map.mean(dim=0))


class WrongStrides(Convirt):
    def pyramid(self, images):
        return tuple(reversed(super().pyramid(images)))


class MapsOfTheBatch(Convirt):
    """Weights each map by its share of the batch."""

    def sentence_maps(self, images, texts):
        found = self.image_encoder(images).mean(dim=1)
        return {"sentence to image": found / found.sum(dim=0)}


class SumsOverPairs(Convirt):
    def losses(self, batch, progress):
        return {name: (weight, value * len(batch["ids"]))
                for name, (weight, value) in super().losses(batch, progress).items()}


class ReadsTheFirstSentence(Convirt):
    def encode_text(self, texts):
        return super().encode_text([text.partition(".")[0] for text in texts])


class FrozenText(Convirt):
    def _text(self, ids, mask):
        return super()._text(ids, mask).detach()


@pytest.mark.parametrize(("kind", "check", "seen"), [
    (LocalNegatives, "two ranks equal one process", "l on two ranks differs"),
    (Noisy, "encoding is deterministic", "second call differs"),
    (ReadsPadding, "texts do not depend on batch or padding", "alone differs"),
    (LongVectors, "texts do not depend on batch or padding", "the length of a joint vector"),
    (NormalisesOverTheBatch, "images do not depend on batch or order", "alone differs"),
    (WrongStrides, "pyramid has its strides and channels", "stride 4"),
    (MapsOfTheBatch, "maps and use depend on their pair alone", "the map 'sentence to image' of a pair alone differs"),
    (SumsOverPairs, "info nce of equal pairs is log batch", "l_v_to_u of 6 equal pairs differs"),
    (ReadsTheFirstSentence, "the order of sentences does not matter", "sentences reversed differs"),
    (FrozenText, "gradients reach both encoders", "no gradient reaches the text_encoder"),
])
def test_a_broken_rule_is_caught_by_name(kind, check, seen):
    with pytest.raises(CheckFailed, match=f"{check}: .*{seen}"):
        check_method(build("convirt", CASES["convirt"], kind), only=check)

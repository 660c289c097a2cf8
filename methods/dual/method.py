"""Reference `dual`: image encoder, text encoder and heads of a released dual encoder that is no plug-in of its own.

    prior-bench run --method dual --recipe cxr-clip --weights FILE

`prior-bench weights inspect FILE` says which recipe fits. How each model makes its vectors stands in README.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from prior_bench.encoders.dual import DualEncoder
from prior_bench.encoders.heads import bn_head, unit
from prior_bench.encoders.image import timm_state
from prior_bench.encoders.text import TextEncoder
from prior_bench.errors import UserError
from prior_bench.layouts import recognise, renamed, text_state
from prior_bench.method import ImageFeatures, TextFeatures
from prior_bench.recipe_files import recipe_file, released
from prior_bench.recipes import Recipe

_TOKEN_TYPES = "text_encoder.model.embeddings.token_type_embeddings.weight"


class DualRecipe(Recipe):
    """`layout` is the name in `layouts.LAYOUTS` of the files that the recipe is for; `width` is the joint space's."""

    layout: Literal["medclip", "medclip-swin", "cxr-clip", "cxr-clip-swin", "convirt-mgca", "convirt-mgca-vit"]


@dataclass(frozen=True, slots=True)
class Model:
    """How one model makes a vector of an image and of a text, its heads (inputs, outputs), and their names (theirs:
    ours). `ordered` False: all its tokens stand at position 0, and have no type."""

    image: Literal["mean", "class token", "first patch"]
    text: Literal["first token", "last token", "mean of layers"]
    head: Callable[[int, int], nn.Module] = nn.Linear
    names: Mapping[str, str] = field(default_factory=dict)
    ordered: bool = True


def _mgca_head(inputs: int, outputs: int) -> nn.Module:
    return bn_head(inputs, 2048, outputs)


_BIAS_FREE = partial(nn.Linear, bias=False)
_CXR_CLIP = {"image_projection.projection.": "image_head.", "text_projection.projection.": "text_head.",
             "image_projection.": "image_head.", "text_projection.": "text_head."}  # the rest, to be refused
_MGCA = {"img_encoder.global_embed.head.": "image_head.", "text_encoder.global_embed.head.": "text_head."}
_TEXT_HEAD = {"text_model.projection_head.": "text_head."}
MODELS = {
    "medclip": Model("mean", "mean of layers", _BIAS_FREE, {"vision_model.model.fc.": "image_head.", **_TEXT_HEAD}),
    "medclip-swin": Model("mean", "mean of layers", _BIAS_FREE,
                          {"vision_model.projection_head.": "image_head.", **_TEXT_HEAD}),
    "cxr-clip": Model("mean", "last token", names=_CXR_CLIP),
    "cxr-clip-swin": Model("first patch", "last token", names=_CXR_CLIP),
    "convirt-mgca": Model("mean", "first token", _mgca_head, _MGCA, ordered=False),
    "convirt-mgca-vit": Model("class token", "first token", _mgca_head, _MGCA, ordered=False),
}


class Dual(DualEncoder):
    name = "dual"
    title = "Image and text encoder from a file"
    pretrains = False
    recipe_class: ClassVar[type[Recipe]] = DualRecipe
    recipe: DualRecipe

    def __init__(self, recipe: DualRecipe, text_encoder: TextEncoder):
        super().__init__(recipe, text_encoder)
        self.kind = MODELS[recipe.layout]
        if self.kind.text == "mean of layers" and len(text_encoder.model.encoder.layer) < 2:
            raise UserError("the text vector is a mean of the layers 1, 2 and last, and there is one layer",
                            where="text.first_layers", expected="2 or more")
        self.text_encoder.model.pooler = None  # no model's vectors come from it
        self.text_encoder.without_order = not self.kind.ordered
        self.image_head = self.kind.head(self.image_encoder.channels, recipe.width)
        self.text_head = self.kind.head(text_encoder.width, recipe.width)

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The file of the recipe's layout under this module's names; what the vectors do not need is left out.

        Raises:
            UserError: the file has another layout, or a text encoder and other heads than the recipe's.
        """
        layout = recognise(state)
        if layout is not None and layout.name == "ours":
            return state
        if layout is None or layout.name != self.recipe.layout:
            recipe = released(recipe_file(self.name)).get(layout.name if layout else "")
            raise UserError(f"the file is {layout.title if layout else 'of no known layout'}; this recipe is for "
                            f"{self.recipe.layout}", where="--recipe",
                            fix=f"give --recipe {recipe}" if recipe else "see `prior-bench weights inspect FILE`")
        theirs = tuple(self.kind.names)
        ours = renamed({key: value for key, value in state.items() if key.startswith(theirs)}, self.kind.names)
        images = timm_state(self.image_encoder.model, state)
        texts = {key: value for key, value in text_state(state, layout).items() if not key.startswith("pooler.")}
        if texts:
            self._check_heads(ours)
        ours |= {f"image_encoder.model.{key}": value for key, value in images.items()}
        ours |= {f"text_encoder.model.{key}": value for key, value in texts.items()}
        if texts and not self.kind.ordered:
            ours.setdefault(_TOKEN_TYPES, torch.zeros_like(self.state_dict()[_TOKEN_TYPES]))
        return ours

    def _check_heads(self, found: Mapping[str, Tensor]) -> None:
        """Heads of other layers or sizes would leave these random, or compute something else."""
        theirs = {key: tuple(value.shape) for key, value in found.items()}
        ours = {key: tuple(value.shape) for key, value in self.state_dict().items()
                if key.startswith(("image_head.", "text_head."))}
        if theirs != ours:
            key = min(key for key in theirs | ours if theirs.get(key) != ours.get(key))
            raise UserError("the file's heads are not those of the recipe", where=key,
                            expected=f"shape {ours[key]}" if key in ours else "no such tensor",
                            fix=f"it has {theirs.get(key, 'none')}; --set width=N is the joint width; "
                                "or use its image encoder alone: --method encoder")

    def encode_image(self, images: Tensor) -> ImageFeatures:
        if self.kind.image == "class token":
            seen = self.image_encoder.with_class_token(images)
            return ImageFeatures(unit(self.image_head(seen.token)), seen.map)
        features = self.image_encoder(images)
        whole = features[:, :, 0, 0] if self.kind.image == "first patch" else features.mean(dim=(2, 3))
        return ImageFeatures(unit(self.image_head(whole)), features)

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        tokens = self.tokens(texts)
        ids, mask = tokens["ids"], tokens["mask"]
        if self.kind.text == "mean of layers":
            layers = (1, 2, len(self.text_encoder.model.encoder.layer))
            words = self.text_encoder.layers(ids, mask, layers).mean(dim=0)
            whole = (words * mask.unsqueeze(-1)).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        else:
            words = self.text_encoder(ids, mask)
            place: Tensor | int = mask.sum(dim=1) - 1 if self.kind.text == "last token" else 0
            whole = words[torch.arange(len(words), device=words.device), place]
        return TextFeatures(unit(self.text_head(whole)))

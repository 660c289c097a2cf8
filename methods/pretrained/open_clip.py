"""`open-clip:NAME/PRETRAINED`: a dual encoder of OpenCLIP: CLIP, BiomedCLIP and relatives.

PRETRAINED is a tag of open_clip or the path of a file; `hf-hub:ORG/REPO` and the path of a folder name both at once.
Texts that are longer than the encoder's context are cut there.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from prior_bench.encoders.text import check_tokenizer
from prior_bench.errors import UserError, unknown_name
from prior_bench.method import ImageFeatures, TextFeatures
from prior_bench.methods.pretrained.towers import PretrainedRecipe, Tower, filled, missing
from prior_bench.state_files import check_finite
from prior_bench.types import ImageInput

_FOLDER = "local-dir:"
_SCHEMES = ("hf-hub:", _FOLDER)


class OpenClip(Tower):
    name = "open-clip"
    title = "OpenCLIP"

    def __init__(self, recipe: PretrainedRecipe):
        super().__init__()
        import open_clip

        self.recipe = recipe
        name, pretrained = _split(recipe.encoder)
        try:
            # every weight from the file (it loads strictly), where a model without a file would be random
            self.model: Any = open_clip.create_model(name, pretrained=pretrained, require_pretrained=True)
            self.tokenizer = open_clip.get_tokenizer(name)
        except Exception as error:  # of files that are not the model's, OpenCLIP raises almost any
            local = Path(pretrained or name.removeprefix(_FOLDER))
            expected = (f"weights of {name}, as OpenCLIP saves them" if local.is_file() else
                        "open_clip_config.json and its weights, as OpenCLIP saves them" if local.is_dir() else
                        "NAME/PRETRAINED, hf-hub:ORG/REPO or the path of a folder")
            raise missing("OpenCLIP", recipe.encoder, error, expected, local=local) from error
        self.image_encoder: Any = self.model.visual
        self.image_encoder.coverage = filled(self.model, "visual.")
        check_finite(self.model.state_dict(), recipe.encoder)
        if isinstance(self.tokenizer, open_clip.tokenizer.HFTokenizer):
            check_tokenizer(self.tokenizer.tokenizer, recipe.encoder)
        config = self.image_encoder.preprocess_cfg
        size = config["size"]
        interpolation: Literal["bilinear", "bicubic"] = config["interpolation"]
        self.image_input = ImageInput(size=size if isinstance(size, int) else size[0], channels=3,
                                      mean=tuple(config["mean"]), std=tuple(config["std"]), interpolation=interpolation)
        self.eval()
        self.probe()

    def encode_image(self, images: Tensor) -> ImageFeatures:
        found = self.model.forward_intermediates(image=images, image_indices=1, normalize_intermediates=True)
        return ImageFeatures(F.normalize(found["image_features"].float(), dim=-1), found["image_intermediates"][-1])

    def maps(self, images: Tensor) -> Sequence[Tensor]:
        found = self.model.forward_intermediates(image=images, normalize_intermediates=True)
        maps: list[Tensor] = found["image_intermediates"]
        return maps

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        tokens = self.tokenizer(list(texts)).to(next(self.model.parameters()).device)
        return TextFeatures(F.normalize(self.model.encode_text(tokens).float(), dim=-1))


def _split(encoder: str) -> tuple[str, str | None]:
    """The model's name and its weights, a tag or a file."""
    import open_clip

    if encoder.startswith(_SCHEMES):
        return encoder, None
    name, _, pretrained = encoder.partition("/")
    if name not in open_clip.list_models() and Path(encoder).is_dir():
        return f"{_FOLDER}{encoder}", None
    if name not in open_clip.list_models():
        if Path(encoder).is_file():
            raise UserError("which model of OpenCLIP the file is of is not said", where=encoder,
                            expected=f"open-clip:NAME/{encoder}", fix="give the name, one of open_clip.list_models()")
        raise unknown_name("model of OpenCLIP", name or encoder, open_clip.list_models(), where="--method",
                           see="open_clip.list_models(), or give the path of a folder that is there")
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained not in tags and not Path(pretrained).is_file():
        raise UserError(f"the weights of {name} are not named" if not pretrained else
                        f"no weights {pretrained!r} of {name}", where="--method",
                        expected=f"open-clip:{name}/ and one of {', '.join(tags)}, or the path of a file")
    return name, pretrained

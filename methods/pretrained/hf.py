"""`hf:NAME or folder`: an image encoder of transformers (ViT, DINOv2 as RAD-DINO, ResNet, ...), or a dual encoder of
CLIP's or SigLIP's kind. Code that lies beside weights on the hub runs only with `--set trust_remote_code=true`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from inspect import signature
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor

from prior_bench.encoders.text import TOKENIZER_FILES, check_tokenizer
from prior_bench.errors import UserError
from prior_bench.method import ImageFeatures, TextFeatures
from prior_bench.methods.pretrained.towers import PretrainedRecipe, Tower, filled, missing
from prior_bench.recipes import Recipe
from prior_bench.state_files import check_finite
from prior_bench.types import ImageInput
from prior_bench.weights import Coverage

_BICUBIC = 3  # PIL's number


class HuggingFaceRecipe(PretrainedRecipe):
    image_settings: ClassVar[tuple[str, ...]] = ("allow_partial",)


class HuggingFace(Tower):
    name = "hf"
    title = "transformers"
    recipe_class: ClassVar[type[Recipe]] = HuggingFaceRecipe

    def __init__(self, recipe: PretrainedRecipe):
        super().__init__()
        import transformers

        self.recipe = recipe
        allow_partial = recipe.image.allow_partial
        options = {"trust_remote_code": recipe.trust_remote_code}
        try:
            with _quiet(recipe.encoder):
                model, loading = transformers.AutoModel.from_pretrained(
                    recipe.encoder, **options, output_loading_info=True, ignore_mismatched_sizes=allow_partial)
                processor: Any = transformers.AutoImageProcessor.from_pretrained(recipe.encoder, **options)
                self.has_text = hasattr(model, "get_text_features")
                self.tokenizer: Any = None
                if self.has_text:
                    self.tokenizer = transformers.AutoTokenizer.from_pretrained(recipe.encoder, **options)
        except Exception as error:  # of files that are not a model's, transformers raises almost any
            raise missing("transformers", recipe.encoder, error, "a model on the hub or in a local folder, "
                          "with config.json, its weights, preprocessor_config.json and, with a text encoder, "
                          + TOKENIZER_FILES,
                          _fix(recipe.encoder, error), Path(recipe.encoder)) from error
        self.model: Any = model.float()  # whatever the file's type is: --precision says how to compute
        self.image_encoder: Any = getattr(model, "vision_model", None) if self.has_text else model
        if self.image_encoder is None or "pixel_values" not in signature(self.image_encoder.forward).parameters:
            raise UserError(f"the {self.model.config.model_type} model {recipe.encoder!r} takes no images",
                            where="--method", expected="an image encoder, or a dual encoder as CLIP or SigLIP",
                            fix="give another model")
        absent = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
        coverage = filled(model, "vis" if self.has_text else "", absent, loading["unexpected_keys"])
        if coverage.missing and not allow_partial:
            raise _partial(recipe.encoder, coverage)
        self.image_encoder.coverage = coverage
        check_finite(model.state_dict(), recipe.encoder)
        if self.has_text:
            check_tokenizer(self.tokenizer, recipe.encoder)
        interpolation: Literal["bilinear", "bicubic"] = "bicubic" if processor.resample == _BICUBIC else "bilinear"
        self.image_input = ImageInput(size=_size(processor), channels=3, mean=tuple(processor.image_mean),
                                      std=tuple(processor.image_std), interpolation=interpolation)
        self.eval()
        self.probe()

    def encode_image(self, images: Tensor) -> ImageFeatures:
        if not self.has_text:
            return ImageFeatures(None, self.maps(images)[-1])
        seen: list[Any] = []  # of the vision tower, which runs once for joint vectors and map
        hook = self.image_encoder.register_forward_hook(lambda module, inputs, found: seen.append(found))
        try:
            joint = _vector(self.model.get_image_features(pixel_values=images, output_hidden_states=True))
        finally:
            hook.remove()
        return ImageFeatures(F.normalize(joint.float(), dim=-1), self._maps(seen[0], images.shape[-1])[-1])

    def maps(self, images: Tensor) -> Sequence[Tensor]:
        return self._maps(self.image_encoder(pixel_values=images, output_hidden_states=True), images.shape[-1])

    def _maps(self, found: Any, size: int) -> Sequence[Tensor]:
        """The maps of a network with several strides, or the patch tokens of a plain transformer on their grid."""
        states = getattr(found, "reshaped_hidden_states", None) or found.hidden_states or ()
        maps = [state for state in states if state.dim() == 4]
        return maps or [_on_grid(found.last_hidden_state, size, self.image_encoder.config)]

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        if not self.has_text:
            return super().encode_text(texts)
        device = next(self.model.parameters()).device
        longest = getattr(self.model.config.text_config, "max_position_embeddings", None)
        tokens = self.tokenizer(list(texts), padding="max_length" if self._fixed_length else True, truncation=True,
                                max_length=longest, return_tensors="pt").to(device)
        read = ("input_ids",) if self._fixed_length else ("input_ids", "attention_mask")  # not what else some give
        found = self.model.get_text_features(**{name: tokens[name] for name in read})
        return TextFeatures(F.normalize(_vector(found).float(), dim=-1))

    @property
    def _fixed_length(self) -> bool:
        """SigLIP was trained with padding to the whole context, and attends to it."""
        return str(self.model.config.model_type).startswith("siglip")


@contextmanager
def _quiet(encoder: str) -> Iterator[None]:
    """Without what transformers says on the way: what matters in it is checked here. Downloads keep their bars."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if bars and Path(encoder).exists():
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _partial(encoder: str, coverage: Coverage) -> UserError:
    return UserError(f"the files do not hold all weights of their model: {coverage}", where=encoder,
                     expected="config.json and weights that belong together",
                     fix=f"{coverage.first()}; to have what is missing random: --set image.allow_partial=true")


def _fix(encoder: str, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return "where you trust the code that lies beside the weights: --set trust_remote_code=true"
    return "give the folder that holds the file" if Path(encoder).is_file() else ""


def _size(processor: Any) -> int:
    sizes = dict(getattr(processor, "crop_size", None) or processor.size)
    size: int = sizes.get("height") or sizes["shortest_edge"]
    return size


def _vector(found: Any) -> Tensor:
    """Some versions of transformers give the vector, some an output that holds it."""
    out: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return out


def _on_grid(tokens: Tensor, size: int, config: Any) -> Tensor:
    """Tokens (B, prefix + h w, C), or a map already, as a map (B, C, h, w)."""
    if tokens.dim() == 4:
        return tokens
    patch = getattr(config, "patch_size", None)
    side = size // patch if isinstance(patch, int) else 0
    if not 0 < side * side <= tokens.shape[1]:
        raise UserError(f"the {tokens.shape[1]} tokens of this {config.model_type} do not lie on a grid of patches",
                        where="--method", expected="a plain vision transformer, or a network whose maps are images")
    return tokens[:, -side * side :].mT.unflatten(2, (side, side))

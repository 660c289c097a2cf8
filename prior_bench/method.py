"""Method: the encoder interface that every pre-training method fills, and all that a task may ask of one.

A vision-only method leaves `encode_text` out (`has_text = False`); tasks that need text record "not applicable".
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from prior_bench.recipes import Recipe
from prior_bench.types import ImageInput, Report


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """`joint` (B, D) unit length; `map` (B, C, h, w) last feature map, patch tokens laid out on their grid.

    `joint` is None for a vision-only method. `pooled` is the mean over the map, the feature of the linear protocol.
    """

    joint: Tensor | None
    map: Tensor

    @property
    def pooled(self) -> Tensor:
        return self.map.float().mean(dim=(2, 3))


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """`joint` (B, D) unit length; `sentences` (B, S, D), `sentence_mask` (B, S); `words` (B, L, D), `word_mask`."""

    joint: Tensor
    sentences: Tensor | None = None
    sentence_mask: Tensor | None = None
    words: Tensor | None = None
    word_mask: Tensor | None = None


@dataclass(frozen=True, slots=True)
class StudyView:
    """What `Method.view` gets of a study: its images, decoded and fitted, (H, W) uint8 each, and its report."""

    images: tuple[np.ndarray, ...]
    report: Report


Sample = Mapping[str, Any]
Batch = Mapping[str, Any]


class Method(nn.Module, ABC):
    """Base of every method. Outside it images are uint8 (B, 1, H, W); `normalise` makes them what the encoder wants."""

    name: ClassVar[str]
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    has_text: bool = True  # False on an instance whose weights came without a text encoder, too
    pretrains: ClassVar[bool] = True  # False: a reference row without a pre-training step
    trains_on_target: ClassVar[bool] = False  # the supervised ceiling: tasks train the whole encoder from scratch
    recipe_class: ClassVar[type[Recipe]] = Recipe  # a subclass has settings of its own
    image_input: ImageInput
    contrastive: ClassVar[Mapping[str, float]] = {}  # terms that are InfoNCE over the batch, the directions each sums
    local_weight: ClassVar[float] = 1.0  # of `local_score` beside the joint cosine, in the profile `standard-local`

    # --------------------------------------------------------------------------------------- building

    @classmethod
    @abstractmethod
    def from_recipe(cls, recipe: Recipe, texts: Iterable[str] | None = None, tokenizer: Path | None = None) -> Method:
        """A freshly initialised method. Its vocabulary is built from `texts` (training reports) or read from the folder
        `tokenizer` that `save_tokenizer` wrote; recipes that name a hub tokenizer need neither."""

    def save_tokenizer(self, folder: Path) -> None:
        """Write the tokenizer's files beside the weights; nothing for a vision-only method."""

    def adapt_checkpoint(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of a file of the method's authors under this module's names; unknown keys stay as they are.

        Modules are called `image_encoder` and `text_encoder`; `weights.load_checkpoint` counts other keys as heads.
        """
        return state

    # --------------------------------------------------------------------------------------- encoding

    @abstractmethod
    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Features of normalised images (B, channels, H, W) float."""

    def encode_text(self, texts: Sequence[str]) -> TextFeatures:
        """Features of whole reports or prompts; each text is split into sentences as training reports are."""
        raise TypeError(f"{self.name} has no text encoder")

    @abstractmethod
    def pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps (B, C_i, H_i, W_i) of strides 4, 8, 16 and 32 of normalised images, as near as the encoder gives.

        Their sides are any multiples of 32: an encoder that wants others, as of its patch, resizes the images itself.
        """

    @property
    @abstractmethod
    def pyramid_channels(self) -> tuple[int, int, int, int]:
        """C_i of `pyramid`."""

    def local_score(self, images: Tensor, texts: Sequence[str]) -> Tensor | None:
        """(I, T) local image-text scores, each pair independent of the others; None: the method has none."""
        return None

    def sentence_maps(self, images: Tensor, texts: Sequence[str]) -> dict[str, Tensor] | None:
        """By direction of the local alignment ("sentence to image"): (B, h, w), where on image b it sees what text b
        says. Larger is more, on any scale; each pair is independent of the others. None: nothing local is aligned.

        Args: images: normalised (B, channels, S, S), square as `image_input` makes them; texts: B sentences.
        """
        return None

    def prototype_use(self, images: Tensor, texts: Sequence[str]) -> dict[str, Tensor] | None:
        """By what is assigned ("sentences", "images"): (N, K), weights of each of N items over the K prototypes or
        queries; rows sum to 1 and are independent of the other pairs. None: the method has neither.

        Args: images: normalised (B, channels, S, S); texts: their B reports.
        """
        return None

    def paper_zero_shot(self, images: Iterable[Tensor], classes: Sequence[str]) -> Tensor | None:
        """(I, C) zero-shot scores of a whole test set as the method's authors computed them, for the profile `paper`.

        Args: images: normalised, in batches; classes: names of exclusive classes, for which the authors have prompts.
        None: the method has no such protocol.
        """
        return None

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (B, 1, H, W) grey values to float (B, channels, H, W): on 0..1, repeated, minus mean, over std."""
        spec = self.image_input
        x = images.float().div_(255.0).expand(-1, spec.channels, -1, -1)
        mean = torch.tensor(spec.mean, device=x.device).view(1, -1, 1, 1)
        std = torch.tensor(spec.std, device=x.device).view(1, -1, 1, 1)
        return (x - mean) / std

    # --------------------------------------------------------------------------------------- training

    def view(self, study: StudyView, rng: np.random.Generator) -> Sample:
        """One training sample of a study, drawn with `rng`, tokenised and augmented; runs in loader workers."""
        raise self._lacks("view")

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """A batch of samples; padding is cut to the batch's longest text."""
        raise self._lacks("collate")

    def losses(self, batch: Batch, progress: float) -> dict[str, tuple[float, Tensor]]:
        """Loss terms by their paper names: {name: (weight, scalar)}; `progress` in [0, 1) is the share of steps done.

        Reached only through `forward(batch, progress)`, or DistributedDataParallel would not synchronise gradients.
        """
        raise self._lacks("losses")

    def _lacks(self, what: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} defines no `{what}`, which pre-training calls; a method "
                                   "that does not pre-train says `pretrains = False`")

    def forward(self, batch: Batch, progress: float = 0.0) -> dict[str, tuple[float, Tensor]]:
        return self.losses(batch, progress)

    def param_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser; `lr_scale` multiplies the recipe's rate, `weight_decay` overrides it."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step (prototype renormalisation, momentum encoders)."""

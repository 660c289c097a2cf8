"""One adapter that makes any Method a backbone of MMSegmentation and MMDetection.

It takes normalised images (the data preprocessor of MM applied mean and std, once) and gives feature maps of exactly
H/4, H/8, H/16 and H/32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prior_bench.digests import digest_array
from prior_bench.encoders.image import STRIDES, resample
from prior_bench.method import Method

Training = Literal["frozen", "finetune", "scratch"]


@MODELS.register_module()
class MethodBackbone(BaseModule):
    """A method's pyramid as a backbone: (B, channels, H, W) normalised to (B, C_i, H/s, W/s); sides divide by 32.

    Args:
        method: the encoder. It is used as it is when frozen, and copied when trained, so that each cell starts anew.
        training: `frozen`: evaluation mode, no gradient; `finetune`: trained, with its batch-norm statistics frozen;
            `scratch`: trained in every respect.
        levels: which of the strides 4, 8, 16 and 32 are given, as indices.
        keep: bytes of maps that `remembering` may hold.
    """

    def __init__(self, method: Method, training: Training = "frozen", levels: Sequence[int] = (0, 1, 2, 3),
                 keep: int = 1 << 30):
        super().__init__()
        self.kind = training
        self.method = method if training == "frozen" else copy.deepcopy(method)
        self.levels = tuple(levels)
        self.out_channels = tuple(method.pyramid_channels[i] for i in levels)
        self._memory: dict[str, tuple[Tensor, ...]] | None = None
        self._keep, self._kept, self._training_too = keep, 0, False
        self.train()

    def init_weights(self) -> None:
        """Nothing: the weights are the method's."""

    def train(self, mode: bool = True) -> MethodBackbone:
        super().train(mode)
        if self.kind == "frozen":
            self.method.eval()
        elif self.kind == "finetune":
            for module in self.method.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def trained_parameters(self) -> list[nn.Parameter]:
        return [] if self.kind == "frozen" else [p for p in self.method.parameters() if p.requires_grad]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.kind != "frozen":
            return self._encode(images)
        with torch.no_grad():
            come_again = self._memory is not None and (self._training_too or not self.training)
            return self._recall(images) if come_again else self._encode(images)

    @contextmanager
    def remembering(self, training_too: bool = False) -> Iterator[None]:
        """Inside, a frozen encoder keeps the maps of each image it meets, and gives them when it meets it again.

        Validation asks ten times for the same images. The key is the image's content, so nothing else can be given.

        Args: training_too: also in training mode; useful where nothing is augmented.
        """
        self._memory, self._kept, self._training_too = {}, 0, training_too
        try:
            yield
        finally:
            self._memory = None

    def _encode(self, images: Tensor) -> tuple[Tensor, ...]:
        height, width = images.shape[-2:]
        maps = self.method.pyramid(images.contiguous(memory_format=torch.channels_last))
        wanted = [(height // STRIDES[i], width // STRIDES[i]) for i in self.levels]
        return tuple(resample(maps[i], size) for i, size in zip(self.levels, wanted, strict=True))

    def _recall(self, images: Tensor) -> tuple[Tensor, ...]:
        memory = self._memory
        assert memory is not None
        keys = [digest_array(image) for image in images.cpu().numpy()]
        new = [i for i, key in enumerate(keys) if key not in memory]
        fresh: dict[str, tuple[Tensor, ...]] = {}
        if new:
            encoded = [level.permute(0, 2, 3, 1) for level in self._encode(images[new])]  # channels last, for the head
            fresh = {keys[i]: tuple(level[row] for level in encoded) for row, i in enumerate(new)}
            if self._kept < self._keep:
                memory |= {key: tuple(t.clone() for t in maps) for key, maps in fresh.items()}
                self._kept += sum(t.numel() * t.element_size() for maps in fresh.values() for t in maps)
        rows = [memory.get(key) or fresh[key] for key in keys]
        return tuple(torch.stack(level).permute(0, 3, 1, 2) for level in zip(*rows, strict=True))

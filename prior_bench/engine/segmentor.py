"""UPerHead of MMSegmentation on the pyramid of any method: the model, its datasets and its losses.

Import it inside `openmmlab.scope("mmseg")`. A target is binary: one sigmoid channel. Ignored pixels (255) leave both
losses; mmseg's DiceLoss alone would count them as foreground.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.evaluator import BaseMetric
from mmengine.model import bias_init_with_prob
from mmseg.datasets import BaseSegDataset
from mmseg.datasets.transforms import PackSegInputs
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.models.losses import DiceLoss
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor

from prior_bench.data.geometry import IGNORE
from prior_bench.engine.backbone import MethodBackbone, Training
from prior_bench.engine.dense import Augment, DenseImages, scaled_to_bytes
from prior_bench.engine.protocol import LAST_STD, PRIOR, THRESHOLD
from prior_bench.method import Method
from prior_bench.metrics.overlap import decode_mask, encode_mask, overlap_metrics, pixel_counts
from prior_bench.types import ImageInput


class MaskedDiceLoss(DiceLoss):
    """mmseg's DiceLoss with the ignored pixels taken out of prediction and truth, in float32."""

    def forward(self, pred: Tensor, target: Tensor, weight: Any = None, ignore_index: int = IGNORE, **_: Any) -> Tensor:
        """Args: pred: logits (N, 1, H, W); target: (N, H, W) of 0, 1 and `ignore_index`."""
        counted = (target != ignore_index).unsqueeze(1)
        truth = (target == 1).unsqueeze(1) & counted
        loss: Tensor = super().forward(pred.float().sigmoid() * counted, truth.float())
        return loss


def build_segmentor(method: Method, training: Training, spec: ImageInput, channels: int) -> EncoderDecoder:
    """UPerNet (Xiao et al. 2018) for one foreground class, `channels` wide, on strides 4 to 32."""
    losses = [{"type": "CrossEntropyLoss", "use_sigmoid": True, "avg_non_ignore": True},
              {"type": MaskedDiceLoss, "activate": False, "ignore_index": None}]
    head = {"type": "UPerHead", "in_channels": list(method.pyramid_channels), "in_index": [0, 1, 2, 3],
            "channels": channels, "num_classes": 2, "out_channels": 1, "threshold": THRESHOLD, "ignore_index": IGNORE,
            "norm_cfg": {"type": "BN"}, "align_corners": False, "loss_decode": losses,
            "init_cfg": {"type": "Normal", "std": LAST_STD, "bias": bias_init_with_prob(PRIOR),
                         "override": {"name": "conv_seg"}}}
    return EncoderDecoder(backbone={"type": MethodBackbone, "method": method, "training": training}, decode_head=head,
                          data_preprocessor=SegDataPreProcessor(size=(spec.size, spec.size), **scaled_to_bytes(spec)),
                          test_cfg=ConfigDict(mode="whole"))


class MaskDataset(BaseSegDataset):
    """Images with masks at the dense size, or images alone.

    Args:
        mask: source mask (H, W) uint8 by image id, 0, 1 or 255; None: without masks, for prediction.
        rng: augments with it; None: no augmentation.
    """

    def __init__(self, images: DenseImages, ids: Sequence[str], mask: Callable[[str], np.ndarray] | None = None,
                 rng: np.random.Generator | None = None):
        self._images, self._ids, self._mask = images, list(ids), mask
        pipeline: list[Callable[[dict[str, Any]], Any]] = [self._load]
        if rng is not None:
            pipeline.append(Augment(rng))
        pipeline.append(PackSegInputs(meta_keys=("img_id", "img_shape", "ori_shape")))
        super().__init__(pipeline=pipeline, serialize_data=False, ignore_index=IGNORE,
                         metainfo={"classes": ("background", "foreground"), "palette": [[0, 0, 0], [255, 255, 255]]})

    def load_data_list(self) -> list[dict[str, Any]]:
        return [{"img_id": id} for id in self._ids]

    def _load(self, entry: dict[str, Any]) -> dict[str, Any]:
        id = entry["img_id"]
        sample = self._images.sample(id)
        if self._mask is not None:
            sample["gt_seg_map"] = self._images.geometry(id).mask(self._mask(id))
        return sample


class OverlapMetric(BaseMetric):
    """Overlap metrics of validation images in source pixels. Args: truth: as `mask` of `MaskDataset`."""

    default_prefix = ""

    def __init__(self, images: DenseImages, truth: Callable[[str], np.ndarray]):
        super().__init__()
        self._images, self._truth = images, truth
        self._known: dict[str, tuple[str, str]] = {}  # run-length codes: validation comes again and again

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        for sample in data_samples:
            id = sample["img_id"]
            geometry = self._images.geometry(id)
            if id not in self._known:
                truth = self._truth(id)
                self._known[id] = encode_mask(truth == 1), encode_mask(truth == IGNORE)
            lesion, ignore = (decode_mask(counts, *geometry.source) for counts in self._known[id])
            self.results.append(pixel_counts(geometry.mask_back(probability(sample)) > THRESHOLD, lesion, ignore))

    def compute_metrics(self, results: list[tuple[int, int, int]]) -> dict[str, float]:
        return overlap_metrics(np.array(results))


def probability(sample: Any) -> np.ndarray:
    """Foreground probability (S, S) float32 of a predicted data sample, as object or as MMEngine's dict of it."""
    logits = sample["seg_logits"]["data"] if isinstance(sample, dict) else sample.seg_logits.data
    assert isinstance(logits, torch.Tensor)
    return logits[0].float().cpu().numpy()  # MMSegmentation has applied the sigmoid

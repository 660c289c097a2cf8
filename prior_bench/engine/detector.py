"""YOLOv3 of MMDetection on the pyramid of any method: the model and its datasets.

Import it inside `openmmlab.scope("mmdet")`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.datasets import BaseDetDataset
from mmdet.datasets.transforms import PackDetInputs
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.dense_heads import YOLOV3Head
from mmdet.models.detectors import YOLOV3
from mmengine.config import ConfigDict
from mmengine.evaluator import BaseMetric
from torch import Tensor

from prior_bench.data.dataset import Boxes
from prior_bench.engine.backbone import MethodBackbone, Training
from prior_bench.engine.dense import DenseImages, scaled_to_bytes
from prior_bench.method import Method
from prior_bench.metrics.boxes import ImageBoxes, box_metrics, match
from prior_bench.types import ImageInput

MIN_SIDE = 1.0  # input pixels, of a box to train on: a crop may have cut it away
# Anchors of YOLOv3 (Redmon and Farhadi 2018), width and height at 416 px, for strides 32, 16, 8
ANCHORS = (((116, 90), (156, 198), (373, 326)), ((30, 61), (62, 45), (59, 119)), ((10, 13), (16, 30), (33, 23)))
_ANCHOR_SIZE = 416


@dataclass(frozen=True, slots=True)
class Suppression:
    """From candidates to detections: the best `candidates` by score, NMS per class at `iou`, the best `boxes`."""

    candidates: int
    iou: float
    boxes: int


class RankedYOLOV3Head(YOLOV3Head):
    """MMDetection's head with its last layer in float32 and its candidates ranked by the score that they leave with.

    In bf16 scores would tie and boxes shift by a pixel. MMDetection picks candidates by class probability and
    multiplies objectness in later; without a score threshold that would keep boxes of no object.
    """

    def forward(self, x: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...]]:
        maps = [bridge(level) for bridge, level in zip(self.convs_bridge, x, strict=True)]
        with torch.autocast(x[0].device.type, enabled=False):
            return (tuple(predict(m.float()) for predict, m in zip(self.convs_pred, maps, strict=True)),)

    def predict_by_feat(self, pred_maps: Sequence[Tensor], *arguments: Any, **keywords: Any) -> Any:
        return super().predict_by_feat([self._scored(m) for m in pred_maps], *arguments, **keywords)

    def _scored(self, pred_map: Tensor) -> Tensor:
        """The map (B, anchors x (5 + classes), h, w) with class logits of objectness x class and objectness 1."""
        x = pred_map.unflatten(1, (self.num_base_priors, self.num_attrib)).clone()
        score = F.logsigmoid(x[:, :, 4:5]) + F.logsigmoid(x[:, :, 5:])
        x[:, :, 5:] = score - torch.log1p(-score.exp().clamp(max=1 - 1e-7))
        x[:, :, 4] = 100.0
        return x.flatten(1, 2)


def build_detector(method: Method, training: Training, spec: ImageInput, channels: int, classes: int,
                   suppression: Suppression) -> YOLOV3:
    """YOLOv3 on strides 8, 16 and 32. `channels` is the neck's width at stride 32; 512 is the original's."""
    backbone = {"type": MethodBackbone, "method": method, "training": training, "levels": (1, 2, 3)}
    c8, c16, c32 = method.pyramid_channels[1:]
    widths = [channels, channels // 2, channels // 4]
    anchors = [[(w * spec.size / _ANCHOR_SIZE, h * spec.size / _ANCHOR_SIZE) for w, h in level] for level in ANCHORS]
    summed = {"type": "CrossEntropyLoss", "use_sigmoid": True, "reduction": "sum"}
    head = {"type": RankedYOLOV3Head, "num_classes": classes, "in_channels": widths,
            "out_channels": [2 * w for w in widths], "bbox_coder": {"type": "YOLOBBoxCoder"},
            "anchor_generator": {"type": "YOLOAnchorGenerator", "base_sizes": anchors, "strides": [32, 16, 8]},
            "loss_cls": summed, "loss_conf": summed, "loss_xy": summed | {"loss_weight": 2.0},
            "loss_wh": {"type": "MSELoss", "reduction": "sum", "loss_weight": 2.0}}
    assigner = {"type": "GridAssigner", "pos_iou_thr": 0.5, "neg_iou_thr": 0.5, "min_pos_iou": 0}
    return YOLOV3(backbone=backbone,
                  neck={"type": "YOLOV3Neck", "num_scales": 3, "in_channels": [c32, c16, c8], "out_channels": widths},
                  bbox_head=head, train_cfg=ConfigDict(assigner=assigner),
                  test_cfg=ConfigDict(nms_pre=suppression.candidates, min_bbox_size=0, score_thr=0, conf_thr=0,
                                      nms={"type": "nms", "iou_threshold": suppression.iou},
                                      max_per_img=suppression.boxes),
                  data_preprocessor=DetDataPreprocessor(**scaled_to_bytes(spec)))


class BoxDataset(BaseDetDataset):
    """Images with boxes at the dense size, or images alone. Images without boxes stay.

    Args: boxes: source boxes by image id; None: without boxes, for prediction.
    """

    def __init__(self, images: DenseImages, ids: Sequence[str], classes: Sequence[str],
                 boxes: Callable[[str], Boxes] | None = None):
        self._images, self._ids, self._boxes = images, list(ids), boxes
        pack = PackDetInputs(meta_keys=("img_id", "img_shape", "ori_shape", "scale_factor"))
        super().__init__(pipeline=[self._load, pack], serialize_data=False, metainfo={"classes": tuple(classes)})

    def load_data_list(self) -> list[dict[str, Any]]:
        return [{"img_id": id} for id in self._ids]

    def _load(self, entry: dict[str, Any]) -> dict[str, Any]:
        id = entry["img_id"]
        sample = self._images.sample(id)
        if self._boxes is not None:
            boxes = self._boxes(id)
            xyxy = self._images.geometry(id).boxes(boxes.xyxy)
            visible = (xyxy[:, 2:] - xyxy[:, :2]).min(axis=1) >= MIN_SIDE
            sample |= {"gt_bboxes": xyxy[visible], "gt_bboxes_labels": boxes.labels[visible].astype(np.int64)}
        return sample


class BoxMetric(BaseMetric):
    """Detection metrics of validation images in source pixels. Args: truth: as `boxes` of `BoxDataset`."""

    default_prefix = ""

    def __init__(self, images: DenseImages, classes: Sequence[str], truth: Callable[[str], Boxes]):
        super().__init__()
        self._images, self._classes, self._truth = images, classes, truth

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        for sample in data_samples:
            truth = self._truth(sample["img_id"])
            boxes, scores, labels = found_boxes(sample)
            boxes = self._images.geometry(sample["img_id"]).boxes_back(boxes)
            self.results.append(ImageBoxes(boxes, scores, labels, truth.xyxy, truth.labels))

    def compute_metrics(self, results: list[ImageBoxes]) -> dict[str, float]:
        metrics = box_metrics(match(results, len(self._classes)), self._classes)
        return {name: float(values[0]) for name, values in metrics.items()}


def found_boxes(sample: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (n, 4) in input pixels, scores (n,) and labels (n,) of a predicted data sample, by falling score."""
    found = sample["pred_instances"] if isinstance(sample, dict) else sample.pred_instances
    boxes, scores, labels = (found[name].cpu().numpy() for name in ("bboxes", "scores", "labels"))
    return boxes, scores, labels

"""Layouts of released checkpoints: which file it is, and its image and text encoder under common names.

Image encoders come out under torchvision's and timm's names (`conv1.weight`, `layer1.0...`, `blocks.0...`), text
encoders under those of transformers' BERT. Encoders and `prior-bench weights inspect` share the table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

_NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}  # of a Sequential


@dataclass(frozen=True, slots=True)
class Layout:
    """One kind of file: `marker` is the start of a key that tells it; `image` and `text` are prefixes of encoders."""

    name: str
    title: str
    marker: str
    image: str
    text: str = ""
    note: str = ""


# The first whose marker some key starts with; the more telling come first.
LAYOUTS = (
    Layout("ours", "prior-bench", "image_encoder.model.", "image_encoder.model.", "text_encoder.model."),
    Layout("prior-full", "PRIOR, image and text", "sentence_bank.", "image_encoder.encoder.", "text_encoder.encoder."),
    Layout("gloria", "GLoRIA", "gloria.img_encoder.", "gloria.img_encoder.model.", "gloria.text_encoder.model."),
    Layout("mgca", "MGCA", "img_encoder_q.", "img_encoder_q.model.", "text_encoder_q.model."),
    Layout("convirt-mgca", "ConVIRT of MGCA's repository", "img_encoder.global_embed.", "img_encoder.model.",
           "text_encoder.model."),
    Layout("convirt-benchx", "ConVIRT of BenchX", "vis_proj.", "visual.model.", "linguistic.encoder."),
    Layout("convirt-edreis", "ConVIRT of edreisMD", "res_l1.", "res_features.", "bert_model."),
    Layout("medklip", "MedKLIP", "res_features.", "res_features.",
           note="layer4 was not trained and is not in the file"),
    Layout("medclip", "MedCLIP, ResNet-50", "vision_model.model.", "vision_model.model.", "text_model.model."),
    Layout("refers", "REFERS", "visual.vit.", "visual.vit."),
    Layout("ptunifier", "PTUnifier", "vision_encoder.", "vision_encoder.visual."),
    Layout("benchx", "a model of BenchX", "visual.model.", "visual.model.", "linguistic.encoder."),
    Layout("cxr-clip", "CXR-CLIP", "image_encoder.resnet.", "image_encoder.resnet.", "text_encoder.text_encoder."),
    Layout("biovil", "BioViL, image", "encoder.encoder.", "encoder.encoder."),
    Layout("wrapper", "an encoder in a wrapper (PRIOR's, M-FLAG's)", "encoder.conv1.", "encoder."),
    Layout("mrm", "MRM", "decoder_pos_embed", "", note="the decoder and the report branch are left out"),
    Layout("resnet", "a ResNet with torchvision's names", "layer1.", ""),
    Layout("vit", "a vision transformer with timm's names", "blocks.", ""),
)
_NO_ENCODER = re.compile(r"(fc|head|classifier|decoder|bert|mask)[._]")


def recognise(state: Mapping[str, Tensor]) -> Layout | None:
    """The layout of a state dict, out of its wrappers; None where no key is known."""
    for layout in LAYOUTS:
        if any(key.startswith(layout.marker) for key in state):
            return layout
    return None


def image_state(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The image encoder's tensors under torchvision's or timm's names, without classifier and decoder."""
    found = {}
    for key, value in state.items():
        if not key.startswith(layout.image):
            continue
        name = key.removeprefix(layout.image)
        number, _, rest = name.partition(".")
        if layout.name in {"convirt-edreis", "medklip"} and number in _NUMBERED:
            name = f"{_NUMBERED[number]}.{rest}"
        if not _NO_ENCODER.match(name):
            found[name] = value
    return found


def text_state(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The text encoder's tensors under the names of transformers' BERT; empty where the file has none."""
    if not layout.text:
        return {}
    return {key.removeprefix(layout.text): value for key, value in state.items() if key.startswith(layout.text)
            and not key.endswith("position_ids")}


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Keys whose start is in `names` (their start: ours), the first that fits; other keys stay as they are."""
    def rename(key: str) -> str:
        for theirs, ours in names.items():
            if key.startswith(theirs):
                return ours + key.removeprefix(theirs)
        return key

    return {rename(key): value for key, value in state.items()}

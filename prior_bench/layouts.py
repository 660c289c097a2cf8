"""Layouts of released checkpoints: which file it is, and its image and text encoder under common names.

Image encoders come out under torchvision's and timm's names (`conv1.weight`, `layer1.0...`, `blocks.0...`), text
encoders under those of transformers' BERT. Encoders and `prior-bench weights inspect` share the table. Names were read
in the methods' public code, not in the released files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

_NUMBERED = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}  # of a Sequential
# Other families' names by a start that tells them: parts of a name and what timm has there, replaced in this order.
_TIMM_NAMES = {
    "transformer.embeddings.": (  # ViT-pytorch, after Google's code
        ("transformer.embeddings.patch_embeddings.", "patch_embed.proj."),
        ("transformer.embeddings.position_embeddings", "pos_embed"), ("transformer.embeddings.cls_token", "cls_token"),
        ("transformer.encoder.encoder_norm.", "norm."), ("transformer.encoder.layer.", "blocks."),
        (".attention_norm.", ".norm1."), (".ffn_norm.", ".norm2."), (".ffn.", ".mlp."), (".attn.out.", ".attn.proj.")),
    "Transformer/": (  # Google's .npz
        ("Transformer/posembed_input/pos_embedding", "pos_embed"), ("Transformer/encoder_norm/", "norm."),
        ("Transformer/encoderblock_", "blocks."), ("/LayerNorm_0/", ".norm1."), ("/LayerNorm_2/", ".norm2."),
        ("/MlpBlock_3/Dense_0/", ".mlp.fc1."), ("/MlpBlock_3/Dense_1/", ".mlp.fc2."),
        ("/MultiHeadDotProductAttention_1/out/", ".attn.proj."), ("/MultiHeadDotProductAttention_1/", ".attn."),
        ("embedding/", "patch_embed.proj."), ("/", "."), ("cls", "cls_token"), ("kernel", "weight"),
        ("scale", "weight")),
    "embeddings.patch_embeddings.projection.": (  # transformers' Swin
        ("embeddings.patch_embeddings.projection.", "patch_embed.proj."), ("embeddings.norm.", "patch_embed.norm."),
        ("encoder.layers.", "layers."), ("layernorm_before.", "norm1."), ("layernorm_after.", "norm2."),
        ("layernorm.", "norm."), (".attention.self.", ".attn."), (".attention.output.dense.", ".attn.proj."),
        (".intermediate.dense.", ".mlp.fc1."), (".output.dense.", ".mlp.fc2.")),
}
FIRST_KERNELS = ("conv1.weight", "patch_embed.proj.weight")  # of image encoders, by their common names


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
    Layout("mgca-vit", "MGCA, ViT", "img_encoder_q.model.blocks.", "img_encoder_q.model.", "text_encoder_q.model."),
    Layout("mgca", "MGCA, ResNet", "img_encoder_q.", "img_encoder_q.model.", "text_encoder_q.model."),
    Layout("convirt-mgca-vit", "ConVIRT of MGCA's repository, ViT", "img_encoder.model.blocks.", "img_encoder.model.",
           "text_encoder.model."),
    Layout("convirt-mgca", "ConVIRT of MGCA's repository, ResNet", "img_encoder.global_embed.", "img_encoder.model.",
           "text_encoder.model."),
    Layout("convirt-benchx", "ConVIRT of BenchX", "vis_proj.", "visual.model.", "linguistic.encoder."),
    Layout("convirt-edreis", "ConVIRT of edreisMD", "bert_l1.", "res_features.", "bert_model."),
    Layout("medklip", "MedKLIP", "res_features.", "res_features.",
           note="layer4 is no part of the model and not in the file"),
    Layout("medclip-swin", "MedCLIP, Swin-T", "vision_model.model.embeddings.", "vision_model.model.",
           "text_model.model."),
    Layout("medclip", "MedCLIP, ResNet-50", "vision_model.model.", "vision_model.model.", "text_model.model."),
    Layout("refers", "REFERS", "visual.vit.", "visual.vit."),
    Layout("ptunifier", "PTUnifier", "vision_encoder.visual.", "vision_encoder.visual.", "language_encoder.",
           note="a CLIP without its last block"),
    Layout("clip", "OpenAI's CLIP", "visual.class_embedding", "visual."),
    Layout("benchx", "a model of BenchX", "visual.model.", "visual.model.", "linguistic.encoder."),
    Layout("cxr-clip", "CXR-CLIP, ResNet-50", "image_encoder.resnet.", "image_encoder.resnet.",
           "text_encoder.text_encoder."),
    Layout("cxr-clip-swin", "CXR-CLIP, Swin-T", "image_encoder.image_encoder.", "image_encoder.image_encoder.",
           "text_encoder.text_encoder."),
    Layout("biovil", "BioViL, image", "encoder.encoder.", "encoder.encoder."),
    Layout("wrapper", "an encoder in a wrapper (PRIOR's, M-FLAG's)", "encoder.conv1.", "encoder."),
    Layout("moco", "MoCo, query encoder", "encoder_q.layer1.", "encoder_q."),
    Layout("mrm", "MRM", "decoder_pos_embed", "", note="the decoder and the report branch are left out"),
    Layout("vit-npz", "a vision transformer of Google's, .npz", "Transformer/encoderblock_0/", ""),
    Layout("vit-pytorch", "a vision transformer with ViT-pytorch's names", "transformer.embeddings.", ""),
    Layout("resnet", "a ResNet with torchvision's names", "layer1.", ""),
    Layout("vit", "a vision transformer with timm's names", "blocks.", ""),
)
# A part that is a number stands before the blocks of each stage of a network with stages, as Swin.
_BEHIND_PREFIX = re.compile(r"((?:[^.]*[^.\d][^.]*\.)+?)(?:layer1|blocks)\.0\.")
_NO_ENCODER = re.compile(r"(fc|head|pre_logits|classifier|decoder|bert|mask)[._/]|proj$|.*relative_position_index$")


def recognise(state: Mapping[str, Tensor]) -> Layout | None:
    """The layout of a state dict, out of its wrappers; None where no key is known. Plain names of an image encoder are
    known behind a prefix, too, where only one has them."""
    for layout in LAYOUTS:
        if any(key.startswith(layout.marker) for key in state):
            return layout
    prefixes = {found[1] for key in state if (found := _BEHIND_PREFIX.match(key))}
    if len(prefixes) != 1:
        return None
    (prefix,) = prefixes
    return Layout("prefix", f"an image encoder with plain names behind {prefix!r}", prefix, prefix)


def image_state(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The image encoder's tensors under torchvision's or timm's names, without classifier and decoder. (CLIP's keep
    their names: timm itself converts them, `encoders.image.timm_state`.)"""
    found = {}
    for key, value in state.items():
        if not key.startswith(layout.image):
            continue
        name = key.removeprefix(layout.image)
        number, _, rest = name.partition(".")
        if layout.name in {"convirt-edreis", "medklip"} and number in _NUMBERED:
            name = f"{_NUMBERED[number]}.{rest}"
        if not _NO_ENCODER.match(name):
            found[name] = _from_jax(name, value) if layout.name == "vit-npz" else value
    for start, parts in _TIMM_NAMES.items():
        if any(name.startswith(start) for name in found):
            return _fused({_replaced(name, parts): value for name, value in found.items()})
    return found


def _from_jax(name: str, value: Tensor) -> Tensor:
    """A tensor of Google's with its axes as PyTorch has them: theirs has inputs first, and an axis for heads."""
    if "/MultiHeadDotProductAttention_" in name:
        if name.endswith("/bias"):
            return value.flatten()
        return (value.flatten(0, 1) if "/out/" in name else value.flatten(1)).T
    if name.endswith("/kernel"):
        return value.permute(3, 2, 0, 1) if value.dim() == 4 else value.T
    return value


def _replaced(name: str, parts: Iterable[tuple[str, str]]) -> str:
    for theirs, ours in parts:
        name = name.replace(theirs, ours)
    return name


def _fused(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values of each block in one table, as timm has them."""
    fused = dict(state)
    for query in [key for key in state if ".attn.query." in key]:
        parts = [query.replace(".query.", f".{role}.") for role in ("query", "key", "value")]
        if all(part in state for part in parts):
            fused[query.replace(".query.", ".qkv.")] = torch.cat([fused.pop(part) for part in parts])
    return fused


def text_state(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """The text encoder's tensors under the names of transformers' BERT; empty where the file has none."""
    if not layout.text:
        return {}
    return {key.removeprefix(layout.text): value for key, value in state.items() if key.startswith(layout.text)
            and not key.endswith("position_ids") and ".crossattention." not in key}


def renamed(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Keys whose start is in `names` (their start: ours), the first that fits; other keys stay as they are."""
    return {rename(key, names): value for key, value in state.items()}


def rename(key: str, names: Mapping[str, str]) -> str:
    """One key, as in `renamed`."""
    return next((ours + key.removeprefix(theirs) for theirs, ours in names.items() if key.startswith(theirs)), key)

"""Names in the files that PRIOR's authors released, and ours: image-only ResNet-50, its wrapper, and the full model."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from prior_bench.layouts import rename, renamed

# What no forward pass of the authors' model uses: the classifier, the unused text projection, the decoder's word table.
_UNUSED = re.compile(r"(fc|classifier)\.|global_text_projection\.|sentence_decoder\.embeddings\.word_embeddings\."
                     r"|.*\.position_ids$")
_WRAPPED_PROJECTION = re.compile(r"((?:global|local)_(?:image|text)_projection)\.0\.")  # of October 2023
_FULL = {
    "image_encoder.encoder.": "image_encoder.model.",
    "image_encoder.atten_pool.": "image_pool.",
    "text_encoder.encoder.": "text_encoder.model.",
    "global_text_attention.": "sentence_pool.",
    "sentence_bank.": "bank.",
    "prototype_queries": "sentence_decoder.queries",
    "sentence_decoder.embeddings.LayerNorm.": "sentence_decoder.norm.",
    "sentence_decoder.embeddings.": "sentence_decoder.",
    "image_decoder.output_head.0.": "image_decoder.head.",
    **{f"local_cross_attention.{role}{side}.": f"cross_attention.{name}_{role}."
       for role in ("query", "key", "value") for side, name in ((1, "image"), (2, "text"))},
}
_WRAPPER = {"encoder.": "image_encoder.model.", "atten_pool.": "image_pool."}
_DECODER_LAYER = re.compile(r"sentence_decoder\.encoder\.layer\.(\d+)\.(.*)")
_DECODER_PARTS = {
    "attention.output.dense.": "self_attn.out_proj.",
    "attention.output.LayerNorm.": "norm1.",
    "crossattention.output.dense.": "multihead_attn.out_proj.",
    "crossattention.output.LayerNorm.": "norm2.",
    "intermediate.dense.": "linear1.",
    "output.dense.": "linear2.",
    "output.LayerNorm.": "norm3.",
}
_ATTENTION = re.compile(r"(attention|crossattention)\.self\.(query|key|value)\.(weight|bias)")
_OURS = {"attention": "self_attn", "crossattention": "multihead_attn"}


def is_ours(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("image_encoder.model.") for key in state)


def adapt(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official state dict under our names. The full model's local tokens are laid out without a transpose, which is
    noted in it (README.md, deviation 1)."""
    state = {_WRAPPED_PROJECTION.sub(r"\1.", k): v for k, v in state.items() if not _UNUSED.match(k)}
    if "image_encoder.encoder.conv1.weight" in state:
        return _fuse_decoder(renamed(state, _FULL)) | {"official_layout": torch.tensor(True)}
    if "encoder.conv1.weight" in state:
        return renamed(state, _WRAPPER)
    if "conv1.weight" in state:
        return {f"image_encoder.model.{key}": value for key, value in state.items()}
    return state


def _fuse_decoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BERT's decoder layers as PyTorch's: the same layer, with query, key and value in one table."""
    fused: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        layer = _DECODER_LAYER.fullmatch(key)
        if layer is None:
            fused[key] = value
            continue
        prefix, rest = f"sentence_decoder.layers.layers.{layer[1]}.", layer[2]
        if attention := _ATTENTION.fullmatch(rest):
            parts.setdefault(f"{prefix}{_OURS[attention[1]]}.in_proj_{attention[3]}", {})[attention[2]] = value
        else:
            fused[prefix + rename(rest, _DECODER_PARTS)] = value
    for key, three in parts.items():
        fused[key] = torch.cat([three[role] for role in ("query", "key", "value") if role in three])
    return fused

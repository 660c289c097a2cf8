"""Image encoders: any timm model by name, seen as a last feature map and a pyramid of strides 4, 8, 16 and 32."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prior_bench.errors import UserError, unknown_name
from prior_bench.layouts import image_state, recognise
from prior_bench.recipes import ImageEncoderSpec
from prior_bench.state_files import check_finite, converting, read_state
from prior_bench.types import ImageInput
from prior_bench.weights import IMAGE, Coverage, coverage_of, fit_state
from prior_bench.weights_file import inspecting

STRIDES = (4, 8, 16, 32)


def image_input(spec: ImageEncoderSpec, interpolation: Literal["bilinear", "bicubic"] = "bilinear") -> ImageInput:
    """How an encoder built from `spec` wants its images. Grey statistics serve all channels where only one is given."""
    def per_channel(values: tuple[float, ...]) -> tuple[float, ...]:
        return values * spec.channels if len(values) == 1 else values

    return ImageInput(size=spec.size, channels=spec.channels, mean=per_channel(spec.mean), std=per_channel(spec.std),
                      interpolation=interpolation, fit=spec.fit)


@dataclass(frozen=True, slots=True)
class ClassToken:
    """A transformer's class token (B, C), its patches (B, C, h, w), and the last block's attention of the token to each
    patch (B, h w), averaged over heads, without gradient."""

    token: Tensor
    map: Tensor
    attention: Tensor


class ImageEncoder(nn.Module):
    """A timm model without its classifier.

    `forward` gives the last map (B, channels, h, w); for a transformer its normalised patch tokens on their grid. A
    plain transformer has one stride: its pyramid is the last map resampled (the simple pyramid of ViTDet, Li et al.
    2022, without its learned layers), and images are resized to the nearest multiple of its patch first. A network that
    ends before stride 32 is pooled from its last map on. `coverage` says what a local weights file filled.
    """

    def __init__(self, spec: ImageEncoderSpec):
        super().__init__()
        self.model = _create(spec)
        self.coverage: Coverage | None = None
        if spec.weights not in ("random", "hub"):
            self.coverage = _load_file(self.model, Path(spec.weights), spec.allow_partial)
        stages = [(s["reduction"], s["num_chs"]) for s in _stages(self.model)[: spec.first_layers]]
        strides = [stride for stride, _ in stages]
        self.last = len(stages) - 1
        self.stride: int = strides[-1]
        self.channels: int = stages[-1][1]
        self.plain = len(set(strides)) == 1
        if self.plain:
            self.pyramid_channels = (self.channels,) * 4
        else:
            missing = [s for s in STRIDES if s <= max(self.stride, STRIDES[0]) and s not in strides]
            if missing:
                raise UserError(f"the image encoder {spec.name!r} has no feature maps of stride {missing}",
                                where="image.name", expected="a plain transformer, or strides 4, 8, 16 and 32")
            present = [s for s in STRIDES if s in strides]
            self.levels = [len(strides) - 1 - strides[::-1].index(s) for s in present]  # the last map of each stride
            c4, c8, c16, c32 = [stages[i][1] for i in self.levels] + [self.channels] * (len(STRIDES) - len(present))
            self.pyramid_channels = (c4, c8, c16, c32)

    def grid(self, size: int) -> int:
        """Side of the last map for square images of `size` pixels."""
        return self._rounded(size) // self.stride if self.plain else -(-size // self.stride)

    def forward(self, images: Tensor) -> Tensor:
        return self._maps(images, [self.last])[0]

    def whole(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """One vector (B, channels) of each image, a plain transformer's class token or the mean of the last map, and
        the last map (B, channels, h, w)."""
        if self.plain:
            seen = self.with_class_token(images)
            return seen.token, seen.map
        last = self(images)
        return last.mean(dim=(2, 3)), last

    def with_class_token(self, images: Tensor) -> ClassToken:
        """A plain transformer's class token, its patch tokens on their grid, and who the token attends to."""
        if not getattr(self.model, "num_prefix_tokens", 0):
            raise UserError("the image encoder has no class token, which this method reads", where="image.name",
                            expected="a plain vision transformer with one, such as vit_tiny_patch16_224")
        attended: list[Tensor] = []
        last = self.model.blocks[-1].attn  # type: ignore[union-attr, index]
        hook = last.register_forward_pre_hook(lambda module, inputs: attended.append(inputs[0]))
        try:
            maps = self.model.forward_intermediates(  # type: ignore[operator]
                self._fitted(images), indices=[self.last], norm=True, stop_early=True, output_fmt="NCHW",
                intermediates_only=True, return_prefix_tokens=True)
        finally:
            hook.remove()
        patches, prefix = maps[0]
        with torch.no_grad():
            qkv = last.qkv(attended[0]).unflatten(-1, (3, last.num_heads, -1))  # (B, N, 3, heads, d)
            query, key = last.q_norm(qkv[:, 0, 0]), last.k_norm(qkv[:, :, 1])
            scores = torch.einsum("bhd,bnhd->bhn", query.float(), key.float()) * last.scale
            weights = scores.softmax(dim=-1).mean(dim=1)[:, prefix.shape[1] :]
        return ClassToken(prefix[:, 0], patches, weights)

    def visible_tokens(self, images: Tensor, kept: Tensor) -> Tensor:
        """A plain transformer that reads some of the patches alone, as MAE's encoder (He et al., 2022).

        Args: kept: indices (B, n) of the patches on their grid, row by row. Returns: (B, n, channels).
        """
        model: Any = self.model
        tokens = model._pos_embed(model.patch_embed(self._fitted(images)))
        prefix, patches = tokens[:, : model.num_prefix_tokens], tokens[:, model.num_prefix_tokens :]
        some = patches.gather(1, kept.unsqueeze(-1).expand(-1, -1, patches.shape[2]))
        out: Tensor = model.norm(model.blocks(model.norm_pre(torch.cat([prefix, some], dim=1))))
        return out[:, model.num_prefix_tokens :]

    def pyramid(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Maps of strides 4, 8, 16 and 32 (B, C_i, H/s, W/s)."""
        if not self.plain:
            maps = self._maps(images, self.levels)
            while len(maps) < len(STRIDES):
                maps.append(F.avg_pool2d(maps[-1], 2, ceil_mode=True))
            p4, p8, p16, p32 = maps
            return p4, p8, p16, p32
        last = self(images)
        height, width = images.shape[-2:]
        p4, p8, p16, p32 = (resample(last, (height // s, width // s)) for s in STRIDES)
        return p4, p8, p16, p32

    def _maps(self, images: Tensor, indices: list[int]) -> list[Tensor]:
        images = self._fitted(images)
        maps: list[Tensor] = self.model.forward_intermediates(  # type: ignore[operator]
            images, indices=indices, norm=True, stop_early=True, output_fmt="NCHW", intermediates_only=True)
        return maps

    def _fitted(self, images: Tensor) -> Tensor:
        """Images whose sides a transformer's patch divides."""
        height, width = images.shape[-2:]
        wanted = (self._rounded(height), self._rounded(width))
        if not self.plain or wanted == (height, width):
            return images
        return F.interpolate(images, wanted, mode="bilinear", antialias=True)

    def _rounded(self, size: int) -> int:
        return max(1, round(size / self.stride)) * self.stride


def resample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear where the map grows, mean over the covered area where it shrinks."""
    if x.shape[-2:] == size:
        return x
    if size[0] > x.shape[-2]:
        return F.interpolate(x, size, mode="bilinear", align_corners=False)
    return F.adaptive_avg_pool2d(x, size)


def _stages(model: nn.Module) -> list[dict[str, int]]:
    info = model.feature_info
    return list(info if isinstance(info, list) else info.info)  # type: ignore[union-attr, arg-type]


def _create(spec: ImageEncoderSpec) -> nn.Module:
    """The timm model. With "hub" weights and one channel, timm sums the first kernel over RGB."""
    base = spec.name.partition(".")[0]
    if not timm.is_model(base):
        raise unknown_name("image encoder", spec.name, timm.list_models(), where="image.name")
    options: dict[str, Any] = {"num_classes": 0, "global_pool": "", "in_chans": spec.channels}
    config = timm.get_pretrained_cfg(base)
    fixed_size = config is not None and config.fixed_input_size  # a transformer: its tables are made for one size
    hub = spec.weights == "hub"
    try:
        if not fixed_size:
            model: nn.Module = timm.create_model(spec.name, pretrained=hub, **options)
        else:
            options["img_size"] = spec.size
            try:
                model = timm.create_model(spec.name, pretrained=hub, **options, dynamic_img_size=True)
            except TypeError:  # windowed transformers stay at one size
                model = timm.create_model(spec.name, pretrained=hub, **options)
    except (OSError, RuntimeError) as error:
        if not hub:
            raise
        raise UserError(
            f"the weights of {spec.name!r} could not be fetched from the hub: {error}", where="image.weights",
            fix="give image.weights the path of a local file, or run once where the hub can be reached") from error
    if spec.first_layers is not None:
        if spec.first_layers > len(_stages(model)):
            raise UserError(f"the image encoder {spec.name!r} has fewer than {spec.first_layers} levels of features",
                            where="image.first_layers", expected=f"at most {len(_stages(model))}")
        model.prune_intermediate_layers([spec.first_layers - 1])  # type: ignore[operator]
    return model


def fit_channels(kernel: Tensor, channels: int) -> Tensor:
    """A first kernel (out, in, kh, kw) for grey images repeated over `channels`: RGB kernels are summed to one channel,
    one-channel kernels repeated and divided, so that either answers a grey image as before."""
    if kernel.shape[1] == channels:
        return kernel
    return kernel.sum(dim=1, keepdim=True).expand(-1, channels, -1, -1) / channels


def timm_state(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The image encoder of a released file under the names of the timm model: by its layout, and by timm's own
    converter, which knows older names and fits tables of positions to the model's size. Classifiers are left out."""
    layout = recognise(state)
    found = dict(state) if layout is None else image_state(state, layout)
    own = model.state_dict()
    kernel = next(key for key, value in own.items() if value.dim() == 4)
    other_patch = any(value.dim() == 4 and value.shape[2:] != own[kernel].shape[2:] for value in found.values())
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None and not (hasattr(model, "patch_embed") and other_patch):  # which would be resampled, too
        clip = "class_embedding" in found  # the names of OpenAI's code, which timm tells by their prefix
        found = convert({f"visual.{key}": value for key, value in found.items()} if clip else found, model)
    if kernel in found:
        found[kernel] = fit_channels(found[kernel], own[kernel].shape[1])
    return found


def file_coverage(spec: ImageEncoderSpec, state: Mapping[str, Tensor]) -> Coverage:
    """How much of the image encoder of `spec` the state dict of a file would fill; computes nothing."""
    with torch.device("meta"):
        model = _create(spec)
    with converting():
        state = timm_state(model, state)
    return coverage_of(model, state, IMAGE)


def _load_file(model: nn.Module, file: Path, allow_partial: bool) -> Coverage:
    """Fill the model from a state dict whose layout is recognised; refuses one that does not fit, unless allowed."""
    state = read_state(file)
    with converting(file):
        state = timm_state(model, state)
    coverage = fit_state(model, state, IMAGE)
    if (coverage.missing or coverage.unexpected) and not allow_partial:
        raise UserError(f"the file does not hold the weights of this image encoder: {coverage}", where=str(file),
                        expected=f"a state dict with keys like {next(iter(model.state_dict()))}",
                        fix=f"see `{inspecting(file)}`; {coverage.first()}; or --set image.allow_partial=true")
    check_finite({key: value for key, value in state.items() if key not in coverage.unexpected}, str(file))
    return coverage

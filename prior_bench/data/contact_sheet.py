"""Contact sheet of a dataset: images with masks, boxes, labels and report text, for people to look at.

Every target that can be drawn gets its turn, so that rare masks and boxes are seen as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, zip_longest
from textwrap import wrap
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from prior_bench.data.geometry import IGNORE
from prior_bench.data.splits import SPLITS

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset

TILE = 320  # pixels of an image's longer side
TEXT = 190  # pixels of text below it
GAP = 8
COLUMNS = 4
_INK, _PAPER = (225, 225, 225), (24, 24, 24)
# Okabe and Ito's colours, which people with colour-blindness can tell apart.
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178))


def contact_sheet(dataset: Dataset, n: int = 12, seed: int = 0) -> Image.Image:
    """An RGB sheet of n images (fewer where the dataset has fewer), four in a row, drawn with `seed`."""
    ids = list(islice(_choice(dataset, np.random.default_rng(seed)), n))
    rows = max(1, -(-len(ids) // COLUMNS))
    width, height = TILE + GAP, TILE + TEXT + GAP
    sheet = Image.new("RGB", (COLUMNS * width + GAP, rows * height + GAP), _PAPER)
    for k, id in enumerate(ids):
        corner = (GAP + k % COLUMNS * width, GAP + k // COLUMNS * height)
        picture, legend = _picture(dataset, id)
        sheet.paste(picture, (corner[0] + (TILE - picture.width) // 2, corner[1] + (TILE - picture.height) // 2))
        _write(ImageDraw.Draw(sheet), (corner[0], corner[1] + TILE + 4), [*legend, *_lines(dataset, id)])
    return sheet


def _choice(dataset: Dataset, rng: np.random.Generator) -> Iterator[str]:
    """Distinct image ids, the targets taking turns; images on which a target shows something come first."""
    turns = [_shown(dataset, target, rng) for target in dataset.targets]
    everything = iter(rng.permutation(sorted(dataset.records)).tolist())
    seen: set[str] = set()
    for ids in zip_longest(*turns):
        for id in ids:
            if id is not None and id not in seen:
                seen.add(id)
                yield id
    yield from (i for i in everything if i not in seen)


def _shown(dataset: Dataset, target: str, rng: np.random.Generator) -> Iterator[str]:
    kind = dataset.targets[target].kind
    ids = sorted(i for split in SPLITS for i in dataset.ids(target, split))
    for id in rng.permutation(ids).tolist():
        if kind == "mask" and not (dataset.load_mask(target, id) == 1).any():
            continue
        if kind == "boxes" and not len(dataset.load_boxes(target, id).labels):
            continue
        yield id


def _picture(dataset: Dataset, id: str) -> tuple[Image.Image, list[tuple[str, tuple[int, int, int]]]]:
    """The image with masks and boxes, at the tile's scale, and the legend of what was drawn."""
    source = dataset.read_image(dataset.records[id])
    scale = TILE / max(source.size)
    size = (max(1, round(source.width * scale)), max(1, round(source.height * scale)))
    pixels = np.asarray(source.resize(size, Image.Resampling.BILINEAR).convert("RGB")).astype(np.float32)
    legend, frames = [], []
    colours = iter(_COLOURS * 8)
    for name, target in dataset.targets.items():
        if target.kind not in {"mask", "boxes"} or not _covers(dataset, name, id):
            continue
        if target.kind == "mask":
            colour = next(colours)
            mask = np.asarray(Image.fromarray(dataset.load_mask(name, id)).resize(size, Image.Resampling.NEAREST))
            pixels[mask == 1] = 0.65 * pixels[mask == 1] + 0.35 * np.array(colour)
            pixels[mask == IGNORE] *= 0.35
            legend.append((f"{name}: {(mask == 1).mean():.1%} of the image" + _ignored(mask), colour))
        else:
            boxes = dataset.load_boxes(name, id)
            for label in np.unique(boxes.labels):
                colour = next(colours)
                frames += [(box * scale, colour) for box in boxes.xyxy[boxes.labels == label]]
                legend.append((f"{name}: {(boxes.labels == label).sum()} {target.classes[label]}", colour))
            if not len(boxes.labels):
                legend.append((f"{name}: none", _INK))
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for box, colour in frames:
        draw.rectangle(box.tolist(), outline=colour, width=2)
    return picture, legend


def _ignored(mask: np.ndarray) -> str:
    share = (mask == IGNORE).mean()
    return f", {share:.1%} ignored" if share else ""


def _covers(dataset: Dataset, target: str, id: str) -> bool:
    return id in dataset.ids(target, dataset.study_of[id].split)


def _lines(dataset: Dataset, id: str) -> list[tuple[str, tuple[int, int, int]]]:
    """Where the image belongs, its labels by target, and its report."""
    study, lines = dataset.study_of[id], []
    lines.append((f"{id}  {study.split}, group {study.group}, view {dataset.records[id].view or 'not stated'}", _INK))
    for name, target in dataset.targets.items():
        if target.kind not in {"multilabel", "exclusive"} or not _covers(dataset, name, id):
            continue
        values = dataset.labels(name).rows([id])[0]
        positive = [c for c, v in zip(target.classes, values, strict=True) if v == 1]
        missing = [c for c, v in zip(target.classes, values, strict=True) if np.isnan(v)]
        text = ", ".join(positive) or "none"
        lines.append((f"{name}: {text}" + (f"; missing: {', '.join(missing)}" if missing else ""), _INK))
    if study.report is not None:
        lines.append((study.report.text, (170, 200, 170)))
    return lines


def _write(draw: ImageDraw.ImageDraw, corner: tuple[int, int], lines: list[tuple[str, tuple[int, int, int]]]) -> None:
    """Wrapped lines below an image, cut where the tile ends."""
    font = ImageFont.load_default(11)
    x, y = corner
    for text, colour in lines:
        for line in wrap(text, 60):
            if y > corner[1] + TEXT - 24:
                draw.text((x, y), "...", fill=colour, font=font)
                return
            draw.text((x, y), line, fill=colour, font=font)
            y += 13

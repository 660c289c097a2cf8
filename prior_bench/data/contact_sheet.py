"""Contact sheet of a dataset: images with masks, boxes, labels and report text, for people to look at.

Every target that can be drawn gets its turn, so that rare masks and boxes are seen as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, zip_longest
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from prior_bench.data.geometry import IGNORE
from prior_bench.data.splits import SPLITS

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

TILE = 320  # pixels of an image's longer side
GAP = 8
COLUMNS = 4
LINE, LINES = 13, 14  # pixels of a line of text, and how many lines an image has at most
_INK, _PAPER = (225, 225, 225), (24, 24, 24)
# Okabe and Ito's colours, which people with colour-blindness can tell apart.
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167), (0, 114, 178))


def contact_sheet(dataset: Dataset, n: int = 12, seed: int = 0) -> Image.Image:
    """An RGB sheet of n images (fewer where the dataset has fewer), four in a row, drawn with `seed`."""
    ids = list(islice(_choice(dataset, np.random.default_rng(seed)), n))
    tiles = [_tile(dataset, id) for id in ids]
    rows = [tiles[k: k + COLUMNS] for k in range(0, len(tiles), COLUMNS)]
    heights = [max(t.height for t in row) + GAP for row in rows]
    sheet = Image.new("RGB", (COLUMNS * (TILE + GAP) + GAP, sum(heights) + GAP), _PAPER)
    for r, row in enumerate(rows):
        for c, tile in enumerate(row):
            sheet.paste(tile, (GAP + c * (TILE + GAP), GAP + sum(heights[:r])))
    return sheet


def _tile(dataset: Dataset, id: str) -> Image.Image:
    """One image with its text below."""
    picture, legend = _picture(dataset, id)
    font = ImageFont.load_default(11)
    lines = [(line, colour) for text, colour in [*legend, *_lines(dataset, id)] for line in _wrapped(text, font)]
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], ("...", _INK)]
    tile = Image.new("RGB", (TILE, TILE + GAP + LINE * len(lines)), _PAPER)
    tile.paste(picture, ((TILE - picture.width) // 2, (TILE - picture.height) // 2))
    draw = ImageDraw.Draw(tile)
    for k, (line, colour) in enumerate(lines):
        draw.text((0, TILE + GAP // 2 + LINE * k), line, fill=colour, font=font)
    return tile


def _wrapped(text: str, font: Font) -> list[str]:
    """Lines that fit below an image; a word that is wider than that is cut by the tile."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > TILE:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


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
    colours = _colours(dataset)
    for name, target in dataset.targets.items():
        if target.kind not in {"mask", "boxes"} or not _covers(dataset, name, id):
            continue
        if target.kind == "mask":
            colour = colours[name, 0]
            mask = np.asarray(Image.fromarray(dataset.load_mask(name, id)).resize(size, Image.Resampling.NEAREST))
            pixels[outline(mask == 1)] = colour  # the texture inside stays as it is
            pixels[mask == IGNORE] *= 0.35
            legend.append((f"{name}: {(mask == 1).mean():.1%} of the image" + _ignored(mask), colour))
        else:
            boxes = dataset.load_boxes(name, id)
            for label in np.unique(boxes.labels):
                colour = colours[name, int(label)]
                frames += [(box * scale, colour) for box in boxes.xyxy[boxes.labels == label]]
                legend.append((f"{name}: {(boxes.labels == label).sum()} {target.classes[label]}", colour))
            if not len(boxes.labels):
                legend.append((f"{name}: none", _INK))
    picture = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for box, colour in frames:
        draw.rectangle(box.tolist(), outline=colour, width=2)
    return picture, legend


def outline(mask: np.ndarray) -> np.ndarray:
    """The pixels of a mask (H, W) that have a neighbour above, below, left or right outside it."""
    padded = np.pad(mask, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inside


def _colours(dataset: Dataset) -> dict[tuple[str, int], tuple[int, int, int]]:
    """Colour of each (target, class) that is drawn; they recur after seven."""
    drawn = [(name, k) for name, target in dataset.targets.items() if target.kind in {"mask", "boxes"}
             for k in range(max(1, len(target.classes)))]
    return {key: _COLOURS[i % len(_COLOURS)] for i, key in enumerate(drawn)}


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

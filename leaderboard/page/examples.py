"""Example pictures of the page: what methods retrieve, outline and detect on a few test images.

The images are chosen by a rule and never by hand: the first test image by id that has something to find, and those on
which the methods of the track do middling and best (the median and the highest of their mean score). Answers come from
saved predictions, each row's run with the lowest seeds at the track's largest fraction; only pixels and reports come
from the data set, whose digest must be that of the results. Real images are not ours to pass on: they are drawn only
where the user says so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from prior_bench import plugins
from prior_bench.data.contact_sheet import outline
from prior_bench.errors import UserError
from prior_bench.grid import Request, open_dataset
from prior_bench.leaderboard.page.plots import element_id
from prior_bench.leaderboard.series import ordered, size
from prior_bench.leaderboard.styles import names
from prior_bench.leaderboard.tables import Heading, Known, Row, Table
from prior_bench.metrics.boxes import IOUS, ImageBoxes, match
from prior_bench.metrics.overlap import decode_mask
from prior_bench.metrics.retrieval import Reranked, nearest, ranks
from prior_bench.results import read_predictions
from prior_bench.task import Predictions

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

    from prior_bench.data.dataset import Dataset

SHOWN_SCORE = 0.1  # boxes with less are not drawn
HIT_IOU = 0.5
TOP = 5  # reports

TILE, GAP, COLUMNS, LINE = 256, 8, 4, 15
TRUTH, FOUND, INK, PAPER = (86, 180, 233), (230, 159, 0), (225, 225, 225), (24, 24, 24)  # two of Okabe and Ito's
_PALETTE = [*((level,) * 3 for level in range(0, 256, 2)), TRUTH, FOUND]


@dataclass(frozen=True, slots=True)
class Answer:
    """The nearest reports of one method, each with whether it is the image's own, and the rank of that."""

    method: str
    rank: float
    reports: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class Example:
    """One test image with the answers of a track's methods. `image` is a file in the folder of assets; for retrieval it
    is the image alone, and `report` and `answers` are what is to be read beside it."""

    id: str
    group: str  # "retrieval", "segmentation", "detection"
    title: str
    caption: str
    alt: str
    image: str
    heading: Heading
    track: str
    report: str = ""
    answers: tuple[Answer, ...] = ()


def write(known: Known, folder: Path, assets: Path, data_root: Path | None, cache: Path,
          also: Collection[str] = ()) -> tuple[list[Example], list[str]]:
    """Draw the examples of all tables into `assets`; returns them, and notes on what was left out.

    Args:
        folder: the results. data_root, cache: as of `prior-bench run`.
        also: data sets whose real images may be drawn.
    """
    found: list[Example] = []
    notes: dict[str, str] = {}
    opened: dict[str, Dataset] = {}
    for table in known.tables:
        for track, rows in table.tracks.items():
            answers = _answers(table, rows, folder)
            if answers is None:
                continue
            name = table.heading.dataset
            if name not in opened and name not in notes:
                dataset = _open(table, data_root, cache, also)
                if isinstance(dataset, str):
                    notes[name] = dataset
                else:
                    opened[name] = dataset
            if name in opened:
                try:
                    found += _written(table, track, answers, opened[name], assets)
                except UserError as error:  # an image that is not there, or cannot be read
                    notes[name] = f"examples of {name} are left out: {error}"
    return found, list(notes.values())


def _open(table: Table, data_root: Path | None, cache: Path, also: Collection[str]) -> Dataset | str:
    """The data set of a table, or why its images are not drawn."""
    name = table.heading.dataset
    try:
        if plugins.load("datasets", name).needs_root and name not in also:
            return (f"examples of {name} are left out: its images may not be passed on freely; "
                    f"--examples-of {name} draws them")
        opened = open_dataset(name, Request([], data_root=data_root, cache=cache))
    except UserError as error:
        return f"examples of {name} are left out: {error.what}"
    digests = {one.result.cell.data_digest for one in table.all_rebuilt()}
    if digests != {opened.digest}:
        return f"examples of {name} are left out: the data at hand are not those of the results (another digest)"
    return opened.dataset


# -------------------------------------------------------------------------------------- what was answered


@dataclass(frozen=True, slots=True)
class _Answers:
    """What the rows of a track answered on the images that all of them saw."""

    kind: str
    fraction: float | None
    images: dict[Row, dict[str, Any]]  # by row, then by image id: what `_KINDS` read
    telling: list[str]  # sorted ids of images that have something to find
    scores: dict[str, float]  # of those, the mean over the rows; higher is better

    def chosen(self) -> list[tuple[str, str]]:
        """Image ids with what they were chosen for."""
        by_score = sorted(self.telling, key=lambda id: (-self.scores[id], id))
        found = {self.telling[0]: "first"}
        found.setdefault(by_score[len(by_score) // 2], "median")
        found.setdefault(by_score[0], "best")
        return list(found.items())


def _answers(table: Table, rows: Sequence[Row], folder: Path) -> _Answers | None:
    """None where the predictions are none that can be drawn."""
    for fraction in reversed(table.fractions):
        entries = {row: entry.rebuilt for row in ordered(rows)
                   if (entry := table.entry(row, fraction)) is not None and entry.rebuilt}
        if not entries:
            continue
        images: dict[Row, dict[str, Any]] = {}
        kind = None
        for row, rebuilt in entries.items():
            first = min(rebuilt, key=lambda r: (r.result.cell.pretrain_seed, r.result.cell.subset_seed,
                                                r.result.cell.head_seed))
            predictions = read_predictions(folder, first.result)
            kind = _kind(predictions)
            if kind is None:
                return None
            images[row] = _READ[kind](predictions)
        common = set.intersection(*(set(one) for one in images.values()))
        telling = sorted(id for id in common if all(one[id].tells for one in images.values()))
        if kind is None or not telling:
            return None
        return _Answers(kind, fraction, images, telling, {
            id: float(np.mean([one[id].score for one in images.values()])) for id in telling})
    return None


def _kind(predictions: Predictions) -> str | None:
    columns = set(predictions.table.column_names)
    if {"prediction", "truth", "tp", "fp", "fn"} <= columns:
        return "segmentation"
    if {"boxes", "scores", "labels", "gt_boxes", "gt_labels"} <= columns:
        return "detection"
    return "retrieval" if {"vector", "text_id"} <= columns and predictions.extra.get("kind") == "report" else None


@dataclass(frozen=True, slots=True)
class _Masks:
    prediction: np.ndarray
    truth: np.ndarray
    score: float  # Dice

    @property
    def tells(self) -> bool:
        return bool(self.truth.any())


@dataclass(frozen=True, slots=True)
class _Found:
    """The boxes that are shown, and the true ones."""

    boxes: ImageBoxes
    classes: list[str]
    hits: int
    score: float  # F1

    @property
    def tells(self) -> bool:
        return len(self.boxes.truth) > 0


@dataclass(frozen=True, slots=True)
class _Retrieved:
    texts: list[str]  # ids, the nearest first
    own: str
    rank: float
    images_of: Mapping[str, str]  # an image that has the text, by text id

    @property
    def tells(self) -> bool:
        return True

    @property
    def score(self) -> float:
        return -self.rank


def _masks(predictions: Predictions) -> dict[str, _Masks]:
    found = {}
    for row in predictions.table.to_pylist():
        prediction, truth = (decode_mask(row[name], row["height"], row["width"]) for name in ("prediction", "truth"))
        pixels = 2 * row["tp"] + row["fp"] + row["fn"]
        found[row["image"]] = _Masks(prediction, truth, 2 * row["tp"] / pixels if pixels else 1.0)
    return found


def _boxes(predictions: Predictions) -> dict[str, _Found]:
    classes, found = predictions.extra["classes"], {}
    for row in predictions.table.to_pylist():
        scores = np.array(row["scores"], float)
        kept = scores >= SHOWN_SCORE
        one = ImageBoxes(np.array(row["boxes"], float).reshape(-1, 4)[kept], scores[kept],
                         np.array(row["labels"], int)[kept], np.array(row["gt_boxes"], float).reshape(-1, 4),
                         np.array(row["gt_labels"], int))
        at = int(np.argmin(np.abs(IOUS - HIT_IOU)))
        hits = sum(int(m.hit[at].sum()) for m in match([one], len(classes)))
        total = len(one.boxes) + len(one.truth)
        found[row["image"]] = _Found(one, classes, hits, 2 * hits / total if total else 1.0)
    return found


def _retrieved(predictions: Predictions) -> dict[str, _Retrieved]:
    table = predictions.table
    kinds = np.array(table.column("kind").to_pylist())
    images, texts = table.filter(kinds == "image"), table.filter(kinds == "text")
    queries, vectors = (np.array(part.column("vector").to_pylist(), np.float16) for part in (images, texts))
    ids, own = (images.column(name).to_pylist() for name in ("id", "text_id"))
    gallery = texts.column("id").to_pylist()
    place = {id: k for k, id in enumerate(gallery)}
    reranked = None
    if "nearest" in table.column_names:
        items = np.array([[place[id] for id in row] for row in images.column("nearest").to_pylist()])
        reranked = Reranked(items, np.array(images.column("score").to_pylist()))
        order = np.argsort(-reranked.scores, axis=1, kind="stable")[:, :TOP]
        top = np.take_along_axis(items, order, axis=1)
    else:
        top = nearest(queries, vectors, TOP)
    labelling = (np.array([place[id] for id in own]), np.arange(len(gallery)))
    (rank,) = ranks(queries, vectors, [labelling], reranked)
    images_of = dict(zip(own, ids, strict=True))
    return {id: _Retrieved([gallery[k] for k in top[i]], own[i], float(rank[i]), images_of) for i, id in enumerate(ids)}


_READ: dict[str, Any] = {"segmentation": _masks, "detection": _boxes, "retrieval": _retrieved}


# --------------------------------------------------------------------------------------------- the pictures


def _written(table: Table, track: str, answers: _Answers, dataset: Dataset, assets: Path) -> Iterator[Example]:
    h = table.heading
    called = names(answers.images)
    for id, why in answers.chosen():
        source = dataset.read_image(dataset.records[id]).convert("L")
        own = {row: found[id] for row, found in answers.images.items()}
        key = element_id("example", *h.words, track, why)
        picture, said = _DRAWN[answers.kind](source, own, called)
        assets.mkdir(parents=True, exist_ok=True)
        _save(picture, assets / f"{key}.png")
        about: dict[str, Any] = {"caption": _caption(answers, id, why),
                                 "alt": f"Chest X-ray {id}. {said}", "image": f"{key}.png"}
        if answers.kind == "retrieval":
            about |= _reports(dataset, id, own, called)
        where = f"{h.target}, track {track}: {_WHY[why]}"
        yield Example(id=key, group=answers.kind, title=f"{answers.kind.capitalize()} on {h.dataset} / {where}",
                      heading=h, track=track, **about)


_WHY = {"first": "the first by id", "median": "the median case", "best": "the best case"}
_RULES = {
    "segmentation": ("with foreground", "Dice", "Outlines: blue the truth, orange the prediction."),
    "detection": ("with a box", "F1", f"Blue: the true boxes. Orange: boxes with a score of {SHOWN_SCORE:g} or more. A "
                  f"box is right where it has its class and an IoU of {HIT_IOU:g} or more with a true one."),
    "retrieval": ("with a report", "rank", f"The {TOP} nearest of all distinct reports for each method; its own is "
                  "marked."),
}


def _caption(answers: _Answers, id: str, why: str) -> str:
    those, score, legend = _RULES[answers.kind]
    rule = f"{_WHY[why]} of {len(answers.telling)} test images {those}"
    if why != "first":
        rule += f", by the methods' mean {score}"
    trained = f", {size(answers.fraction)}" if answers.fraction is not None else ""
    return f"Image {id} ({rule}){trained}. {legend} From saved predictions, runs of the lowest seeds."


def _draw_masks(source: PILImage, own: Mapping[Row, _Masks], called: Mapping[Row, str]) -> tuple[PILImage, str]:
    base, _ = _scaled(source)
    tiles = [_Tile(base, "image")]
    for row, masks in own.items():
        tile = np.array(base)
        truth, prediction = (_resized(mask, base.size) for mask in (masks.truth, masks.prediction))
        tile[_thick(truth)] = TRUTH
        tile[outline(prediction)] = FOUND
        tiles.append(_Tile(Image.fromarray(tile), f"{called[row]}: Dice {masks.score:.2f}"))
    return _sheet(tiles), "Dice: " + _listed({called[row]: f"{m.score:.2f}" for row, m in own.items()})


def _draw_boxes(source: PILImage, own: Mapping[Row, _Found], called: Mapping[Row, str]) -> tuple[PILImage, str]:
    base, scale = _scaled(source)
    tiles = [_Tile(base, "image")]
    said = {}
    for row, found in own.items():
        tile, boxes = base.copy(), found.boxes
        _frames(tile, boxes.truth * scale, [found.classes[k] for k in boxes.truth_labels], TRUTH, 3)
        words = [f"{found.classes[k]} {s:.2f}" for k, s in zip(boxes.labels, boxes.scores, strict=True)]
        _frames(tile, boxes.boxes * scale, words, FOUND, 2)
        said[called[row]] = f"{found.hits} of {len(boxes.truth)} found, {len(boxes.boxes) - found.hits} wrong"
        tiles.append(_Tile(tile, f"{called[row]}: {said[called[row]]}"))
    return _sheet(tiles), "Boxes: " + _listed(said)


def _draw_query(source: PILImage, own: Mapping[Row, _Retrieved], called: Mapping[Row, str]) -> tuple[PILImage, str]:
    said = {called[row]: f"{found.rank:g}" for row, found in own.items()}
    return _scaled(source)[0], "Rank of its own report: " + _listed(said)


_DRAWN: dict[str, Any] = {"segmentation": _draw_masks, "detection": _draw_boxes, "retrieval": _draw_query}


def _reports(dataset: Dataset, id: str, own: Mapping[Row, _Retrieved], called: Mapping[Row, str]) -> dict[str, Any]:
    def text(image: str) -> str:
        report = dataset.study_of[image].report
        return report.text if report is not None else ""

    answers = tuple(Answer(called[row], r.rank, tuple((text(r.images_of[t]), t == r.own) for t in r.texts))
                    for row, r in own.items())
    return {"report": text(id), "answers": answers}


def _listed(said: Mapping[str, str]) -> str:
    return "; ".join(f"{name} {what}" for name, what in said.items()) + "."


# --------------------------------------------------------------------------------------------------- pixels


@dataclass(frozen=True, slots=True)
class _Tile:
    picture: PILImage
    words: str


def _scaled(source: PILImage) -> tuple[PILImage, float]:
    """The image in colour with its longer side at the tile's size, and the factor."""
    scale = TILE / max(source.size)
    size = (max(1, round(source.width * scale)), max(1, round(source.height * scale)))
    return source.resize(size, Image.Resampling.BILINEAR).convert("RGB"), scale


def _resized(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(mask.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)) == 1


def _thick(mask: np.ndarray) -> np.ndarray:
    """An outline of two pixels, so that another of one pixel on it leaves it to be seen."""
    line = outline(mask)
    return line | outline(mask & ~line)


def _frames(tile: PILImage, boxes: np.ndarray, words: Sequence[str], colour: tuple[int, int, int], width: int) -> None:
    """Boxes (n, 4) xyxy with their words: those of the truth above them, others below, as far as there is room."""
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(11)
    for (left, top, right, bottom), word in zip(boxes.tolist(), words, strict=True):
        draw.rectangle((left, top, right, bottom), outline=colour, width=width)
        high = draw.textbbox((0, 0), word, font=font)[3] + 2
        y = max(0, top - high) if colour == TRUTH else min(bottom + 1, tile.height - high)
        x = max(0, min(left, tile.width - draw.textlength(word, font=font)))
        draw.rectangle(draw.textbbox((x, y), word, font=font), fill=PAPER)
        draw.text((x, y), word, fill=colour, font=font)


def _sheet(tiles: Sequence[_Tile]) -> PILImage:
    """Tiles side by side, their words below."""
    font = ImageFont.load_default(12)
    height = max(tile.picture.height for tile in tiles) + LINE + GAP
    columns = min(COLUMNS, len(tiles))
    sheet = Image.new("RGB", (columns * (TILE + GAP) + GAP, -(-len(tiles) // columns) * height + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for k, tile in enumerate(tiles):
        x, y = GAP + k % columns * (TILE + GAP), GAP + k // columns * height
        sheet.paste(tile.picture, (x, y))
        draw.text((x, y + tile.picture.height + 1), tile.words, fill=INK, font=font)
    return sheet


def _save(picture: PILImage, file: Path) -> None:
    """As a PNG of 128 greys and the two colours, a third of its size in full colour."""
    palette = [value for colour in _PALETTE for value in colour]
    with_palette = Image.new("P", (1, 1))
    with_palette.putpalette(palette)
    places = np.array(picture.quantize(palette=with_palette, dither=Image.Dither.NONE))  # near enough for colours
    pixels = np.asarray(picture)
    grey = (pixels == pixels[..., :1]).all(axis=2)
    places[grey] = pixels[grey][:, 0] // 2
    found = Image.fromarray(places)
    found.putpalette(palette)
    found.save(file, "PNG", optimize=True)

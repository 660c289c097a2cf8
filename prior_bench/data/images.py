"""Images: decoding on purpose, and the store that decodes each image once.

`decode` makes any radiograph an 8-bit grey image, or says in one line what is wrong with the file. `ImageStore` keeps
fitted images as uint8 blocks on disk, memory-mapped, under a key that is content: the image's bytes, the geometry, the
sources that decode and fit, and Pillow's version. All methods with one geometry share it, whatever their mean and std.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL import __version__ as pillow_version

from prior_bench.data import geometry
from prior_bench.data.geometry import Geometry
from prior_bench.digests import digest_file, digest_json, digest_sources
from prior_bench.errors import UserError
from prior_bench.files import write_file

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset
    from prior_bench.types import ImageInput, ImageRecord

MAX_PIXELS = 64_000_000  # the largest radiographs have about 25 million; beyond this a file is a decompression bomb
BLOCK_BYTES = 64 << 20  # of a store's block: what a kill can lose, and what stays in memory while it is filled
REPORT_EVERY = 64  # images
_SHOWN = 20  # bad files that an error lists


class BadImage(UserError):
    """A file that is no usable image; `reason` is the short form for lists."""

    def __init__(self, path: Path, reason: str, fix: str):
        self.path, self.reason = path, reason
        super().__init__(f"the image cannot be used: {reason}", where=str(path), expected="a whole, single-frame image",
                         fix=f"{fix}, or let `prior-bench run` leave it out with --max-bad-images")


def decode(path: Path) -> Image.Image:
    """The image as 8-bit grey ("L"), at its stored size and orientation.

    An EXIF rotation is not applied, because masks and boxes are in stored pixels. Colour becomes luma (ITU-R 601), CMYK
    and palettes by way of RGB; transparent pixels lie on black. 16-bit, 32-bit and float images are scaled by their own
    range, least value to 0 and greatest to 255: 12 bits in a 16-bit file are common, and the container's range would
    make them black.

    Raises: BadImage for a file that is missing, empty, no image, truncated, animated or larger than `MAX_PIXELS`.
    """
    with _opened(Path(path)) as image:
        if (frames := getattr(image, "n_frames", 1)) > 1:
            raise BadImage(path, f"it has {frames} frames", "save the frame that is meant as a file")
        image.load()
        return _grey(image)


def size(path: Path) -> tuple[int, int]:
    """Height and width from the file's header, without decoding. Raises BadImage as `decode` does."""
    with _opened(Path(path)) as image:
        return image.height, image.width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The opened file; what Pillow raises on it, here or in the block, becomes a BadImage."""
    again = "copy or download it again"
    try:
        if path.stat().st_size == 0:
            raise BadImage(path, "the file is empty", again)
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except FileNotFoundError:
        raise BadImage(path, "the file does not exist", "check the data root and the file's name") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage(path, f"more than {MAX_PIXELS // 10**6} million pixels", "save it at a smaller size") from None
    except UnidentifiedImageError:
        raise BadImage(path, "no known image format", again) from None
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:  # Pillow's readers on broken data
        raise BadImage(path, f"unreadable, truncated or broken ({error})", again) from error


def _grey(image: Image.Image) -> Image.Image:
    if image.mode == "L":
        return image.copy()
    if image.mode.startswith("I") or image.mode == "F":
        return _scaled_by_range(np.asarray(image).astype(np.float64))
    if image.mode in {"LA", "La", "PA", "RGBA", "RGBa"} or "transparency" in image.info:
        coloured = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, coloured).convert("L")
    return image.convert("RGB").convert("L")


def _scaled_by_range(values: np.ndarray) -> Image.Image:
    if not np.isfinite(values).all():
        raise ValueError("values that are not finite")
    low, high = values.min(), values.max()
    return Image.fromarray(np.round((values - low) * (255 / max(high - low, 1e-12))).astype(np.uint8))


class ImageStore:
    """Fitted images (S, S) uint8 of some ids of a dataset, memory-mapped. Made by `open`.

    On disk: blocks `<n>.npy` (rows, S, S) with `<n>.json`, which holds each row's key and is written last. A block is
    never changed; `open` adds a block for what is missing, under a lock, so that two processes can share a folder.
    """

    def __init__(self, size: int, rows: dict[str, np.ndarray], bad: dict[str, str]):
        self.size = size
        self.bad = bad  # id -> reason, of the images that could not be read
        self._rows = rows

    @property
    def ids(self) -> list[str]:
        """Ids of the readable images, in the order they were asked for."""
        return list(self._rows)

    def get(self, ids: Sequence[str]) -> np.ndarray:
        """uint8 (n, S, S) of these images, in this order."""
        out = np.empty((len(ids), self.size, self.size), np.uint8)
        for i, id in enumerate(ids):
            if id in self.bad:
                raise UserError(f"the image {id!r} cannot be used: {self.bad[id]}", fix="exclude it from the dataset")
            out[i] = self._rows[id]
        return out

    @classmethod
    def open(cls, dataset: Dataset, ids: Sequence[str], spec: ImageInput, folder: Path, max_bad: int = 0,
             report: Callable[[str, float], None] | None = None) -> ImageStore:
        """The store of these images, decoding those that it has not met yet.

        Args:
            folder: where stores lie; each geometry has its own folder in it.
            max_bad: how many unreadable images are tolerated (`bad` names them).
            report: called with ("decoding images", share done).

        Raises: UserError with the list of bad files when there are more than `max_bad`; what was decoded is kept.
        """
        from filelock import FileLock

        home = folder / _geometry_key(spec)
        try:
            home.mkdir(parents=True, exist_ok=True)
            with FileLock(home / ".lock"):
                blocks = _Blocks(home)
                keys, bad = _keys(dataset, ids, blocks.stamps)
                missing = [i for i in keys if keys[i] not in blocks.where]
                bad |= _fill(blocks, dataset, missing, keys, spec, report)
        except OSError as error:
            raise UserError(f"the image store cannot be written: {error.strerror or error}", where=str(home),
                            fix="free space there or choose another cache folder") from error
        if len(bad) > max_bad:
            raise _too_many(dataset, bad, len(ids), max_bad)
        return cls(spec.size, {i: blocks.row(keys[i]) for i in ids if i not in bad}, bad)


class _Blocks:
    """The blocks of one geometry: where each key's row is, and the content digest of files as they were last seen."""

    def __init__(self, home: Path):
        self.home = home
        self.where: dict[str, tuple[int, int]] = {}
        self.stamps: dict[str, str] = {}
        self._open: dict[int, np.ndarray] = {}
        self.count = 0
        for index in sorted(home.glob("*.json")):
            self._index(int(index.stem), json.loads(index.read_text()))

    def add(self, images: np.ndarray, keys: Sequence[str], stamps: dict[str, str]) -> None:
        """Write a block: data first, index last."""
        number, index = self.count, {"keys": list(keys), "stamps": stamps}
        write_file(self.home / f"{number}.npy", partial(np.save, arr=images), locked=True)
        write_file(self.home / f"{number}.json", lambda file: file.write(json.dumps(index).encode()), locked=True)
        self._index(number, index)

    def row(self, key: str) -> np.ndarray:
        number, row = self.where[key]
        if number not in self._open:
            self._open[number] = np.load(self.home / f"{number}.npy", mmap_mode="r")
        return self._open[number][row]

    def _index(self, number: int, index: dict) -> None:
        self.where |= {key: (number, row) for row, key in enumerate(index["keys"])}
        self.stamps |= index["stamps"]
        self.count = max(self.count, number + 1)


def _geometry_key(spec: ImageInput) -> str:
    fit = [spec.size, spec.fit, spec.interpolation, spec.crop_pct if spec.fit == "crop" else None]
    sources = digest_sources(Path(__file__), Path(geometry.__file__))
    return digest_json([fit, sources, pillow_version])


def _keys(dataset: Dataset, ids: Sequence[str], stamps: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Content key of each image, and the reasons of those that have none. `stamps` saves reading unchanged files."""
    keys, bad = {}, {}
    made = digest_json(dataset.fingerprint()) if any(dataset.records[i].path is None for i in ids) else ""
    for id in ids:
        path = dataset.records[id].path
        if path is None:
            content = f"{made}:{id}"
        else:
            try:
                stamp = _stamp(path)
                content = stamps.get(stamp) or digest_file(path)
            except OSError as error:
                bad[id] = f"{path}: cannot be read ({error.strerror})"
                continue
            stamps[stamp] = content
        keys[id] = digest_json([dataset.name, dataset.version, content])
    return keys, bad


def _stamp(path: Path) -> str:
    stat = path.stat()
    return digest_json([str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino])


def _fill(blocks: _Blocks, dataset: Dataset, missing: Sequence[str], keys: dict[str, str], spec: ImageInput,
          report: Callable[[str, float], None] | None) -> dict[str, str]:
    """Decode the missing images into new blocks; returns the reasons of the bad ones."""
    bad: dict[str, str] = {}
    distinct = list({keys[i]: i for i in missing}.values())  # equal files are decoded once
    step = max(1, BLOCK_BYTES // spec.size**2)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(distinct), step):
            batch = distinct[start: start + step]
            good: list[str] = []
            images = np.empty((len(batch), spec.size, spec.size), np.uint8)
            fitted = pool.map(lambda i: _fitted(dataset, dataset.records[i], spec), batch)
            for done, (id, image) in enumerate(zip(batch, fitted, strict=True), start + 1):
                if isinstance(image, BadImage):
                    bad |= {i: f"{image.path}: {image.reason}" for i in missing if keys[i] == keys[id]}
                else:
                    images[len(good)] = image
                    good.append(id)
                if report is not None and done % REPORT_EVERY == 0:
                    report("decoding images", done / len(distinct))
            if good:
                paths = [p for i in good if (p := dataset.records[i].path) is not None]
                stamps = {s: blocks.stamps[s] for p in paths if (s := _stamp(p)) in blocks.stamps}
                blocks.add(images[: len(good)], [keys[i] for i in good], stamps)
    return bad


def _fitted(dataset: Dataset, record: ImageRecord, spec: ImageInput) -> np.ndarray | BadImage:
    try:
        image = dataset.read_image(record)
    except BadImage as error:
        return error
    return Geometry((image.height, image.width), spec).image(image)


def _too_many(dataset: Dataset, bad: dict[str, str], asked: int, max_bad: int) -> UserError:
    shown = [f"\n    {reason}" for reason in list(bad.values())[:_SHOWN]]
    more = [f"\n    and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
    return UserError(f"{len(bad)} of {asked} images of {dataset.name} cannot be used (allowed: {max_bad})",
                     where="".join(shown + more),
                     fix=f"mend these files, or allow them to be left out with --max-bad-images {len(bad)}")

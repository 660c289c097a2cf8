"""The feature cache: each image and each text is encoded once per key, and the key is content.

    <folder>/<key>/images-<dataset>/<n>.joint.npy, <n>.pooled.npy, <n>.json
    <folder>/<key>/texts/<n>.joint.npy, <n>.json

The key stands for everything that a feature depends on: weights, tokenizer, encoder, ImageInput, dtype, autocast and
device, the sources that encode, and library versions; the dataset's digest for the images' content. A block is never
changed; its JSON, which names its rows, is written last. Two processes share a folder under a lock.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from prior_bench import plugins
from prior_bench.data.images import ImageStore
from prior_bench.digests import digest_bytes, digest_json, digest_sources
from prior_bench.engine.memory import in_batches
from prior_bench.errors import UserError
from prior_bench.files import write_file
from prior_bench.weights import state_digest

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset
    from prior_bench.engine.precision import Precision
    from prior_bench.method import Method

Report = Callable[[str, float], None]

LIBRARIES = ("torch", "timm", "transformers", "open-clip-torch", "Pillow")
BLOCK = 16384  # rows of a block: what a kill can lose
LENGTH = 0.01  # by which a joint vector's may differ from 1: rounding
TEXTS = 256  # that local scores are computed for at once
_PACKAGE = Path(__file__).parent
_SOURCES = ("encoders", "data", "features.py", "method.py", "engine/precision.py")


@dataclass(frozen=True, slots=True)
class ImageArrays:
    """`joint` (N, D) float32 of unit length, None for a vision-only method; `pooled` (N, C) float32, the map's mean."""

    joint: np.ndarray | None
    pooled: np.ndarray


class FeatureCache:
    """Features of one method with its weights, computed when asked for and kept on disk.

    Args:
        folder: where features lie; fitted images lie in `images` beside it.
        method: on the device, as `precision.place` left it.
        weights_digest: of the weights and tokenizer, as `weights.weights_digest` gives it.
        batch: items encoded at once; halved where memory runs out, which `notes` then says.
    """

    def __init__(self, folder: Path, method: Method, weights_digest: str, precision: Precision, batch: int = 64):
        self.folder, self.method, self.weights_digest = Path(folder), method, weights_digest
        self.precision, self.batch = precision, batch
        self.notes: list[str] = []
        self._datasets: dict[Dataset, str] = {}
        self._blocks: dict[str, _Blocks] = {}

    @cached_property
    def key(self) -> str:
        """Content key of everything but the inputs."""
        return digest_json({
            "weights": self.weights_digest,
            "state": state_digest(self.method),
            "encoder": str(self.method),  # its modules with their settings
            "input": asdict(self.method.image_input),
            "stored": "float32",
            "precision": self.precision.key(),
            "plugin": digest_sources(plugins.sources_of(type(self.method))),
            "sources": digest_sources(*(_PACKAGE / name for name in _SOURCES if (_PACKAGE / name).exists())),
            "versions": {name: version(name) for name in LIBRARIES},
        })

    def images(self, dataset: Dataset, ids: Sequence[str], report: Report = lambda phase, share: None) -> ImageArrays:
        """Features of these images, in this order; encoded in one pass where they are not on disk.

        Raises: UserError for an image that cannot be read or whose features are not finite.
        """
        if dataset not in self._datasets:
            self._datasets[dataset] = dataset.digest()

        def encode(missing: Sequence[str]) -> dict[str, np.ndarray]:
            return self._encode_images(self._store(dataset, missing, report), missing, report)

        found = self._rows(f"images-{self._datasets[dataset]}", ids, encode)
        return ImageArrays(found.get("joint"), found["pooled"])

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Joint vectors (N, D) float32 of these texts, in this order.

        Raises: UserError for a text whose vector is not finite.
        """
        keys = [digest_bytes(text.encode()) for text in texts]
        content = dict(zip(keys, texts, strict=True))

        def encode(missing: Sequence[str]) -> dict[str, np.ndarray]:
            ordered = sorted(missing, key=lambda key: len(content[key]))  # little padding
            vectors = self._encode_texts([content[key] for key in ordered])
            row = {key: i for i, key in enumerate(ordered)}
            return {"joint": vectors[[row[key] for key in missing]]}

        return self._rows("texts", keys, encode)["joint"]

    def local_scores(self, dataset: Dataset, ids: Sequence[str], texts: Sequence[str],
                     wanted: Sequence[np.ndarray] | None = None,
                     report: Report = lambda phase, share: None) -> list[np.ndarray] | None:
        """For each image the method's local scores of the texts `wanted` (indices; None: all), float32; streamed, never
        kept on disk. None: the method has no local score."""
        store = self._store(dataset, ids, report)
        wanted = wanted if wanted is not None else [np.arange(len(texts))] * len(ids)

        def run(part: slice) -> list[np.ndarray] | None:
            images = self._normalised(store, ids[part])
            union = np.unique(np.concatenate([wanted[i] for i in range(part.start, part.stop)]))
            found = []
            for start in range(0, len(union), TEXTS):
                scores = self.method.local_score(images, [texts[t] for t in union[start : start + TEXTS]])
                if scores is None:
                    return None
                found.append(scores.float().cpu().numpy())
            report("comparing locally", part.stop / len(ids))
            matrix = np.concatenate(found, axis=1)
            columns = [np.searchsorted(union, wanted[i]) for i in range(part.start, part.stop)]
            return [row[own] for row, own in zip(matrix, columns, strict=True)]

        rows: list[np.ndarray] = []
        self.method.eval()
        with torch.inference_mode(), self.precision.cast():
            for some in in_batches(len(ids), self.batch, run, self.notes.append):
                if some is None:
                    return None
                rows += some
        return rows

    def paper_zero_shot(self, dataset: Dataset, ids: Sequence[str], classes: Sequence[str],
                        report: Report = lambda phase, share: None) -> np.ndarray | None:
        """(I, C) `Method.paper_zero_shot` of these images; None: the method has no such protocol."""
        store = self._store(dataset, ids, report)
        starts = range(0, len(ids), self.batch)
        batches = (self._normalised(store, ids[start : start + self.batch]) for start in starts)
        self.method.eval()
        with torch.inference_mode(), self.precision.cast():
            scores = self.method.paper_zero_shot(batches, classes)
        return None if scores is None else scores.float().cpu().numpy()

    # ------------------------------------------------------------------------------------ encoding

    def _store(self, dataset: Dataset, ids: Sequence[str], report: Report) -> ImageStore:
        return ImageStore.open(dataset, ids, self.method.image_input, self.folder.parent / "images", report=report)

    def _normalised(self, store: ImageStore, ids: Sequence[str]) -> Tensor:
        images = torch.from_numpy(store.get(ids)).unsqueeze(1).to(self.precision.device, non_blocking=True)
        return self.method.normalise(images).contiguous(memory_format=torch.channels_last)

    def _encode_images(self, store: ImageStore, ids: Sequence[str], report: Report) -> dict[str, np.ndarray]:
        method, device = self.method.eval(), self.precision.device
        joint: list[Tensor] = []
        pooled: list[Tensor] = []
        done = 0
        with ThreadPoolExecutor(1) as pool, torch.inference_mode(), self.precision.cast():
            ahead = _Ahead(pool, lambda part: torch.from_numpy(store.get(ids[part])).unsqueeze(1), len(ids))

            def run(part: slice) -> tuple[Tensor | None, Tensor]:
                images = method.normalise(ahead.take(part).to(device, non_blocking=True))
                features = method.encode_image(images.contiguous(memory_format=torch.channels_last))
                return None if features.joint is None else features.joint.float(), features.pooled

            for one, mean in in_batches(len(ids), self.batch, run, self.notes.append):
                joint += [] if one is None else [one]
                pooled.append(mean)
                done += len(mean)
                report("encoding images", done / len(ids))
        found = {"pooled": torch.cat(pooled).cpu().numpy()}  # one copy a block: a GPU never waits for it in between
        if joint:
            found["joint"] = torch.cat(joint).cpu().numpy()
        return found

    def _encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        method = self.method.eval()
        with torch.inference_mode(), self.precision.cast():
            batches = in_batches(len(texts), self.batch, lambda part: method.encode_text(texts[part]).joint.float(),
                                 self.notes.append)
            return torch.cat(list(batches)).cpu().numpy()

    # ------------------------------------------------------------------------------------- storing

    def _rows(self, name: str, keys: Sequence[str],
              encode: Callable[[Sequence[str]], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Stored rows of these keys by array name; what is missing is encoded first, a block at a time."""
        home = self.folder / self.key / name
        home.mkdir(parents=True, exist_ok=True)
        blocks = self._blocks.setdefault(name, _Blocks(home))
        with FileLock(home / ".lock"):
            blocks.refresh()
            missing = [key for key in dict.fromkeys(keys) if key not in blocks.where]
            for start in range(0, len(missing), BLOCK):
                part = missing[start : start + BLOCK]
                arrays = encode(part)
                _check_features(arrays, part)
                blocks.add(part, arrays)
        return blocks.rows(keys)


class _Ahead:
    """Loads the next batch in a thread while this one is encoded."""

    def __init__(self, pool: ThreadPoolExecutor, load: Callable[[slice], Tensor], n: int):
        self.pool, self.load, self.n = pool, load, n
        self.next: tuple[slice, Future[Tensor]] | None = None

    def take(self, part: slice) -> Tensor:
        batch = self.next[1].result() if self.next is not None and self.next[0] == part else self.load(part)
        after = slice(part.stop, min(2 * part.stop - part.start, self.n))
        self.next = (after, self.pool.submit(self.load, after)) if after.start < self.n else None
        return batch


class _Blocks:
    """The blocks of one folder and where each key's row is."""

    def __init__(self, home: Path):
        self.home = home
        self.where: dict[str, tuple[int, int]] = {}  # key -> block, row
        self.names: list[str] = []
        self.count = 0

    def refresh(self) -> None:
        """Take notice of the blocks that were written since."""
        while (index := self.home / f"{self.count}.json").exists():
            self._register(json.loads(index.read_text()))

    def add(self, keys: Sequence[str], arrays: Mapping[str, np.ndarray]) -> None:
        index = {"keys": list(keys), "arrays": sorted(arrays)}
        for name, array in arrays.items():
            write_file(self.home / f"{self.count}.{name}.npy", partial(np.save, arr=array), locked=True)
        write_file(self.home / f"{self.count}.json", lambda file: file.write(json.dumps(index).encode()), locked=True)
        self._register(index)

    def rows(self, keys: Sequence[str]) -> dict[str, np.ndarray]:
        where = np.array([self.where[key] for key in keys], np.int64).reshape(-1, 2)
        if len(where) == 0:
            raise ValueError("no rows were asked for")
        result: dict[str, np.ndarray] = {}
        for name in self.names:
            for block in np.unique(where[:, 0]):
                rows = where[:, 0] == block
                array = np.load(self.home / f"{block}.{name}.npy", mmap_mode="r")
                out = result.setdefault(name, np.empty((len(keys), array.shape[1]), array.dtype))
                out[rows] = array[where[rows, 1]]
        return result

    def _register(self, index: dict[str, list[str]]) -> None:
        self.where |= {key: (self.count, row) for row, key in enumerate(index["keys"])}
        self.names = index["arrays"]
        self.count += 1


def _check_features(arrays: Mapping[str, np.ndarray], keys: Sequence[str]) -> None:
    """Numbers, and joint vectors of the length that every task takes for granted."""
    for name, array in arrays.items():
        broken = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if len(broken):
            raise UserError(f"the encoder's {name} features are not finite for {len(broken)} of {len(keys)} inputs",
                            where=f"first: {keys[broken[0]]}",
                            fix="use --precision fp32; if that does not help, the weights have diverged")
    lengths = np.linalg.norm(arrays["joint"], axis=1) if "joint" in arrays else np.ones(0)
    wrong = np.flatnonzero(abs(lengths - 1) > LENGTH)
    if len(wrong):
        raise UserError(f"the encoder's joint vectors are not of length 1 for {len(wrong)} of {len(keys)} inputs",
                        where=f"first: {keys[wrong[0]]}, of length {lengths[wrong[0]]:.3g}",
                        fix="normalise them in the method's encode_image and encode_text; `prior-bench check-method` "
                            "says what else is wrong")

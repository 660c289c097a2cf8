"""Content digests: the cache keys of this project. A name is never part of a key."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20


def digest_bytes(*parts: bytes) -> str:
    h = hashlib.blake2b(digest_size=16)
    for part in parts:
        h.update(len(part).to_bytes(8, "little"))
        h.update(part)
    return h.hexdigest()


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no white space and no NaN: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False, default=str)


def digest_json(value: Any) -> str:
    return digest_bytes(canonical_json(value).encode())


def digest_array(array: Any) -> str:
    """Digest of a numpy array: dtype, shape and bytes."""
    import numpy as np

    array = np.ascontiguousarray(array)
    return digest_bytes(str(array.dtype).encode(), str(array.shape).encode(), memoryview(array).cast("B"))  # type: ignore[arg-type]


def digest_file(path: Path, memo: Path | None = None) -> str:
    """Digest of a file's bytes; with `memo` (a folder) remembered by path, size and time, renewed on change."""
    path = Path(path)
    stat = path.stat()
    note = None
    if memo is not None:
        stamp = [str(path.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
        note = memo / "file-digests" / digest_json(stamp)
        if note.exists():
            return note.read_text()
    h = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as f:
        while chunk := f.read(_CHUNK):
            h.update(chunk)
    if note is not None:
        note.parent.mkdir(parents=True, exist_ok=True)
        temporary = note.with_suffix(f".{os.getpid()}")
        temporary.write_text(h.hexdigest())  # not synced: a large data set has many, and they can be lost
        os.replace(temporary, note)
    return h.hexdigest()


def digest_sources(*roots: Path) -> str:
    """Digest of the Python and YAML sources under files or folders, so that changed code never meets an old cache."""
    files: list[tuple[str, Path]] = []
    for root in map(Path, roots):
        found = [root] if root.is_file() else [p for p in root.rglob("*") if p.suffix in {".py", ".yaml"}]
        files += [(str(p.relative_to(root.parent)), p) for p in found]
    return digest_bytes(*(part for name, p in sorted(files) for part in (name.encode(), p.read_bytes())))

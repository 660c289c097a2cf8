"""Where caches lie, and folders that are replaced in one step."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

CACHE_VARIABLE = "PRIOR_BENCH_CACHE"


def default_cache() -> Path:
    """$PRIOR_BENCH_CACHE, or prior-bench in the user's cache folder."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prior-bench"


def replace_folder(new: Path, folder: Path) -> None:
    """Put the folder `new`, which is complete, in the place of `folder`; a reader finds one of the two, whole."""
    if not folder.exists():
        os.replace(new, folder)
        return
    old = folder.with_name(f".{folder.name}.old.{os.getpid()}")
    os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old)

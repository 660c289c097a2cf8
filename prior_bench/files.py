"""Where caches lie, and files and folders that are written in one step: a reader, and a kill or a power cut, finds the
old one or the new one, whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from prior_bench.errors import UserError

CACHE_VARIABLE = "PRIOR_BENCH_CACHE"


def default_cache() -> Path:
    """$PRIOR_BENCH_CACHE, or prior-bench in the user's cache folder."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prior-bench"


# -------------------------------------------------------------------------------------------- writing


def write_file(path: Path, write: Callable[[BinaryIO], object], locked: bool = False,
               option: str = "--output or --cache") -> None:
    """Write a file under a temporary name, fsync it, rename it, fsync the folder.

    Args:
        write: writes the content into the open file.
        locked: no other process writes this file meanwhile, so that the temporary file of a killed one is used again.
        option: the option that names the folder, for the message.

    Raises:
        UserError: the disk is full or the folder cannot be written; a file that was there before is unharmed.
    """
    temporary = path.with_name(f".{path.name}.tmp" if locked else f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise not_writable(path, error, option) from error
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """`write_file` of a text."""
    write_file(path, lambda file: file.write(text.encode()))


def replace_folder(new: Path, folder: Path) -> None:
    """Put the folder `new`, which is complete, in the place of `folder`."""
    if not folder.exists():
        os.replace(new, folder)
        return
    old = folder.with_name(f".{folder.name}.old.{os.getpid()}")
    os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ------------------------------------------------------------------------------------ before computing


def check_writable(folder: Path, need: int, option: str) -> None:
    """Find a full disk or a read-only folder before computing, not after.

    Args:
        folder: where files will be written; made if it is not there.
        need: bytes that should be free.
        option: the option that names the folder, for the message.
    """
    probe = folder / f".probe-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(probe, "wb") as file:
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
        probe.unlink()
    except OSError as error:
        raise not_writable(folder, error, option) from error
    free = shutil.disk_usage(folder).free
    if free < need:
        raise UserError(f"the disk is nearly full: {free / 2**20:.0f} MiB are free", where=str(folder),
                        expected=f"{need / 2**20:.0f} MiB or more",
                        fix=f"free space, or give another folder with {option}")


def not_writable(path: Path, error: OSError, option: str = "--output or --cache") -> UserError:
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        file = next((one for one in (path, *path.parents) if one.is_file()), path)
        return UserError("cannot write: this is a file", where=str(file), expected="a folder",
                         fix=f"give another folder with {option}")
    return UserError(f"cannot write: {error.strerror or error}", where=str(path),
                     fix=f"free space or permissions there, or give another folder with {option}")

"""Results as one archive: `submit` packs them, `leaderboard --from` believes nothing of what it is given.

An archive is a zip of `manifest.json` (a digest of every file, and the manifests of the data sets that were at hand)
and the one or two files of each cell; the same results give the same bytes. On reading, names and sizes are looked at
before anything is unpacked; files go to a folder of their own, where digests, schema and tables are checked, every
number is recomputed from the predictions, these are held against the data sets that are here (truth.py), and settings
are held against the program. Only then all cells move into the results folder, predictions first, so that a kill on the
way leaves whole cells.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath, PureWindowsPath
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import prior_bench
from prior_bench.digests import digest_file
from prior_bench.errors import UserError
from prior_bench.files import check_writable, not_writable, sync_folder, write_file
from prior_bench.leaderboard.installed import settings_digest
from prior_bench.leaderboard.rebuild import problems
from prior_bench.leaderboard.truth import AtHand, DataManifest, check
from prior_bench.results import (
    check_predictions,
    finished,
    parse_json,
    predictions_path,
    read_results,
    result_path,
    some_results,
)
from prior_bench.types import Result

MANIFEST = "manifest.json"
SCHEMA = 2
READ = (1, SCHEMA)  # 1 had no manifests of data sets
MAX_FILES = 100_000
MAX_BYTES = 16 << 30  # of all files unpacked
MAX_TEXT = 64 << 20  # of one JSON file: it is read whole
MAX_RATIO = 100  # of unpacked to packed size; results reach 2, a bomb 1,000
MAX_TABLE_BYTES = 4 << 30  # of one Parquet file's columns, decompressed
MAX_TABLE_VALUES = 500_000_000  # run lengths make many values of few bytes
CLOCKS = timedelta(hours=1)  # by which those of two machines may differ
_MODE = stat.S_IFREG | 0o644


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive holds. Data, splits, weights and settings are named by their digests in each result."""

    prior_bench: str  # version that packed it
    files: dict[str, str]  # digests by name
    data: tuple[DataManifest, ...] = ()  # of the data sets that were at hand
    schema: int = SCHEMA


@dataclass(frozen=True, slots=True)
class Done:
    """What was packed or added."""

    cells: int  # that are new
    known: int  # that were there already, with the same content
    unchecked: dict[str, str]  # data sets that the predictions were not held against, with why


# -------------------------------------------------------------------------------------------- packing


def pack(folder: Path, archive: Path, at_hand: AtHand) -> Done:
    """Write all results of a folder into an archive, in place of an earlier one and of nothing else. Refuses what `add`
    would refuse."""
    found = some_results(folder)
    if archive.exists() and not _is_ours(archive):
        raise UserError("there is something else already where the archive would go", where=str(archive),
                        expected="a new name, or an earlier archive of `prior-bench submit`",
                        fix="give another --output")
    files = [path for result in found for path in _files(folder, result)]
    check_writable(archive.parent, sum(file.stat().st_size for file in files), "--output")
    _check_numbers(folder, found)
    _check_claims(found)
    digests = {path.name: digest_file(path) for path in sorted(files)}
    manifest = Manifest(prior_bench.__version__, digests, check(folder, found, at_hand))
    write_file(archive, lambda file: _write(file, manifest, files))
    return Done(len(found), 0, at_hand.missing)


def _is_ours(archive: Path) -> bool:
    try:
        with zipfile.ZipFile(archive) as packed:
            _read_manifest(archive, packed)
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError, UserError):  # RuntimeError: encrypted
        return False
    return True


def _files(folder: Path, result: Result) -> list[Path]:
    done = [check_predictions(folder, result)] if result.status == "done" else []
    return [result_path(folder, result.cell), *done]


def _write(archive: BinaryIO, manifest: Manifest, files: Iterable[Path]) -> None:
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(_entry(MANIFEST), json.dumps(asdict(manifest), indent=1) + "\n")
        for file in sorted(files):
            with packed.open(_entry(file.name), "w", force_zip64=True) as target, open(file, "rb") as source:
                shutil.copyfileobj(source, target)


def _entry(name: str) -> zipfile.ZipInfo:
    """The same for the same name on every machine and day."""
    entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED if name.endswith(".json") else zipfile.ZIP_STORED  # Parquet is packed
    entry.create_system, entry.external_attr = 3, _MODE << 16
    return entry


# -------------------------------------------------------------------------------------------- adding


def add(archives: Sequence[Path], folder: Path, at_hand: AtHand) -> Done:
    """Verify archives and add their cells to a results folder, all or, where anything is wrong, none."""
    if folder.exists() and not folder.is_dir():
        raise UserError("the results folder is a file", where=str(folder),
                        fix="name the results folder, and each archive by a --from of its own")
    check_writable(folder, 0, "RESULTS")
    new: dict[str, list[Path]] = {}
    known = 0
    with TemporaryDirectory(prefix=".from-", dir=folder) as staging:
        for number, archive in enumerate(archives):
            stage = Path(staging) / str(number)
            for result in _verified(archive, stage, at_hand):
                if _is_known(archive, result, stage, folder, new):
                    known += 1
                else:
                    new[result.cell.name] = _files(stage, result)
        _move([path for files in new.values() for path in files], folder)
    return Done(len(new), known, at_hand.missing)


def _is_known(archive: Path, result: Result, stage: Path, folder: Path, new: dict[str, list[Path]]) -> bool:
    """Whether the cell is in the folder, or in an earlier archive, with the same content."""
    there, *_ = new.get(result.cell.name, [result_path(folder, result.cell)])
    if not there.exists():
        return False
    if digest_file(there) != digest_file(result_path(stage, result.cell)):
        raise UserError("the cell is there already, with other content", where=f"{archive}: {there.name}",
                        expected=f"the content of {folder / there.name}, or of the archive before",
                        fix=f"to take the archive's, delete {there.name} and its .parquet from {folder}")
    if there.parent == folder:
        _files(folder, result)  # whose predictions are checked
    return True


def _move(files: Sequence[Path], folder: Path) -> None:
    """Move files into the folder, the JSON that makes a cell count last; what was moved is taken back on failure."""
    moved = []
    try:
        for path in sorted(files, key=lambda path: path.suffix == ".json"):
            os.replace(path, folder / path.name)
            moved.append(folder / path.name)
        sync_folder(folder)
    except BaseException as error:
        for path in reversed(moved):
            path.unlink(missing_ok=True)
        raise not_writable(folder, error, "RESULTS") if isinstance(error, OSError) else error from None


# ------------------------------------------------------------------------------------------ verifying


def _verified(archive: Path, stage: Path, at_hand: AtHand) -> list[Result]:
    """Unpack an archive into the new folder `stage` and return its results; anything amiss is a UserError."""
    if not archive.is_file():
        raise UserError(f"the archive {'is a folder' if archive.is_dir() else 'does not exist'}", where=str(archive),
                        expected="a file that `prior-bench submit` wrote", fix="check --from")
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = packed.infolist()
            _check_listing(archive, entries)
            check_writable(stage, sum(entry.file_size for entry in entries), "RESULTS")
            manifest = _read_manifest(archive, packed)
            _check_names(archive, manifest, entries)
            for entry in entries:
                if entry.filename != MANIFEST:
                    _unpack(packed, entry, stage)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError, OSError) as error:
        raise _refused(archive, "", f"it is no whole zip file ({str(error) or type(error).__name__})") from error
    for name, digest in manifest.files.items():
        if digest_file(stage / name) != digest:
            raise _refused(archive, name, "the file is not the one that the manifest names (another digest)")
    try:
        found = list(read_results(stage))
        _check_files(archive, manifest, stage, found)
        _check_numbers(stage, found)
        _check_claims(found)
        _check_data(manifest, check(stage, found, at_hand))
    except UserError as error:
        raise _refused(archive, Path(error.where).name, error.what, error.expected) from error
    return found


def _check_listing(archive: Path, entries: Sequence[zipfile.ZipInfo]) -> None:
    """Look at names, kinds and sizes as the archive declares them, before anything of it is unpacked."""
    seen: set[str] = set()
    for entry in entries:
        name = entry.orig_filename
        if reason := _bad_entry(entry):
            raise _refused(archive, name, reason)
        if name.casefold() in seen:  # some file systems do not tell case apart
            raise _refused(archive, name, "two files have this name")
        seen.add(name.casefold())
    total = sum(entry.file_size for entry in entries)
    if len(entries) > MAX_FILES:
        raise _refused(archive, "", f"it holds {len(entries)} files, {MAX_FILES} are allowed")
    if total > MAX_BYTES or total > MAX_RATIO * archive.stat().st_size:
        raise _refused(archive, "", f"it would unpack to {total / 2**20:.0f} MiB; {MAX_BYTES >> 30} GiB and "
                                    f"{MAX_RATIO} times its size are allowed")


def _bad_entry(entry: zipfile.ZipInfo) -> str:
    name = entry.orig_filename
    plain = name == entry.filename == PurePosixPath(name).name == PureWindowsPath(name).name
    if not plain or name.startswith(".") or not name.isprintable():
        return "its name is not that of a file in the archive itself"
    if not name.endswith((".json", ".parquet")):
        return "it is neither a result nor predictions"
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        return "it is a link or another special file"
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "it is encrypted, or compressed in another way than `prior-bench submit` does"
    if name.endswith(".json") and entry.file_size > MAX_TEXT:
        return f"it would unpack to {entry.file_size / 2**20:.0f} MiB, {MAX_TEXT >> 20} are allowed"
    return ""


def _read_manifest(archive: Path, packed: zipfile.ZipFile) -> Manifest:
    try:
        return parse_json(Manifest, packed.read(MANIFEST).decode(), *READ)
    except KeyError as error:
        raise _refused(archive, MANIFEST, "there is no manifest") from error
    except ValueError as error:
        raise _refused(archive, MANIFEST, f"not a manifest: {error}") from error


def _check_names(archive: Path, manifest: Manifest, entries: Iterable[zipfile.ZipInfo]) -> None:
    """The manifest names the files that are there, and no others."""
    there = {entry.filename for entry in entries} - {MANIFEST}
    for name in sorted(there ^ manifest.files.keys()):
        where = "the archive, but not in the manifest" if name in there else "the manifest, but not in the archive"
        raise _refused(archive, name, f"the file is in {where}")


def _unpack(packed: zipfile.ZipFile, entry: zipfile.ZipInfo, stage: Path) -> None:
    """zipfile reads in pieces, no more than the declared size, and then compares the check sum."""
    with packed.open(entry) as source, open(stage / entry.filename, "xb") as target:
        shutil.copyfileobj(source, target)
        target.flush()
        os.fsync(target.fileno())


def _check_files(archive: Path, manifest: Manifest, stage: Path, found: Sequence[Result]) -> None:
    """Each cell has its predictions, in tables that can be opened safely, and there are no others."""
    belonging = {path.name for result in found for path in _files(stage, result)}
    for name in sorted(manifest.files.keys() - belonging):
        raise _refused(archive, name, "the file belongs to no cell of the archive")
    for result in found:
        if result.status == "done":
            _check_table(predictions_path(stage, result.cell))


def _check_table(path: Path) -> None:
    """A table's sizes as its footer declares them, and those of its texts: a small file can hold a very large table."""
    import pyarrow
    import pyarrow.parquet

    try:
        footer = pyarrow.parquet.read_metadata(path)
        chunks = [footer.row_group(group).column(column)
                  for group in range(footer.num_row_groups) for column in range(footer.num_columns)]
        size, values = sum(chunk.total_uncompressed_size for chunk in chunks), sum(chunk.num_values for chunk in chunks)
        if size <= MAX_TABLE_BYTES and max(values, footer.num_rows) <= MAX_TABLE_VALUES:
            size += sum(_repeated(path, footer, column) for column in range(footer.num_columns))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"the predictions are no Parquet file ({error})", where=str(path)) from error
    if size > MAX_TABLE_BYTES or max(values, footer.num_rows) > MAX_TABLE_VALUES:
        raise UserError(f"the predictions would unpack to {values} values, {size / 2**20:.0f} MiB", where=str(path))


def _repeated(path: Path, footer: Any, column: int) -> int:
    """Bytes of a column of texts once its dictionary is unpacked: one long text, stored once, may be in every row."""
    import pyarrow.compute
    import pyarrow.parquet

    chunks = [footer.row_group(group).column(column) for group in range(footer.num_row_groups)]
    values, about = sum(chunk.num_values for chunk in chunks), footer.schema.column(column)
    if about.physical_type == "FIXED_LEN_BYTE_ARRAY":
        return int(values * about.length)
    if about.physical_type != "BYTE_ARRAY" or values * sum(c.total_uncompressed_size for c in chunks) < MAX_TABLE_BYTES:
        return 0
    total = 0
    table = pyarrow.parquet.ParquetFile(path, read_dictionary=[about.path]).read(columns=[about.path])
    for part in table.column(0).chunks:
        while pyarrow.types.is_list(part.type):
            part = part.flatten()
        if not pyarrow.types.is_dictionary(part.type):
            raise UserError(f"the predictions have a column of a kind that none has: {part.type}", where=str(path))
        lengths = pyarrow.compute.binary_length(part.dictionary)
        total += pyarrow.compute.sum(lengths.take(part.indices)).as_py() or 0
    return total


def _check_numbers(folder: Path, found: Iterable[Result]) -> None:
    for result in found:
        for problem in problems(folder, result):
            raise UserError(problem, where=str(result_path(folder, result.cell)),
                            fix="see `prior-bench score` for all that differs; run the cell again")


def _check_claims(found: Iterable[Result]) -> None:
    """What decides which results a table keeps: settings and time. One cell with others could take the place of all."""
    for result in found:
        cell, where = result.cell, f"{result.cell.name}.json"
        here = settings_digest(cell)
        if here not in (None, cell.settings_digest):
            raise UserError(f"the settings are not those that this program has for {cell.task} on "
                            f"{cell.dataset}/{cell.target} (digest {cell.settings_digest})", where=where,
                            expected=f"settings {here}" if here else "a target, mode and profile of the task",
                            fix="run the cell again with this program, or use the one that made it")
        if finished(result) > datetime.now(UTC) + CLOCKS:
            raise UserError(f"it says that it was made in the future ({finished(result)})", where=where,
                            expected="a time before now", fix="set the clock and run the cell again")


def _check_data(manifest: Manifest, here: Sequence[DataManifest]) -> None:
    """The archive's manifests of the data sets that are here are what these give."""
    ours = {one.digest: one for one in here}
    for one in manifest.data:
        if ours.get(one.digest, one) != one:
            raise UserError(f"its manifest of {one.dataset} is not that of the data set", where=MANIFEST)


def _refused(archive: Path, name: str, reason: str, expected: str = "") -> UserError:
    """`name` is shown as Python writes it: it may hold anything."""
    return UserError(f"the archive is refused: {reason.removeprefix('the archive is refused: ')}",
                     where=f"{archive}: {name!a}" if name else str(archive),
                     expected=expected or "what `prior-bench submit` wrote",
                     fix="nothing was added; ask for an archive that is whole, and of this version of the program, or "
                         "give the others alone")

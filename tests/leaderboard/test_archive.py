"""Archives of results: what `submit` packs is added whole; whatever was done to it on the way is refused."""

from __future__ import annotations

import json
import os
import random
import stat
import warnings
import zipfile

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prior_bench.digests import digest_file
from prior_bench.errors import UserError
from prior_bench.leaderboard import archive
from prior_bench.leaderboard.truth import AtHand
from prior_bench.results import read_results
from prior_bench.types import Cell

CELL = "prior_zero-shot_zero-shot_phantom_phantom-5x40_p0_e14635655bc2"
ABSENT = "random_retrieval_retrieval_phantom_reports_p0_27bb8dd8a431"  # not applicable: it has no predictions
PATTERNS = (f"{CELL}.*", f"{ABSENT}.*")


@pytest.fixture(autouse=True)
def no_data_set_is_here(monkeypatch):
    """The phantom would be made first; test_truth.py has data sets."""
    monkeypatch.setattr(AtHand, "_open", lambda self, name, left_out: self.missing.update({name: "not here"}))


def add(archives, folder):
    done = archive.add(archives, folder, AtHand())
    return done.cells, done.known


def pack(folder, path):
    return archive.pack(folder, path, AtHand()).cells


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def folder(committed):
    return committed(*PATTERNS)


@pytest.fixture
def packed(folder, tmp_path):
    path = tmp_path / "a.zip"
    assert pack(folder, path) == 2
    return path


@pytest.fixture
def target(committed):
    """Another results folder, which has one cell."""
    return committed("thumbnail_zero-shot*5x40*", to="target")


def refused(path, target, reason):
    before = contents(target)
    with pytest.raises(UserError, match=reason) as error:
        add([path], target)
    assert path.name in str(error.value)
    assert contents(target) == before


def unzipped(path):
    with zipfile.ZipFile(path) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def zipped(path, files, repair=True):
    """Write an archive anew; a forger would `repair` the digests of the manifest."""
    if repair and archive.MANIFEST in files:
        manifest = json.loads(files[archive.MANIFEST])
        manifest["files"] = {}
        for name in files.keys() - {archive.MANIFEST}:
            scratch = path.with_suffix(".scratch")
            scratch.write_bytes(files[name])
            manifest["files"][name] = digest_file(scratch)
        files[archive.MANIFEST] = json.dumps(manifest).encode()
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)


def with_result(change, name=CELL):
    """An edit of one result's JSON."""

    def edit(files):
        content = json.loads(files[f"{name}.json"])
        change(content)
        files[f"{name}.json"] = json.dumps(content).encode()

    return edit


def renamed(name, **changes):
    """A change of one cell, in its files' names too."""

    def edit(files):
        content = json.loads(files.pop(f"{name}.json"))
        content["cell"].update(changes)
        new = Cell(**content["cell"]).name
        files[f"{new}.json"] = json.dumps(content).encode()
        if f"{name}.parquet" in files:
            files[f"{new}.parquet"] = files.pop(f"{name}.parquet")

    return edit


def with_table(write):
    """An edit of the predictions, with the result's digest of them repaired too."""

    def edit(files, scratch):
        write(scratch)
        files[f"{CELL}.parquet"] = scratch.read_bytes()
        with_result(lambda result: result["provenance"].update(predictions=digest_file(scratch)))(files)

    return edit


def test_added_as_packed(packed, folder, target):
    before = contents(target)
    assert add([packed], target) == (2, 0)
    assert contents(target) == before | contents(folder)
    assert len(list(read_results(target))) == 3
    assert add([packed, packed], target) == (0, 4)
    assert contents(target) == before | contents(folder)


def test_a_new_folder_is_made(packed, folder, tmp_path):
    assert add([packed], tmp_path / "new") == (2, 0)
    assert contents(tmp_path / "new") == contents(folder)


def test_equal_bytes(packed, folder, tmp_path):
    for file in folder.iterdir():
        os.utime(file, (1, 1))
    pack(folder, tmp_path / "b.zip")
    assert packed.read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_cells_that_two_archives_share_are_added_once(packed, committed, target, tmp_path):
    pack(committed(f"{CELL}.*", to="part"), tmp_path / "b.zip")
    assert add([tmp_path / "b.zip", packed], target) == (2, 1)


def test_only_what_would_be_accepted_is_packed(folder, tmp_path):
    file = folder / f"{CELL}.json"
    files = contents(folder)
    with_result(lambda r: r["metrics"][0].update(value=0.99))(files)
    file.write_bytes(files[file.name])
    with pytest.raises(UserError, match=r"auroc_macro is stored as 0\.99"):
        pack(folder, tmp_path / "a.zip")
    (folder / f"{CELL}.parquet").unlink()
    with pytest.raises(UserError, match="are missing"):
        pack(folder, tmp_path / "a.zip")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there are no results"):
        pack(tmp_path / "empty", tmp_path / "a.zip")
    assert not (tmp_path / "a.zip").exists()


# ------------------------------------------------------------------------------- forged contents


@pytest.mark.parametrize(("edit", "reason"), [
    (with_result(lambda r: r["metrics"][0].update(value=0.99)), "auroc_macro is stored as 0.99"),
    (with_result(lambda r: r["metrics"][0].update(value=None)), r"stored as undefined"),
    (with_result(lambda r: r["metrics"][0]["counts"].update(images=2000)), "stored as 0.92.*images 2000"),
    (with_result(lambda r: r["metrics"].append(r["metrics"][0] | {"name": "better"})), "give no such metric"),
    (with_result(lambda r: r["metrics"].append({"name": "auroc", "value": 1.0}), ABSENT), "is not applicable"),
    (with_result(lambda r: r["cell"].update(fraction=1.0)), "does not match its cell"),
    (with_result(lambda r: r.update(schema=2)), "version 2, this program reads version 1"),
    (with_result(lambda r: r.update(colour="red")), "unknown field 'colour'"),
    (with_result(lambda r: r["metrics"][0].update(value=float("nan"))), "NaN is not allowed"),
    (with_result(lambda r: r["provenance"].update(predictions="0")), "not those of the result"),
    (with_result(lambda r: r["metrics"][0].update(value=10**400)), "10000.* is not allowed"),
    (with_result(lambda r: r["details"].update(best=10**400)), "10000.* is not allowed"),
    (with_result(lambda r: r["provenance"].update(method="x")), "provenance.method: 'x', expected an object"),
    (with_result(lambda r: r["provenance"]["method"].update(note=3)), "provenance.method.note: 3, expected str"),
    (with_result(lambda r: r["provenance"].update(notes=1)), "provenance.notes: 1, expected a list"),
    (with_result(lambda r: r["provenance"].update(notes=[1])), r"provenance.notes\[0\]: 1, expected str"),
    (with_result(lambda r: r["provenance"].update(excluded_images=3)), "provenance.excluded_images: 3"),
    (with_result(lambda r: r["provenance"].update(weights=[])), r"provenance.weights: \[\], expected an object"),
    (with_result(lambda r: r["provenance"].update(recipe="x")), "provenance.recipe: 'x', expected an object"),
    (with_result(lambda r: r["provenance"].update(finished=2026)), "provenance.finished: 2026, expected str"),
    (with_result(lambda r: r["provenance"].update(finished="today")), "provenance.finished: 'today', expected"),
    (with_result(lambda r: r.update(reason="\ud800"), ABSENT), "surrogates not allowed"),
    (with_result(lambda r: r["provenance"].update(finished="9999-12-31")), "says that it was made in the future"),
    (with_result(lambda r: r["provenance"].update(finished="9999-12-31"), ABSENT), "was made in the future"),
    (renamed(CELL, settings_digest="0" * 32), r"the settings are not those .* zero-shot on phantom/.* \(digest 0"),
    (renamed(ABSENT, task="none"), "unknown task 'none'"),
    (lambda files: files.update({f"{CELL}.json": b"[" * 100_000}), "nested too deeply"),
    (lambda files: files.update({f"{CELL}.json": b"\xff"}), "not a result"),
    (lambda files: files.pop(f"{CELL}.parquet"), "predictions of a result are missing"),
    (lambda files: files.pop(f"{CELL}.json"), "belongs to no cell"),
    (lambda files: files.update({f"{ABSENT}.parquet": b""}), "belongs to no cell"),
    (lambda files: files.pop(archive.MANIFEST), "no manifest"),
])
def test_forged_contents(packed, target, edit, reason):
    files = unzipped(packed)
    edit(files)
    zipped(packed, files)
    refused(packed, target, reason)


@pytest.mark.parametrize(("edit", "reason"), [
    (with_result(lambda r: r["metrics"][0].update(value=0.99)), "not the one that the manifest names"),
    (lambda files: files.pop(f"{CELL}.parquet"), "in the manifest, but not in the archive"),
    (lambda files: files.update({"more.json": b"{}"}), "in the archive, but not in the manifest"),
    (lambda files: files.update({archive.MANIFEST: b"{}"}), "not a manifest: schema: version None"),
    (lambda files: files.update({archive.MANIFEST: b'{"schema": 1, "files": {}}'}), "missing field 'prior_bench'"),
])
def test_forged_manifest(packed, target, edit, reason):
    files = unzipped(packed)
    edit(files)
    zipped(packed, files, repair=False)
    refused(packed, target, reason)


@pytest.mark.parametrize(("write", "reason"), [
    (lambda path: path.write_bytes(b"PAR1"), "no Parquet file"),
    (lambda path: pyarrow.parquet.write_table(pa.table({"image": ["a"]}), path), "cannot be scored: KeyError"),
])
def test_forged_predictions(packed, target, tmp_path, write, reason):
    files = unzipped(packed)
    with_table(write)(files, tmp_path / "scratch")
    zipped(packed, files)
    refused(packed, target, reason)


# --------------------------------------------------------------------------------- forged archives


@pytest.mark.parametrize("name", ["../x.json", "/x.json", "a/x.json", "..\\x.json", "C:x.json", ".x.json", "a/",
                                  "x\n.json", "../../results/x.parquet"])
def test_paths_outside_the_archive(packed, target, name):
    files = unzipped(packed)
    zipped(packed, files | {name: b"{}"})
    refused(packed, target, "its name is not that of a file in the archive itself")


def test_other_files(packed, target):
    zipped(packed, unzipped(packed) | {"x.py": b""})
    refused(packed, target, "neither a result nor predictions")


@pytest.mark.parametrize(("change", "reason"), [
    ({"external_attr": (stat.S_IFLNK | 0o777) << 16}, "a link"),
    ({"external_attr": (stat.S_IFIFO | 0o777) << 16}, "a link or another special file"),
    ({"compress_type": zipfile.ZIP_BZIP2}, "compressed in another way"),
    ({"file_size": archive.MAX_TEXT + 1}, "64 are allowed"),
])
def test_forged_entries(packed, target, change, reason):
    entry = archive._entry(f"{CELL}.json")
    for name, value in change.items():
        setattr(entry, name, value)
    assert reason.split(" or")[0] in archive._bad_entry(entry)
    if "file_size" not in change:
        with zipfile.ZipFile(packed, "w") as forged:
            forged.writestr(entry, "{}")
        refused(packed, target, reason)


@pytest.mark.parametrize("second", [CELL, CELL.upper()])
def test_two_files_of_one_name(packed, target, second):
    with warnings.catch_warnings(), zipfile.ZipFile(packed, "a") as forged:
        warnings.simplefilter("ignore")
        forged.writestr(f"{second}.json", b"{}")
    refused(packed, target, "two files have this name")


def test_a_bomb_is_refused_before_it_is_unpacked(packed, target, monkeypatch):
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as forged:
        forged.writestr("zeros.parquet", bytes(200 << 20))
    monkeypatch.setattr(archive, "_unpack", lambda *_: pytest.fail("unpacked"))
    refused(packed, target, "would unpack to 200 MiB; 16 GiB and 100 times its size are allowed")


@pytest.mark.parametrize(("limit", "reason"), [("MAX_BYTES", "would unpack to"), ("MAX_FILES", "it holds 4 files"),
                                              ("MAX_TABLE_BYTES", "the predictions would unpack to"),
                                              ("MAX_TABLE_VALUES", "the predictions would unpack to 2400 values")])
def test_limits(packed, target, monkeypatch, limit, reason):
    monkeypatch.setattr(archive, limit, 3)
    refused(packed, target, reason)


def long_texts(path, nested):
    """A table of half a KiB, in which one text of 100 KB stands 60,000 times."""
    rows, many = 30_000, 60_000
    repeated = pa.DictionaryArray.from_arrays(pa.array([0] * many, pa.int32()), pa.array(["x" * 100_000]))
    column = pa.ListArray.from_arrays(pa.array(range(0, many + 1, 2), pa.int32()), repeated) if nested else repeated
    table = pa.table({"group": column, "n": range(rows if nested else many)})
    pyarrow.parquet.write_table(table, path, compression="zstd", store_schema=False)


@pytest.mark.parametrize("nested", [False, True])
def test_a_text_that_is_repeated_is_a_bomb_too(packed, target, tmp_path, nested):
    files = unzipped(packed)
    with_table(lambda path: long_texts(path, nested))(files, tmp_path / "scratch")
    assert len(files[f"{CELL}.parquet"]) < 1 << 20
    zipped(packed, files)
    refused(packed, target, r"the predictions would unpack to \d+ values, 572\d MiB")


def test_texts_are_counted_as_they_are(tmp_path, monkeypatch):
    rng = random.Random(0)
    texts = [rng.choice(["a", "bcd", "efghi"]) for _ in range(1000)]
    monkeypatch.setattr(archive, "MAX_TABLE_BYTES", 0)
    for column in (pa.array(texts), pa.array([texts[:400], [], texts[400:]])):
        pyarrow.parquet.write_table(pa.table({"x": column}), tmp_path / "t.parquet")
        footer = pyarrow.parquet.read_metadata(tmp_path / "t.parquet")
        assert archive._repeated(tmp_path / "t.parquet", footer, 0) == sum(map(len, texts))


def test_a_size_that_is_not_as_declared(packed, target):
    """zipfile stops at the declared size, and the check sum is then wrong."""
    content = packed.read_bytes()
    with zipfile.ZipFile(packed) as whole:
        size = whole.getinfo(f"{CELL}.parquet").file_size
    start = content.rindex(f"{CELL}.parquet".encode()) - 46  # its entry in the central directory
    assert content[start + 24 : start + 28] == size.to_bytes(4, "little")
    packed.write_bytes(content[: start + 24] + (size - 100).to_bytes(4, "little") + content[start + 28 :])
    refused(packed, target, "no whole zip file")


@given(data=st.data())
def test_a_truncated_archive(packed, target, data):
    content = packed.read_bytes()
    damaged = packed.with_name("truncated.zip")
    damaged.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    refused(damaged, target, "no whole zip file")


@given(data=st.data())
def test_any_changed_byte_is_refused_or_changes_nothing(packed, folder, tmp_path, data):
    content = bytearray(packed.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = packed.with_name("damaged.zip")
    damaged.write_bytes(content)
    target = tmp_path / f"into-{len(list(tmp_path.iterdir()))}"
    try:
        add([damaged], target)
    except UserError:
        assert contents(target) == {}
    else:
        assert contents(target) == contents(folder)


# ------------------------------------------------------------------------------------ all or nothing


def test_a_bad_archive_keeps_the_good_ones_out(packed, target, tmp_path):
    (tmp_path / "b.zip").write_bytes(b"")
    before = contents(target)
    with pytest.raises(UserError, match="no whole zip file"):
        add([packed, tmp_path / "b.zip"], target)
    assert contents(target) == before


def test_a_cell_with_other_content_is_refused(packed, folder, target):
    before = contents(folder)
    with_result(lambda r: r["provenance"].update(finished="2030-01-01"))(before)
    for name in (f"{CELL}.json", f"{CELL}.parquet"):
        (target / name).write_bytes(before[name])
    refused(packed, target, "there already, with other content")


def test_a_known_cell_without_its_predictions_is_refused(packed, target):
    add([packed], target)
    (target / f"{CELL}.parquet").unlink()
    with pytest.raises(UserError, match="are missing"):
        add([packed], target)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_on_the_way_leaves_nothing(packed, target, monkeypatch, error):
    before, replace, done = contents(target), os.replace, []

    def failing(source, destination):
        if len(done) == 2:
            raise error
        done.append(replace(source, destination))

    monkeypatch.setattr(archive.os, "replace", failing)
    with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt):
        add([packed], target)
    assert contents(target) == before


def test_predictions_move_before_results(packed, target, monkeypatch):
    moved, replace = [], os.replace
    monkeypatch.setattr(archive.os, "replace", lambda a, b: (moved.append(b.suffix), replace(a, b)))
    add([packed], target)
    assert moved == [".parquet", ".json", ".json"]


def test_what_is_no_archive_or_folder(packed, target, tmp_path):
    refused(tmp_path / "none.zip", target, "does not exist")
    with pytest.raises(UserError, match="the results folder is a file"):
        add([packed], packed)
    with pytest.raises(UserError, match="does not exist"):
        pack(tmp_path / "none", tmp_path / "a.zip")

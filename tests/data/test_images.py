"""Decoding and the image store: every kind of bad file gives one clear error, and each image is decoded once."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageFile

from prior_bench.data import images
from prior_bench.data.geometry import Geometry
from prior_bench.data.images import BadImage, ImageStore, decode
from prior_bench.errors import UserError
from prior_bench.types import ImageInput

GREY = np.linspace(0, 255, 40 * 30).astype(np.uint8).reshape(40, 30)


def save(path, image, **options):
    image.save(path, **options)
    return path


def as_array(path):
    image = decode(path)
    assert image.mode == "L"
    return np.asarray(image)


# --------------------------------------------------------------------------------------- good files


def test_grey_is_untouched(tmp_path):
    np.testing.assert_array_equal(as_array(save(tmp_path / "a.png", Image.fromarray(GREY))), GREY)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "CMYK", "P", "YCbCr"])
def test_other_modes_become_grey(tmp_path, mode):
    path = tmp_path / ("a.tif" if mode in {"CMYK", "YCbCr"} else "a.png")
    got = as_array(save(path, Image.fromarray(GREY).convert(mode)))
    assert np.abs(got.astype(int) - GREY).max() <= 2


def test_colour_is_luma(tmp_path):
    got = as_array(save(tmp_path / "a.png", Image.new("RGB", (2, 2), (200, 100, 50))))
    assert abs(int(got[0, 0]) - round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)) <= 1


def test_transparent_pixels_are_black(tmp_path):
    assert as_array(save(tmp_path / "a.png", Image.new("RGBA", (2, 2), (255, 255, 255, 0)))).max() == 0


@pytest.mark.parametrize(("dtype", "top"), [(np.uint16, 4095), (np.uint16, 65535), (np.int32, 10**5), (np.float32, 1)])
def test_deep_images_are_scaled_by_their_range(tmp_path, dtype, top):
    """12 bits in a 16-bit file use the whole grey scale too."""
    deep = (GREY / 255 * top).astype(dtype)
    got = as_array(save(tmp_path / "a.tif", Image.fromarray(deep)))
    assert (got.min(), got.max()) == (0, 255)
    assert np.abs(got.astype(int) - GREY).max() <= 1


def test_constant_deep_image(tmp_path):
    assert as_array(save(tmp_path / "a.png", Image.fromarray(np.full((4, 4), 700, np.uint16)))).max() == 0


def test_stored_orientation_is_kept(tmp_path):
    exif = Image.Exif()
    exif[274] = 6  # "rotate by 90 degrees"; masks and boxes are in stored pixels
    assert as_array(save(tmp_path / "a.jpg", Image.fromarray(GREY), exif=exif)).shape == GREY.shape


# ---------------------------------------------------------------------------------------- bad files


def truncated(path, image, **options):
    save(path, image, **options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def noise():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))


def a_folder(path):
    path.mkdir()
    return path


def written(path, content):
    path.write_bytes(content)
    return path


def not_finite():
    return Image.fromarray(np.full((4, 4), np.nan, np.float32))


BAD = {
    "missing": (lambda d: d / "none.png", "does not exist"),
    "folder": (lambda d: a_folder(d / "a.png"), "unreadable"),
    "empty": (lambda d: written(d / "a.png", b""), "empty"),
    "text": (lambda d: written(d / "a.png", b"no image"), "no known image format"),
    "truncated png": (lambda d: truncated(d / "a.png", noise()), "truncated"),
    "truncated jpeg": (lambda d: truncated(d / "a.jpg", noise()), "truncated"),
    "truncated bmp": (lambda d: truncated(d / "a.bmp", noise()), "truncated"),
    "animated gif": (lambda d: save(d / "a.gif", noise(), save_all=True, append_images=[Image.new("L", (64, 64))]),
                     "2 frames"),
    "several pages": (lambda d: save(d / "a.tif", noise(), save_all=True, append_images=[noise()]), "2 frames"),
    "bomb": (lambda d: save(d / "a.png", Image.new("1", (9000, 9000))), "million pixels"),
    "not finite": (lambda d: save(d / "a.tif", not_finite()), "not finite"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_file_is_named(tmp_path, kind):
    make, reason = BAD[kind]
    path = make(tmp_path)
    with pytest.raises(BadImage, match=reason) as error:
        decode(path)
    assert error.value.where == str(path)
    assert error.value.fix


def test_every_cut_of_a_file_is_refused(tmp_path):
    """No length of a truncated file slips through as a grey rest, and nothing but BadImage is raised."""
    for name in ("a.png", "a.jpg", "a.gif", "a.bmp"):
        whole = save(tmp_path / name, noise()).read_bytes()
        for length in np.linspace(1, len(whole) * 0.95, 25).astype(int):
            (tmp_path / name).write_bytes(whole[:length])
            with pytest.raises(BadImage):
                decode(tmp_path / name)


def test_pillow_is_left_alone(tmp_path):
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    decode(save(tmp_path / "a.png", noise()))
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


# -------------------------------------------------------------------------------------------- store

SPEC = ImageInput(size=32)


@pytest.fixture
def files(toy_class, tmp_path):
    """The toy dataset with its images as files, counting what is decoded."""
    folder = tmp_path / "images"
    folder.mkdir()

    class Files(toy_class):
        name = "toy-files"
        decoded: list[str] = []  # noqa: RUF012

        def load_studies(self):
            from dataclasses import replace

            made = []
            for study in super().load_studies()[:20]:
                record = study.images[0]
                path = folder / f"{record.id}.png"
                if not path.exists():
                    super().read_image(record).save(path)
                made.append(replace(study, images=(replace(record, path=path),)))
            return made

        def read_image(self, record):
            self.decoded.append(record.id)
            return decode(record.path)

    Files.decoded.clear()
    return Files()


def test_store_holds_what_geometry_makes(files, tmp_path):
    ids = list(files.records)
    store = ImageStore.open(files, ids, SPEC, tmp_path / "store")
    assert store.ids == ids
    want = [Geometry((64, 64), SPEC).image(decode(files.records[i].path)) for i in ids[::-1]]
    np.testing.assert_array_equal(store.get(ids[::-1]), want)
    assert store.get([]).shape == (0, 32, 32)


def test_each_image_is_decoded_once(files, tmp_path):
    ids = list(files.records)
    ImageStore.open(files, ids[:5], SPEC, tmp_path / "store")
    ImageStore.open(files, ids, SPEC, tmp_path / "store")
    other_normalisation = ImageInput(size=32, mean=(0.1,), channels=3)
    ImageStore.open(files, ids, other_normalisation, tmp_path / "store")
    assert sorted(files.decoded) == sorted(ids)
    ImageStore.open(files, ids[:2], SPEC.at(64), tmp_path / "store")
    assert len(files.decoded) == len(ids) + 2


def test_changed_content_is_decoded_again(files, tmp_path):
    id = next(iter(files.records))
    before = ImageStore.open(files, [id], SPEC, tmp_path / "store").get([id])
    Image.new("L", (64, 64), 7).save(files.records[id].path)
    after = ImageStore.open(files, [id], SPEC, tmp_path / "store").get([id])
    assert (after == 7).all()
    assert not (before == 7).all()


def test_blocks(files, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "BLOCK_BYTES", 3 * 32 * 32)
    monkeypatch.setattr(images, "REPORT_EVERY", 8)
    ids, shares = list(files.records), []
    store = ImageStore.open(files, ids, SPEC, tmp_path / "store", report=lambda phase, share: shares.append(share))
    whole = store.get(ids)
    assert len(list((tmp_path / "store").glob("*/*.npy"))) == 7
    again = ImageStore.open(files, ids, SPEC, tmp_path / "store")
    np.testing.assert_array_equal(again.get(ids), whole)
    assert shares == [8 / 20, 16 / 20]


def test_a_block_without_its_index_does_not_count(files, tmp_path):
    """What a kill between data and index leaves behind is written anew."""
    ids = list(files.records)
    whole = ImageStore.open(files, ids, SPEC, tmp_path / "store").get(ids)
    next((tmp_path / "store").glob("*/0.json")).unlink()
    np.testing.assert_array_equal(ImageStore.open(files, ids, SPEC, tmp_path / "store").get(ids), whole)
    assert len(files.decoded) == 2 * len(ids)


def test_bad_images_are_counted_and_listed(files, tmp_path):
    ids = list(files.records)
    files.records[ids[3]].path.write_bytes(b"junk")
    files.records[ids[4]].path.unlink()
    with pytest.raises(UserError, match="2 of 20 images") as error:
        ImageStore.open(files, ids, SPEC, tmp_path / "store", max_bad=1)
    assert str(files.records[ids[3]].path) in error.value.where
    assert str(files.records[ids[4]].path) in error.value.where
    files.decoded.clear()
    store = ImageStore.open(files, ids, SPEC, tmp_path / "store", max_bad=2)
    assert set(store.bad) == {ids[3], ids[4]}
    assert store.ids == [i for i in ids if i not in store.bad]
    assert files.decoded == [ids[3]]  # the good ones were kept
    with pytest.raises(UserError, match="cannot be used"):
        store.get([ids[3]])


def test_two_at_a_time_share(files, tmp_path):
    ids = list(files.records)
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: ImageStore.open(files, ids, SPEC, tmp_path / "store").get(ids), range(2))
    np.testing.assert_array_equal(one, two)
    assert len(files.decoded) == len(ids)


def test_full_disk_is_a_user_error(files, tmp_path, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="No space left"):
        ImageStore.open(files, list(files.records), SPEC, tmp_path / "store")


def test_made_images(toy, tmp_path):
    ids = toy.ids("findings", "test")
    store = ImageStore.open(toy, ids, toy_input := ImageInput(size=64), tmp_path)
    np.testing.assert_array_equal(store.get(ids[:1])[0], np.asarray(toy.read_image(toy.records[ids[0]])))
    assert toy_input.size == 64

"""The phantom: same bytes always, whole families of facts agree (labels, masks, boxes, reports), nothing half-made."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from prior_bench.data.reports import split_sentences
from prior_bench.datasets.phantom import Phantom, PhantomLarge, store
from prior_bench.datasets.phantom.anatomy import Thorax, draw_exam, draw_patient
from prior_bench.datasets.phantom.canvas import Frame, noise
from prior_bench.datasets.phantom.findings import KINDS, draw, draw_finding, shape
from prior_bench.datasets.phantom.phrases import phrases
from prior_bench.datasets.phantom.studies import BOXES, EXCLUSIVE, MASKS, Size, make, roster
from prior_bench.errors import UserError

SMALL = Size(pixels=64, train=18, validation=4, test=6, per_class=1, seed=0)


class Small(Phantom):
    size = SMALL


@pytest.fixture(scope="module")
def studies() -> list:
    """A few hundred studies at full size, made in this process."""
    size = Size(pixels=128, train=200, validation=5, test=5, per_class=2, seed=0)
    return [made for case in roster(size) for made in make(size, case)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return Small(cache=tmp_path_factory.mktemp("phantom"))


# ------------------------------------------------------------------------------------------- the same bytes


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    one, two = (store.open_store(SMALL, tmp_path / str(n), processes=n) for n in (1, 2))
    assert one.images.tobytes() == two.images.tobytes()
    assert one.masks.tobytes() == two.masks.tobytes()
    assert one.records == two.records


def test_a_patient_can_be_made_alone() -> None:
    cases = list(roster(SMALL))
    everyone = {m.record["id"]: m for case in cases for m in make(SMALL, case)}
    (alone, *_) = make(SMALL, cases[7])
    np.testing.assert_array_equal(alone.image, everyone[alone.record["id"]].image)
    assert alone.record == everyone[alone.record["id"]].record


def test_the_content_is_pinned() -> None:
    """A change of the generator or of numpy's streams shows here: raise VERSION with it."""
    first = [m.record for case in list(roster(SMALL))[:6] for m in make(SMALL, case)]
    assert [(r["id"], r["view"], r["labels"]) for r in first] == PINNED


PINNED = [
    ("p00000-s1", "AP", []),
    ("p00000-s2", "AP", []),
    ("p00001-s1", "AP", ["atelectasis"]),
    ("p00001-s2", "AP", ["atelectasis"]),
    ("p00001-s3", "AP", ["atelectasis", "fracture"]),
    ("p00002-s1", "PA", ["consolidation"]),
    ("p00003-s1", "PA", ["effusion"]),
    ("p00003-s2", "PA", ["effusion"]),
    ("p00003-s3", "PA", ["cardiomegaly", "effusion"]),
    ("p00004-s1", "AP", []),
    ("p00005-s1", "PA", ["cardiomegaly", "edema"]),
]


def test_seeds_and_sizes_give_other_patients() -> None:
    other = Size(pixels=64, train=24, validation=6, test=10, per_class=2, seed=1)
    a, b = (next(make(size, next(iter(roster(size))))) for size in (SMALL, other))
    assert (a.image != b.image).mean() > 0.5


def test_noise_keeps_its_structure_at_every_size() -> None:
    small, large = (noise(np.random.default_rng(0), size, 8) for size in (64, 256))
    assert np.corrcoef(small.ravel(), large.reshape(64, 4, 64, 4).mean((1, 3)).ravel())[0, 1] > 0.99
    assert 0.7 < noise(np.random.default_rng(1), 256, 64).std() < 1.3


def test_frame_maps_points_to_the_pixels_that_show_them() -> None:
    frame = Frame(64, tilt=0.05, shift=(0.03, -0.02), zoom=0.9)
    for point in [(0.1, 0.3), (-0.25, 0.6)]:
        column, row = np.rint(frame.pixel(*point)).astype(int)
        assert abs(frame.x[row, column] - point[0]) < 0.6 / frame.unit
        assert abs(frame.y[row, column] - point[1]) < 0.6 / frame.unit


# ------------------------------------------------------------------------------------------- the roster


@pytest.mark.parametrize("kind", [Phantom, PhantomLarge])
def test_splits_are_by_patient_and_of_the_stated_size(kind: type[Phantom]) -> None:
    cases = list(roster(kind.size))
    for split in ("train", "validation", "test"):
        assert sum(c.studies for c in cases if c.split == split and not c.only) == getattr(kind.size, split)
    assert len({c.number for c in cases}) == len(cases)
    assert {c.studies for c in cases} == {1, 2, 3}
    single = [c for c in cases if c.only]
    assert {name: sum(c.only == name for c in single) for name in EXCLUSIVE} == dict.fromkeys(EXCLUSIVE, 40)
    assert all(c.split == "test" and c.studies == 1 for c in single)


def test_prevalences_are_those_of_a_clinic(studies: list) -> None:
    regular = [m.record["labels"] for m in studies if not m.record["only"]]
    for kind in KINDS:
        assert 0.05 < np.mean([kind in labels for labels in regular]) < 0.30, kind
    assert 0.2 < np.mean([not labels for labels in regular]) < 0.5
    assert np.mean([len(labels) > 1 for labels in regular]) > 0.15


def test_anatomy_stays_with_the_patient() -> None:
    """Follow-up films of one patient share the anatomy, not the exposure."""
    rng = np.random.default_rng(0)
    patient, other = draw_patient(rng), draw_patient(rng)
    exams = [draw_exam(rng, portable=0) for _ in range(2)]
    widths = [[Thorax(64, p, e).lungs.sum() / e.zoom**2 for e in exams] for p in (patient, other)]
    assert exams[0] != exams[1]
    assert abs(widths[0][0] - widths[0][1]) / widths[0][0] < 0.15


# ----------------------------------------------------------------------------------- labels, masks, boxes


def test_labels_masks_and_boxes_agree(studies: list) -> None:
    for made in studies:
        labels, masks = made.record["labels"], dict(zip(MASKS, made.masks, strict=True))
        assert masks["opacity"].any() == bool({"consolidation", "atelectasis", "nodule"} & set(labels)), made.record[
            "id"
        ]
        assert masks["pneumothorax"].any() == ("pneumothorax" in labels)
        assert masks["lungs"].mean() > 0.05
        assert {box[0] for box in made.record["boxes"]} == set(BOXES) & set(labels)
        for _, x1, y1, x2, y2 in made.record["boxes"]:
            assert 0 <= x1 < x2 <= 128
            assert 0 <= y1 < y2 <= 128
        for kind, x1, y1, x2, y2 in made.record["boxes"]:
            if kind in MASKS["opacity"]:  # the box is tight around its mask
                assert masks["opacity"][y1:y2, x1].any() or masks["opacity"][y1:y2, x2 - 1].any()
                assert masks["opacity"][y1:y2, x1:x2].any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_finding_changes_the_image_where_its_mask_is(kind: str) -> None:
    """With and without the finding, all else equal: most of the change lies in or near the mask, on its side."""
    inside, outside = [], []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        patient, exam = draw_patient(rng), draw_exam(rng, portable=0)
        finding = draw_finding(kind, rng)
        disease = shape([finding])
        ill, well = Thorax(128, patient, exam, disease), Thorax(128, patient, exam, disease)
        if kind in {"cardiomegaly", "fracture"}:  # drawn with the anatomy
            well = Thorax(128, patient, exam)
        mask = draw(ill, finding)
        assert mask.any()
        if finding.side:
            columns = ill.frame.x[mask]
            assert np.mean(columns < 0.03 if finding.side == "right" else columns > -0.03) > 0.99
        change = np.abs(ill.develop().astype(int) - well.develop().astype(int))
        inside.append(change[mask].mean())
        outside.append(change[~mask].mean())
    assert np.mean(inside) > 3.0
    assert np.mean(inside) > 4 * np.mean(outside)


def test_the_exclusive_set_has_one_finding_and_stands_apart(dataset: Small) -> None:
    table = dataset.labels("phantom-5x40")
    np.testing.assert_array_equal(table.values.sum(1), 1)
    np.testing.assert_array_equal(table.values.sum(0), SMALL.per_class)
    single = set(table.ids)
    assert all(dataset.study_of[i].split == "test" and dataset.study_of[i].report for i in single)
    assert not single & set(dataset.labels("findings").ids)
    for target in ("opacity", "pneumothorax", "lungs", "lesions", "reports"):
        assert not single & set(dataset.load_ids(target))
        assert len(dataset.ids(target, "test")) == SMALL.test


# ------------------------------------------------------------------------------------------------ reports

TERMS = {  # an independent reader of reports, in the manner of the CheXpert labeller
    "cardiomegaly": r"cardiomegaly|cardiac|heart",
    "effusion": r"effusion|pleural fluid|costophrenic|pleural spaces",
    "pneumothorax": r"pneumothorax|pleural spaces",
    "consolidation": r"consolidation|airspace|pneumonia|lungs are|lungs well",
    "edema": r"edema|congestion|vasculature",
    "atelectasis": r"atelecta|lungs are|lungs well",
    "nodule": r"nodul|mass|rounded|lungs are|lungs well",
    "fracture": r"fracture|osseous|bony",
}
DENIED = re.compile(r"\b(no|not|normal|clear|sharp|resolved|resolution|intact|unremarkable)\b", re.I)


def read(sentences: tuple[str, ...]) -> tuple[set[str], set[str]]:
    """Kinds that the sentences affirm, and kinds that they deny."""
    yes: set[str] = set()
    no: set[str] = set()
    for sentence in sentences:
        if "volumes" in sentence:
            continue
        kinds = {kind for kind, terms in TERMS.items() if re.search(terms, sentence, re.I)}
        (no if DENIED.search(sentence) else yes).update(kinds)
    return yes, no


def test_reports_say_what_the_labels_say(studies: list) -> None:
    for made in studies:
        report, labels = made.record["report"], set(made.record["labels"])
        for section in ("findings", "impression"):
            yes, no = read(tuple(report[section]))
            assert yes == labels, (made.record["id"], report[section])
            assert not no & labels, (made.record["id"], report[section])


def test_reports_name_side_and_place(studies: list) -> None:
    for made in studies:
        text = " ".join(made.record["report"]["findings"]).lower()
        for finding in made.record["findings"]:
            if finding["side"] and finding["place"] != "lingula":
                assert finding["side"] in text or "bilateral" in text
            if finding["kind"] in {"consolidation", "nodule"}:
                assert finding["place"] in text
            if finding["place"] == "clavicle":
                assert f"{finding['side']} clavicle" in text


def test_reports_are_varied_and_normal_sentences_recur(studies: list) -> None:
    reports = [made.record["report"] for made in studies]
    texts = [" ".join(r["findings"] + r["impression"]) for r in reports]
    assert len(set(texts)) > 0.95 * len(texts)
    sentences = [s for r in reports for s in r["findings"] + r["impression"]]
    assert len(set(sentences)) < 0.5 * len(sentences)
    assert all(4 <= len(r["findings"]) + len(r["impression"]) <= 12 for r in reports)
    assert any(re.search("possible|may represent|cannot be excluded", t, re.I) for t in texts)
    assert any("prior" in t for t in texts)


def test_first_examinations_compare_with_nothing(studies: list) -> None:
    words = re.compile(r"prior|unchanged|stable|interval|again|new |resolved|worse|persistent", re.I)
    for made in studies:
        if made.record["id"].endswith("-s1"):
            text = " ".join(made.record["report"]["findings"] + made.record["report"]["impression"])
            assert not words.search(text), text


def test_sentences_are_found_again_in_the_text(studies: list) -> None:
    for made in studies[:100]:
        for sentences in made.record["report"].values():
            assert split_sentences(" ".join(sentences)) == tuple(sentences)


# -------------------------------------------------------------------------------------------- the interface


def test_studies_masks_boxes_and_images_fit_together(dataset: Small) -> None:
    assert len(dataset.studies) == SMALL.total
    groups = {
        split: {s.group for s in dataset.studies if s.split == split} for split in ("train", "validation", "test")
    }
    assert not groups["train"] & groups["test"]
    assert not groups["train"] & groups["validation"]
    study = dataset.studies[0]
    assert study.report is not None
    assert study.report.sentences[0] in study.report.sections["impression"]
    (record,) = study.images
    image = dataset.read_image(record)
    assert (image.mode, image.size) == ("L", (64, 64))
    for id in dataset.ids("opacity", "train"):
        assert set(np.unique(dataset.load_mask("opacity", id))) <= {0, 1}
        assert dataset.load_mask("lungs", id).shape == (64, 64)
    boxes = [dataset.load_boxes("lesions", id) for id in dataset.load_ids("lesions")]
    assert all(b.xyxy.shape == (len(b.labels), 4) for b in boxes)
    assert any(len(b.labels) for b in boxes)


def test_masks_survive_packing(dataset: Small) -> None:
    case = next(iter(roster(SMALL)))
    for made in make(SMALL, case):
        for i, name in enumerate(MASKS):
            np.testing.assert_array_equal(dataset.load_mask(name, made.record["id"]), made.masks[i])


def test_prompts_cover_every_class(dataset: Small) -> None:
    findings, single = dataset.prompts("findings"), dataset.prompts("phantom-5x40")
    assert list(findings) == list(KINDS)
    assert list(single) == list(EXCLUSIVE)
    for kind, prompts in findings.items():
        assert read(prompts.positive) == ({kind}, set())
        assert kind in read(prompts.negative)[1]
        assert not read(prompts.negative)[0]
    assert all(read(prompts.positive)[0] == {kind} and not prompts.negative for kind, prompts in single.items())
    with pytest.raises(UserError):
        dataset.prompts("opacity")


def test_wrong_targets_are_user_errors(dataset: Small) -> None:
    for call in (
        lambda: dataset.load_labels("reports"),
        lambda: dataset.load_ids("findings"),
        lambda: dataset.load_mask("lesions", "p00000-s1"),
        lambda: dataset.load_boxes("lungs", "p00000-s1"),
        lambda: dataset.load_ids("lung"),
    ):
        with pytest.raises(UserError):
            call()


def test_planning_makes_nothing_and_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from prior_bench.datasets.phantom import Phantom;"
        f"Phantom(cache=Path({str(tmp_path)!r})).digest();"
        "assert not {'torch', 'scipy', 'sklearn', 'pandas', 'pyarrow', 'PIL', 'yaml'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not any(tmp_path.iterdir())


def test_digests_tell_the_sizes_apart(tmp_path: Path) -> None:
    assert len({cls(cache=tmp_path).digest() for cls in (Phantom, PhantomLarge, Small)}) == 3


# -------------------------------------------------------------------------------------------- interruptions


def test_an_interrupted_run_leaves_nothing_that_looks_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "made"
    real = store._make_chunk

    def dies(size: Size, cases: list) -> store.Chunk:
        if cases[0].number > 0:
            raise KeyboardInterrupt
        return real(size, cases)

    monkeypatch.setattr(store, "_make_chunk", dies)
    with pytest.raises(KeyboardInterrupt):
        store.open_store(SMALL, folder, processes=1)
    assert not folder.exists()
    monkeypatch.setattr(store, "_make_chunk", real)
    assert len(store.open_store(SMALL, folder, processes=1).records) == SMALL.total
    assert not folder.with_name("made.building").exists()


def test_two_at_a_time_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []
    real = store._make
    monkeypatch.setattr(store, "_make", lambda size, folder, n: (made.append(folder), real(size, folder, n)))
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: store.open_store(SMALL, tmp_path / "made", processes=1), range(2)))
    assert len(made) == 1
    assert both[0].records == both[1].records


def test_a_cache_that_cannot_hold_it_is_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        store.open_store(SMALL, tmp_path / "file" / "cache" / "made")
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match="need"):
        store.open_store(SMALL, tmp_path / "made")
    monkeypatch.setattr(store.os, "access", lambda *_: False)
    with pytest.raises(UserError, match="read-only"):
        store.open_store(SMALL, tmp_path / "made")



def test_a_script_without_a_main_guard_ends_with_the_reason(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("from pathlib import Path\n"
                      "from prior_bench.datasets.phantom import store\n"
                      "from prior_bench.datasets.phantom.studies import Size\n"
                      f"store.open_store({SMALL!r}, Path('made'), processes=2)\n")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "__main__" in done.stderr


# ------------------------------------------------------------------------------------- sentences and their pixels


def test_phrases_are_sentences_of_the_report_with_the_stored_masks() -> None:
    """Drawn a second time, findings have the masks and boxes of the first: `phrases` follows `make` draw by draw."""
    size = Size(pixels=64, train=0, validation=0, test=60, per_class=3, seed=0)
    for case in roster(size):
        found = defaultdict(list)
        for phrase in phrases(size, case):
            found[phrase.image].append(phrase)
        for made in make(size, case):
            own = found.pop(made.record["id"], [])
            sentences = made.record["report"]["findings"]
            assert all(phrase.sentence in sentences for phrase in own)
            assert [p.finding for p in own] == [k for k in KINDS for p in own if p.finding == k]
            assert {p.finding for p in own} == set(made.record["labels"])
            for name in ("opacity", "pneumothorax"):
                there = [p.mask for p in own if p.finding in MASKS[name]]
                stored = made.masks[list(MASKS).index(name)]
                np.testing.assert_array_equal(np.logical_or.reduce([np.zeros_like(stored), *there]), stored)
            for kind, x1, y1, x2, y2 in made.record["boxes"]:
                of_kind = [p.mask for p in own if p.finding == kind]
                assert any(m[y1, x1:x2].any() and m[y2 - 1, x1:x2].any() and m[y1:y2, x1].any() for m in of_kind)
        assert not found


def test_phrases_of_a_split(dataset: Small) -> None:
    found = list(dataset.load_phrases("test"))
    assert found
    assert {dataset.study_of[phrase.image].split for phrase in found} == {"test"}
    assert all(phrase.mask.shape == (64, 64) and phrase.mask.any() for phrase in found)

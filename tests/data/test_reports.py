"""Report parsing on the layouts that occur: MIMIC-CXR, Open-I, misspelt headers, lists and free notes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prior_bench.data.reports import parse_report, split_sentences

MIMIC = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___ year old woman with ?pleural effusion  // ?pleural effusion

 TECHNIQUE:  Chest PA and lateral

 FINDINGS:

 Cardiac size cannot be evaluated.  Large left pleural effusion measures 1.5 cm
 in depth.  Small right effusion is new since ___.

 IMPRESSION:

 1. Large left pleural effusion, discussed with Dr. ___ at 10:30 a.m.
 2. No pneumothorax
"""


def test_mimic_layout():
    report = parse_report(MIMIC)
    assert set(report.sections) == {"preamble", "examination", "indication", "technique", "findings", "impression"}
    assert report.sentences == (
        "Large left pleural effusion, discussed with Dr. ___ at 10:30 a.m.",
        "No pneumothorax",
        "Cardiac size cannot be evaluated.",
        "Large left pleural effusion measures 1.5 cm in depth.",
        "Small right effusion is new since ___.",
    )


@pytest.mark.parametrize(("header", "name"), [
    ("FINDINGS", "findings"), ("FINDIGNS", "findings"), ("FINDING", "findings"), ("IMPRESSON", "impression"),
    ("IMPRESSIONS", "impression"), ("CONCLUSION", "impression"), ("FINDINGS AND IMPRESSION", "impression"),
    ("CHEST, TWO VIEWS", "findings"), ("PORTABLE AP CHEST", "findings"), ("COMPARISON", "comparison"),
    ("REASON FOR EXAM", "indication"), ("BONES", "bones"), ("Impression", "impression"),
])
def test_header_names(header, name):
    assert parse_report(f" {header}:  The lungs are clear.").sections == {name: "The lungs are clear."}


def test_headers_in_one_line():
    report = parse_report("Indication: cough. Findings: Clear lungs. No effusion. Impression: Normal.")
    assert report.sentences == ("Normal.", "Clear lungs.", "No effusion.")


def test_later_section_wins_unless_empty():
    report = parse_report("IMPRESSION: Old.\nIMPRESSION: New.\nIMPRESSION:\n")
    assert report.sections["impression"] == "New."


def test_free_note_is_read_whole():
    note = "A 52-year-old man with fever. Chest X-ray: opacity in the right lobe, 2.5 cm. Improved on 5 mg. of drugs."
    report = parse_report(note)
    assert report.sections == {"note": note}
    assert report.sentences[1] == "Chest X-ray: opacity in the right lobe, 2.5 cm."
    assert len(report.sentences) == 3


def test_history_alone_describes_no_image():
    assert parse_report("INDICATION: Cough.\nCOMPARISON: None.").sentences == ()


@pytest.mark.parametrize("text", ["", "  \n ", "___", "FINDINGS:\n\nIMPRESSION: ___."])
def test_empty_reports(text):
    assert parse_report(text).sentences == ()


@pytest.mark.parametrize(("text", "sentences"), [
    ("Nodule of 1.5 cm. No effusion.", ("Nodule of 1.5 cm.", "No effusion.")),
    ("Seen by Dr. Smith vs. J. Doe. Stable.", ("Seen by Dr. Smith vs. J. Doe.", "Stable.")),
    ("Compared with ___. No change.", ("Compared with ___.", "No change.")),
    ("XXXX catheter in XXXX. clear lungs.", ("___ catheter in ___.", "clear lungs.")),
    ("The [**Known lastname 123**] line is in place.", ("The ___ line is in place.",)),
    ("No consolidation.. No effusion. . Discussion: fine.", ("No consolidation.", "No effusion.", "Discussion: fine.")),
    ("1. Edema. Worse. 2. Effusion 3. Line in place", ("Edema.", "Worse.", "Effusion", "Line in place")),
    ("Impression as follows: 1) edema; 2) effusion", ("Impression as follows:", "edema;", "effusion")),
    ("At level 2. There is a line.", ("At level 2.", "There is a line.")),
    ("- Edema\n- Effusion", ("Edema", "Effusion")),
    ("Pneumonia? Unlikely! Clear.", ("Pneumonia?", "Unlikely!", "Clear.")),
    ("a wrapped\nline.\n\nNew paragraph", ("a wrapped line.", "New paragraph")),
    ("i.v. line in place. rib no. 5 is broken", ("i.v. line in place.", "rib no. 5 is broken")),
])
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences


@given(st.text(alphabet="aB1. _\n:-?()X", max_size=80))
def test_any_text_keeps_its_letters(text):
    """Nothing is lost but white space, list numbers, bullets and marks; sentences are tidy."""
    sentences = split_sentences(text)
    for s in sentences:
        assert s == " ".join(s.split())
        assert any(c.isalpha() for c in s)
    assert [c for c in " ".join(sentences) if c in "aB"] == [c for c in text if c in "aB"]
    parse_report(text)

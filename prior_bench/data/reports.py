"""Report parsing: sections by header, sentences with the impression first, de-identification marks made one.

The rules are those of the MIMIC section parser as PRIOR uses it: a header is a run of capitals that ends with a colon;
names are normalised through a table of frequent names, with misspellings caught by likeness; of two sections with one
name the later wins; the sentences are the impression's, then the findings'. A text without those two sections is read
whole, as a free clinical note, but for sections that describe no image (history, technique).
"""

from __future__ import annotations

import re
from difflib import get_close_matches

from prior_bench.types import Report

BLANK = "___"  # what stands where a name or date was removed, as MIMIC-CXR writes it

_NAMES = {
    "impression": "impression", "conclusion": "impression", "opinion": "impression",
    "findings and impression": "impression", "impression and findings": "impression",
    "findings/impression": "impression", "impression/findings": "impression",
    "impression and recommendation": "impression",
    "findings": "findings", "imaging findings": "findings", "imaging notes": "findings",
    "report": "findings", "chest": "findings", "views": "findings",
    "indication": "indication", "clinical indication": "indication", "reason for exam": "indication",
    "reason for examination": "indication", "history": "history", "clinical history": "history",
    "clinical information": "history", "patient history": "history", "presentation": "history",
    "comparison": "comparison", "comparisons": "comparison", "technique": "technique", "procedure": "technique",
    "examination": "examination", "exam": "examination", "study": "examination", "type of examination": "examination",
    "notification": "notification", "recommendation": "recommendation", "recommendations": "recommendation",
    "wet read": "wet read", "discussion": "discussion", "final report": "final report",
}
_OF_THE_IMAGE = ("impression", "findings")
_NOT_OF_THE_IMAGE = {"indication", "history", "comparison", "technique", "examination", "notification"}
_VIEW_TITLE = re.compile(r"\b(views?|chest|ap|pa|lateral|portable|radiographs?)\b")

# A header: capitals at the start of a line, or a known name anywhere after the end of a sentence.
_KNOWN = "|".join(sorted((re.escape(n) for n in _NAMES if n not in {"chest", "views", "report", "study"}),
                         key=len, reverse=True))
_HEADER = re.compile(rf"^[ \t]*(?P<capitals>[A-Z][A-Z0-9 ()/,&'-]{{2,60}}):(?=\s|$)"
                     rf"|(?:^|(?<=[.:;_]\s)|(?<=\s\s))[ \t]*(?P<known>(?i:{_KNOWN})):(?=\s|$)", re.MULTILINE)

_MARKS = re.compile(r"\[\*\*.*?\*\*\]|_{2,}|\bX{4,}\b", re.DOTALL)  # MIMIC-II/III, MIMIC-CXR, Open-I
_LIST_ITEM = re.compile(r"(?:^|(?<=\s))(?P<number>\d{1,2})[.)]\s+(?=\S)")
_BULLET = re.compile(r"^\s*[-*•]\s+", re.MULTILINE)
_END = re.compile(r"[.?!]+[\"')\]]*(?=\s)")
_ABBREVIATIONS = {"approx", "ca", "cf", "dept", "dr", "drs", "e.g", "ext", "fig", "figs", "i.e", "inc", "jr", "mr",
                  "mrs", "ms", "no", "nos", "prof", "resp", "sr", "st", "vs"}


def parse_report(text: str) -> Report:
    """A report from its raw text. Sections are named in lower case; text before the first header is `preamble`.

    An empty or blank text gives a report without sections and sentences.
    """
    text = _tidy(text)
    sections: dict[str, str] = {}
    headers = list(_HEADER.finditer(text))
    starts = [h.start() for h in headers] + [len(text)]
    parts = [("preamble" if headers else "note", text[: starts[0]])]
    parts += [(_name(h), text[h.end(): end]) for h, end in zip(headers, starts[1:], strict=True)]
    for name, body in parts:
        if body.strip():
            sections[name] = body.strip()
    wanted = [name for name in _OF_THE_IMAGE if name in sections]
    wanted = wanted or [name for name in sections if name not in _NOT_OF_THE_IMAGE]
    sentences = tuple(s for name in wanted for s in split_sentences(sections[name]))
    return Report({name: " ".join(body.split()) for name, body in sections.items()}, sentences)


def split_sentences(text: str) -> tuple[str, ...]:
    """Sentences of a text, white space collapsed, in order. Nothing but marks and punctuation is no sentence.

    Decimals, abbreviations, initials and marks end no sentence; blank lines, bullets and the numbers of a list that
    starts with 1 begin one, and the numbers are dropped.
    """
    found = []
    for paragraph in re.split(r"\n\s*\n", _BULLET.sub("\n\n", _tidy(text))):
        for item in _items(" ".join(paragraph.split())):
            found += _sentences(item)
    return tuple(s for s in found if any(c.isalpha() for c in s))


def _tidy(text: str) -> str:
    """One kind of line end, blank and de-identification mark; runs of full stops (". ." and "..") become one."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\N{NO-BREAK SPACE}", " ")
    text = _MARKS.sub(BLANK, text.replace("\N{REPLACEMENT CHARACTER}", " "))
    return re.sub(r"\.(?:[ \t]*\.)+(?=\s|$)", ".", text)


def _name(header: re.Match[str]) -> str:
    """The section's normal name."""
    raw = " ".join((header["capitals"] or header["known"]).lower().split()).strip(" ,-")
    if raw in _NAMES:
        return _NAMES[raw]
    near = get_close_matches(raw, _NAMES, n=1, cutoff=0.8)  # FINDIGNS, IMPRESSON
    if near:
        return _NAMES[near[0]]
    # Titles of views ("CHEST, TWO VIEWS:") head the findings in reports that have no FINDINGS line.
    return "findings" if _VIEW_TITLE.search(raw) else raw


def _items(text: str) -> list[str]:
    """The items of a numbered list (1. ... 2. ...), with what stands before it; any other text as it is."""
    items, start, number = [], 0, 1
    for match in _LIST_ITEM.finditer(text):
        begins = number > 1 or not text[: match.start()].strip() or text[: match.start()].rstrip()[-1] in ".:;?!"
        if int(match["number"]) == number and begins:
            items.append(text[start: match.start()])
            start, number = match.end(), number + 1
    if number == 2:  # a lone "1." is no list unless it opens the text
        return [text[start:]] if not items[0].strip() else [text]
    return [*items, text[start:]]


def _sentences(text: str) -> list[str]:
    sentences, start = [], 0
    for match in _END.finditer(text):
        if _ends_sentence(text, match):
            sentences.append(text[start: match.end()].strip())
            start = match.end()
    return [*sentences, text[start:].strip()]


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    if match[0][0] in "?!":
        return True
    before = text[: match.start()].rsplit(maxsplit=1)
    word = before[-1].lstrip("(\"'").lower() if before else ""
    after = text[match.end():].lstrip()
    if word in _ABBREVIATIONS:
        # "no." ends "Pneumothorax? No." but not "no. 5"
        return word in {"no", "nos"} and not after[:1].isdigit()
    if len(word) == 1 and word.isalpha():
        return False  # an initial
    if after[:1].islower():
        # reports in lower case; not "i.v. line", "mm. of"
        return (len(word) > 3 and "." not in word) or word.endswith(BLANK)
    return True

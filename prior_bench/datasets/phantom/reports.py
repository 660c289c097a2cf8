"""Reports of the phantom: a small grammar that says what an examination shows, in many ways, and nothing else.

Every finding is named with its severity, side and place; a faint one may be hedged; absent ones are denied in part, in
sentences that recur between patients. Follow-up examinations compare with the prior. A few sentences say nothing about
the image (distractors). Nothing that is said contradicts the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prior_bench.datasets.phantom.anatomy import Exam, Patient
from prior_bench.datasets.phantom.findings import KINDS, Finding

SEVERITY = {
    "cardiomegaly": (("mild",), ("moderate",), ("severe", "marked")),
    "effusion": (("small", "trace"), ("moderate",), ("large",)),
    "pneumothorax": (("small", "tiny"), ("moderate",), ("large",)),
    "consolidation": (("focal", "patchy"), ("moderate",), ("extensive", "dense")),
    "edema": (("mild",), ("moderate",), ("severe",)),
    "atelectasis": (("linear", "minimal", "mild"), ("subsegmental", "moderate"), ("extensive", "marked")),
    "fracture": (("nondisplaced",), ("mildly displaced",), ("displaced",)),
}
NOUNS = {
    "cardiomegaly": ("cardiomegaly", "enlargement of the cardiac silhouette", "cardiac enlargement"),
    "effusion": ("pleural effusion", "pleural effusion", "pleural fluid collection"),
    "pneumothorax": ("pneumothorax",),
    "consolidation": ("consolidation", "airspace opacity", "airspace consolidation"),
    "edema": ("pulmonary edema", "pulmonary edema with vascular congestion", "interstitial edema"),
    "atelectasis": ("atelectasis", "atelectatic change", "bandlike atelectasis"),
    "nodule": ("nodule", "pulmonary nodule", "nodular opacity"),
    "fracture": ("fracture",),
}
PLURALS = {"effusion": "pleural effusions", "atelectasis": "basilar atelectasis"}
ORDINALS = {3: "third", 4: "fourth", 5: "fifth", 6: "sixth", 7: "seventh"}

SURE = (
    "There is {a}.",
    "{A}.",
    "{A} is present.",
    "{A} is seen.",
    "{A} is noted.",
    "Again there is {a}.",
    "{A} is demonstrated.",
)
HEDGED = (
    "Possible {n}.",
    "Questionable {n}.",
    "{A} is suspected.",
    "{A} cannot be excluded.",
    "Findings may represent {a}.",
    "Subtle changes suggest {a}.",
)
CHANGED = {
    "new": ("New {n}.", "{A} is new since the prior study.", "There is new {n}.", "Interval development of {a}."),
    "increased": ("{A} has increased since the prior study.", "Interval increase of {a}.", "{A}, worse than before."),
    "decreased": (
        "{A} has decreased since the prior study.",
        "Interval improvement of {a}.",
        "{A}, smaller than before.",
    ),
    "unchanged": (
        "Unchanged {n}.",
        "{A} is unchanged.",
        "Stable {n}.",
        "{A}, similar to the prior study.",
        "Persistent {n}.",
    ),
}
RESOLVED = ("The previously seen {n} has resolved.", "Interval resolution of the {n}.", "The {n} is no longer seen.")
EXTRA = {  # further ways that need no comparison
    "cardiomegaly": (
        "The heart is {adverb} enlarged.",
        "The cardiac silhouette is {adverb} enlarged.",
        "Heart size is {adverb} increased.",
    ),
    "effusion": (
        "Blunting of the {side} costophrenic angle is consistent with a {word} effusion.",
        "{A} with a meniscus at the {side} base.",
    ),
    "pneumothorax": (
        "A {side} pleural line is visible, consistent with {a}.",
        "{A} with absent peripheral lung markings.",
    ),
    "consolidation": (
        "{A} is concerning for pneumonia.",
        "{A}, which may reflect pneumonia in the appropriate setting.",
    ),
    "edema": ("Perihilar haze is consistent with {a}.", "Prominent vasculature and perihilar opacities indicate {a}."),
    "atelectasis": ("Bandlike opacity at the {side} base reflects {word} atelectasis.", "{A} with mild volume loss."),
    "nodule": ("A rounded {word} opacity in the {place} is consistent with a nodule.", "{A} with smooth margins."),
    "fracture": ("Cortical step-off indicates {a}.", "{A} with adjacent callus."),
}
ABSENT = {
    ("cardiomegaly",): (
        "Heart size is normal.",
        "The heart is normal in size.",
        "The heart is not enlarged.",
        "No cardiomegaly.",
        "Cardiac silhouette is within normal limits.",
    ),
    ("effusion",): ("No pleural effusion.", "There is no pleural effusion.", "The costophrenic angles are sharp."),
    ("pneumothorax",): ("No pneumothorax.", "There is no pneumothorax.", "No pneumothorax is seen."),
    ("consolidation",): (
        "No focal consolidation.",
        "There is no focal airspace consolidation.",
        "No evidence of pneumonia.",
    ),
    ("edema",): ("No pulmonary edema.", "The pulmonary vasculature is normal.", "No vascular congestion or edema."),
    ("atelectasis",): ("No atelectasis.", "No significant atelectasis."),
    ("nodule",): ("No suspicious pulmonary nodule.", "No nodule or mass is identified."),
    ("fracture",): (
        "No acute osseous abnormality.",
        "No displaced fracture is seen.",
        "The bony thorax is intact.",
        "Osseous structures are unremarkable.",
    ),
    ("effusion", "pneumothorax"): (
        "No pleural effusion or pneumothorax.",
        "There is no effusion or pneumothorax.",
        "The pleural spaces are clear.",
        "No pneumothorax or pleural effusion is seen.",
    ),
    ("consolidation", "effusion", "pneumothorax"): (
        "No focal consolidation, pleural effusion, or pneumothorax.",
        "There is no consolidation, effusion or pneumothorax.",
    ),
    ("consolidation", "edema"): ("No consolidation or pulmonary edema.",),
    ("consolidation", "edema", "atelectasis", "nodule"): ("The lungs are clear.", "Lungs are well aerated and clear."),
    ("edema", "effusion"): ("No pleural effusion or edema.",),
}
NORMAL = (
    "No acute cardiopulmonary abnormality.",
    "No acute cardiopulmonary process.",
    "Normal chest radiograph.",
    "No evidence of acute disease in the chest.",
)
DISTRACTORS = (
    "Clinical correlation is recommended.",
    "Follow-up imaging as clinically indicated.",
    "Findings were discussed with the referring team.",
    "The upper abdomen is unremarkable.",
    "Degenerative changes of the spine are mild.",
    "The trachea is midline.",
    "Evaluation is limited by overlying soft tissue.",
    "The hilar contours are unremarkable.",
)
ADVERBS = (("mildly", "slightly"), ("moderately",), ("severely", "markedly"))


def write(
    patient: Patient,
    exam: Exam,
    findings: Sequence[Finding],
    gone: Sequence[Finding],
    prior: bool,
    rng: np.random.Generator,
) -> dict[str, tuple[str, ...]]:
    """The report of an examination: sentences by section (findings, impression)."""
    pick = _Picker(rng)
    groups = _groups(findings)
    present = {f.kind for f in findings}
    body = [_technique(exam, prior, pick)]
    body += [_statement(group, prior, pick) for group in groups]
    body += [_capital(pick(RESOLVED).format(n=_bare([f], pick))) for f in _resolved(gone, present)]
    body += _devices(patient, exam, pick)[:2]
    room = max(1, 7 - len(body))
    body += _denials([k for k in KINDS if k not in present], room, pick)
    if len(body) < 7 and rng.random() < 0.35:
        body.append(pick(DISTRACTORS))
    head, tail = body[:1], body[1:]
    rng.shuffle(tail)
    return {"findings": tuple(head + tail), "impression": _impression(groups, present, pick)}


class _Picker:
    """Picks one of several phrasings."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng

    def __call__(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)


def _groups(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings that one sentence names: both sides of an effusion or atelectasis; else each one alone."""
    groups: list[list[Finding]] = []
    for f in findings:
        if groups and f.kind in PLURALS and groups[-1][0].kind == f.kind:
            groups[-1].append(f)
        else:
            groups.append([f])
    return groups


def _resolved(gone: Sequence[Finding], present: set[str]) -> list[Finding]:
    return [f for f in gone if f.kind not in present][:1]


def _bare(group: Sequence[Finding], pick: _Picker) -> str:
    """Noun phrase without article and severity: what and where."""
    f = group[0]
    if len(group) > 1:
        return f"bilateral {PLURALS[f.kind]}"
    noun = pick(NOUNS[f.kind])
    if f.kind in {"effusion", "pneumothorax"}:
        return f"{f.side} {noun}"
    if f.kind == "atelectasis":
        return pick((f"{noun} at the {f.side} lung base", f"{f.side} basilar {noun}"))
    if f.kind == "consolidation":
        return f"{noun} in the {f.place}" if f.place == "lingula" or pick.chance(0.7) else f"{f.place} {noun}"
    if f.kind == "nodule":
        return f"{noun} in the {f.place}"
    if f.kind == "fracture" and f.place == "clavicle":
        return f"fracture of the {f.side} clavicle"
    if f.kind == "fracture":
        number = int(f.place.split()[0])
        return pick((f"fracture of the {f.side} {ORDINALS[number]} rib", f"{f.side} {ORDINALS[number]} rib fracture"))
    return noun


def _word(finding: Finding, pick: _Picker) -> str:
    """Severity in words, or the size of a nodule."""
    return f"{finding.diameter:.1f} cm" if finding.kind == "nodule" else pick(SEVERITY[finding.kind][finding.severity])


def _phrase(group: Sequence[Finding], pick: _Picker) -> str:
    """Noun phrase with severity: 'small right pleural effusion'."""
    words = [_word(g, pick) for g in group]
    if len(group) > 1 and group[0].severity != group[1].severity:
        sides = ", ".join(f"{word} on the {g.side}" for word, g in zip(words, group, strict=True))
        return f"{_bare(group, pick)}, {sides}"
    return f"{words[0]} {_bare(group, pick)}"


def _article(phrase: str, group: Sequence[Finding]) -> str:
    countless = (
        group[0].kind in {"cardiomegaly", "edema", "atelectasis"} or len(group) > 1 or " consolidation" in phrase
    )
    if countless or " enlargement" in phrase:
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _statement(group: Sequence[Finding], prior: bool, pick: _Picker) -> str:
    f, phrase = group[0], _phrase(group, pick)
    faint = all(g.faint for g in group)
    if faint and pick.chance(0.6):
        frame = pick(HEDGED)
    elif prior and f.change and all(g.change == f.change for g in group) and pick.chance(0.7):
        frame = pick(CHANGED[f.change])
    elif len(group) == 1 and pick.chance(0.35):
        frame = pick(EXTRA[f.kind])
    else:
        frame = pick([s for s in SURE if f.change == "unchanged" or not s.startswith("Again")])
    named = _article(phrase, group)
    if len(group) > 1 and "pleural effusions" in phrase:
        frame = frame.replace(" is ", " are ").replace(" has ", " have ")
    if "," in phrase and frame.startswith("{A}"):  # the severities stand in commas; keep the verb near the noun
        frame = "There is {a}." if "effusions" not in phrase else "There are {a}."
    return _capital(
        frame.format(
            a=named,
            A=named,
            n=phrase,
            side=f.side,
            place=f.place,
            word=_word(f, pick),
            adverb=pick(ADVERBS[f.severity]),
        )
    )


def _technique(exam: Exam, prior: bool, pick: _Picker) -> str:
    view = pick(
        ("Portable AP view of the chest", "AP chest radiograph")
        if exam.view == "AP"
        else ("PA view of the chest", "Frontal PA chest radiograph")
    )
    return view + (
        pick((", compared with the prior study.", " in comparison with the prior examination.")) if prior else "."
    )


def _devices(patient: Patient, exam: Exam, pick: _Picker) -> list[str]:
    said = []
    if patient.pacemaker:
        said.append(
            pick(
                (
                    f"A {patient.pacemaker} chest wall pacemaker is in place.",
                    f"{patient.pacemaker.capitalize()} sided pacemaker with lead in the right ventricle.",
                )
            )
        )
    if exam.tube:
        said.append(
            pick(("Endotracheal and enteric tubes are in place.", "The endotracheal tube ends above the carina."))
        )
    if exam.catheter:
        said.append(f"A {exam.catheter} central venous catheter ends in the superior vena cava.")
    if patient.sternotomy:
        said.append(pick(("Median sternotomy wires are intact.", "Status post median sternotomy.")))
    if exam.inspiration > 0.75:
        said.append(pick(("Low lung volumes.", "The lung volumes are low.")))
    return said


def _denials(absent: Sequence[str], room: int, pick: _Picker) -> list[str]:
    """Sentences that deny absent findings, each finding at most once, at most `room` sentences."""
    left = set(absent)
    said: list[str] = []
    options = list(ABSENT)
    while left and len(said) < room:
        fitting = [kinds for kinds in options if set(kinds) <= left]
        if not fitting:
            break
        wide = [kinds for kinds in fitting if len(kinds) > 1]
        kinds = (
            (wide or fitting)[int(pick.rng.integers(len(wide or fitting)))]
            if pick.chance(0.6)
            else (fitting[int(pick.rng.integers(len(fitting)))])
        )
        said.append(pick(ABSENT[kinds]))
        left -= set(kinds)
    return said


def _impression(groups: Sequence[Sequence[Finding]], present: set[str], pick: _Picker) -> tuple[str, ...]:
    if not groups:
        return (pick(NORMAL),)
    parts = []
    for group in groups:
        phrase = _phrase(group, pick)
        hedged = all(g.faint for g in group) and pick.chance(0.4)
        parts.append(f"possible {phrase}" if hedged else phrase)
    alone = [p for p in parts if "," in p]  # a phrase with commas gets a sentence of its own
    others = [p for p in parts if "," not in p]
    sentences = [_enumerate(others[i : i + 3]) for i in range(0, len(others), 3)] + alone
    return tuple(_capital(s) + "." for s in sentences)


def _enumerate(parts: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]

"""Which sentence of a phantom's report speaks of which pixels.

The store keeps masks by target, not by finding. But everything follows from (version, seed, patient, examination), so a
patient's examinations are gone through again by the draws of `studies.make`, and the statements are worded again as
`reports.write` begins. It stands apart from them because their sources are in the dataset's digest.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prior_bench.data.dataset import Phrase
from prior_bench.datasets.phantom import reports
from prior_bench.datasets.phantom.anatomy import Thorax, draw_exam, draw_patient
from prior_bench.datasets.phantom.findings import Finding, draw, draw_findings, draw_kind, evolve, shape, visible
from prior_bench.datasets.phantom.studies import Case, Size, stream


def phrases(size: Size, case: Case) -> Iterator[Phrase]:
    """The statements of one patient's reports, in order of time; one that names both sides has the pixels of both.

    The impression is left out: it says the same again, and mostly of several findings at once.
    """
    rng = stream(size, case.number + 1)
    patient = draw_patient(rng)
    ill: list[Finding] = []
    for visit in range(case.studies):
        if case.only:
            ill = draw_kind(case.only, rng)
        elif visit == 0:
            ill = draw_findings(rng)
        else:
            ill, _ = evolve(ill, rng)
        seen = visible(ill)
        exam = draw_exam(rng)
        if not seen:
            continue
        thorax = Thorax(size.pixels, patient, exam, shape(seen))
        masks = iter([draw(thorax, finding) for finding in seen])
        pick = reports._Picker(stream(size, case.number + 1, visit + 1))
        reports._technique(exam, visit > 0, pick)  # draws its words first
        for group in reports._groups(seen):
            sentence = reports._statement(group, visit > 0, pick)
            mask = np.logical_or.reduce([next(masks) for _ in group])
            yield Phrase(f"p{case.number:05d}-s{visit + 1}", group[0].kind, sentence, mask.astype(np.uint8))

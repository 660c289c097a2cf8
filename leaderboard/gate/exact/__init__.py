"""The exact gate: small trained checkpoints give the same numbers as before, up to stated tolerances.

A difference is taken in units of a quantity's root mean square (a metric: of its range), see `fingerprint.difference`.
The tolerances stand well above what threads, other matrix kernels and older instruction sets change, and well below
what a mistake does; docs/gate.md has the measurements.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from math import isinf
from pathlib import Path
from time import perf_counter

from prior_bench.errors import UserError
from prior_bench.leaderboard.gate import baseline as files
from prior_bench.leaderboard.gate.baseline import Origin
from prior_bench.leaderboard.gate.exact import checkpoints, golden
from prior_bench.leaderboard.gate.exact.fingerprint import Fingerprint, difference
from prior_bench.leaderboard.gate.exact.golden import Golden, GoldenCell
from prior_bench.leaderboard.gate.exact.measure import PARTS, Group, Measured, Quantity, measure
from prior_bench.leaderboard.gate.options import Options
from prior_bench.leaderboard.gate.report import Finding, Report, Status

GATE = files.Gate("exact", golden.PACKAGED, "`prior-bench check --update --reason ...`")
TOLERANCES: Mapping[str, Mapping[Group, float]] = {  # by precision
    "fp32": {"features": 1e-4, "losses": 1e-4, "answers": 2e-3, "answers of heads": 0.15, "metrics": 0.005,
             "metrics of heads": 0.03},
    "bf16": {"features": 0.05, "losses": 0.01, "answers": 0.05, "answers of heads": 1.0, "metrics": 0.05,
             "metrics of heads": 0.1},
}
_LARGEST_USED = 1e6  # of a tolerance; a shape that differs has no size


def check(options: Options) -> Report:
    """The numbers of this program against the golden values."""
    folder, start = GATE.folder(options), perf_counter()
    findings: list[Finding] = []
    compared: list[Golden] = []
    for method in GATE.chosen(options, golden.methods(folder)):
        stored = files.read(Golden, folder, method, options.kind)
        if stored is None:
            findings.append(GATE.no_baseline(method, options))
            continue
        compared.append(stored)
        findings += compare(_measured(method, folder, options), stored, options)
    return Report(GATE.name, tuple(findings), _facts(options, compared, start))


def update(options: Options, reason: str) -> Report:
    """Write golden values anew, and checkpoints that are missing; the report compares new with old ones."""
    folder, start = GATE.folder_to_write(options), perf_counter()
    findings: list[Finding] = []
    compared: list[Golden] = []
    origin = Origin.now(reason, options.precision)
    for method in GATE.chosen(options, files.trainable()):
        checkpoints.ensure(method, golden.weights_folder(folder, method), options)
        measured = _measured(method, folder, options)
        if failed := [f"{title}: {cell.problem}" for title, cell in measured.items() if cell.problem]:
            raise UserError("what fails cannot become golden", where="; ".join(failed), fix="mend it first")
        if (old := GATE.replaced(Golden, method, options)) is not None:
            findings += compare(measured, old, options, anyway=True)
            compared.append(old)
        cells = {title: GoldenCell(cell.made_from, {what: q.fingerprint for what, q in cell.quantities.items()})
                 for title, cell in measured.items()}
        new = Golden(files.SCHEMA, options.kind, origin, cells)
        options.say(f"{method}: wrote {files.write(folder, method, options.kind, asdict(new))}")
    return Report(GATE.name, tuple(findings), _facts(options, compared, start))


def compare(measured: Mapping[str, Measured], stored: Golden, options: Options, anyway: bool = False
            ) -> Iterator[Finding]:
    """A finding for each quantity of each cell, or one for a cell that cannot be compared; with `anyway`, both."""
    tolerances = TOLERANCES[options.precision.name]
    wanted = {title for title in stored.cells if _asked(title, options)}
    for title in sorted(wanted - set(measured)):
        yield GATE.missing(title, "cell")
    for title, cell in measured.items():
        if cell.problem:
            status: Status = "regression" if cell.broken else "not comparable"
            yield Finding(GATE.name, title, "cell", status, "numbers", "none", reason=cell.problem)
        elif title not in stored.cells:
            yield GATE.additional(title, "cell")
        else:
            yield from _compare_cell(title, cell, stored.cells[title], tolerances, anyway)


def _compare_cell(title: str, cell: Measured, stored: GoldenCell, tolerances: Mapping[Group, float], anyway: bool
                  ) -> Iterator[Finding]:
    others = GATE.other(title, cell.made_from, stored.made_from)
    yield from others
    if others and not anyway:
        return
    for what in sorted(set(stored.quantities) - set(cell.quantities)):
        yield GATE.missing(title, what)
    for what, quantity in cell.quantities.items():
        if what in stored.quantities:
            yield _compare_quantity(title, what, quantity, stored.quantities[what], tolerances[quantity.group])
        else:
            yield GATE.additional(title, what)


def _compare_quantity(title: str, what: str, quantity: Quantity, expected: Fingerprint, tolerance: float) -> Finding:
    found = quantity.fingerprint
    apart, number = difference(found, expected, quantity.scale)
    status: Status = "passed" if apart <= tolerance else "regression"
    if isinf(apart):
        def shown(one: Fingerprint) -> str:
            return f"shape {'x'.join(map(str, one.shape)) or 'of a number'}, {one.undefined} undefined"
        return Finding(GATE.name, title, what, status, shown(expected), shown(found), "the same shape")
    name = f"{expected.name(number)} " if expected.name(number) else ""
    unit = f"{tolerance:g} of {quantity.scale or expected.scale:.3g}"
    return Finding(GATE.name, title, what, status, f"{name}{expected.numbers[number]:.6g}",
                   f"{name}{found.numbers[number]:.6g}", unit, used=min(apart / tolerance, _LARGEST_USED))


def _asked(title: str, options: Options) -> bool:
    """Whether a golden cell belongs to the tasks asked for; what a method gives alone always does."""
    part = title.split("/")[1]
    return not options.tasks or part in PARTS or part in options.tasks


def _measured(method: str, folder: Path, options: Options) -> dict[str, Measured]:
    start = perf_counter()
    with tempfile.TemporaryDirectory(prefix="prior-bench-check-") as scratch:
        measured = measure(method, golden.weights_folder(folder, method), options, Path(scratch))
    options.say(f"{method}: {len(measured)} cells measured in {perf_counter() - start:.1f} s")
    return measured


def _facts(options: Options, compared: Sequence[Golden], start: float) -> dict[str, str]:
    from prior_bench.provenance import package_versions

    origins = [stored.origin for stored in compared]
    changed = {f"{name} {origin.versions.get(name, 'missing')} -> {version}" for origin in origins
               for name, version in package_versions().items() if origin.versions.get(name) != version}
    more = {"versions that changed since": ", ".join(sorted(changed))} if changed else {}
    return files.facts(options, start, (o.line(f"torch {o.versions.get('torch', '?')}") for o in origins), more)

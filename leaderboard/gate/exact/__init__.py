"""The exact gate: small trained checkpoints give the same numbers as before, up to stated tolerances.

A difference is taken in units of a quantity's root mean square (a metric: of its range), see `fingerprint.difference`.
The tolerances stand well above what threads, other matrix kernels and older instruction sets change, and well below
what a mistake does; docs/gate.md has the measurements.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from math import isinf
from pathlib import Path
from time import perf_counter

from prior_bench.errors import UserError, unknown_name
from prior_bench.leaderboard.gate.exact import checkpoints, golden
from prior_bench.leaderboard.gate.exact.fingerprint import Fingerprint, difference
from prior_bench.leaderboard.gate.exact.golden import Golden, GoldenCell
from prior_bench.leaderboard.gate.exact.measure import PARTS, Group, Measured, Quantity, measure
from prior_bench.leaderboard.gate.options import Options, Origin
from prior_bench.leaderboard.gate.report import Finding, Report, Status

GATE = "exact"
TOLERANCES: Mapping[str, Mapping[Group, float]] = {  # by precision
    "fp32": {"features": 1e-4, "losses": 1e-4, "answers": 2e-3, "answers of heads": 0.15, "metrics": 0.005,
             "metrics of heads": 0.03},
    "bf16": {"features": 0.05, "losses": 0.01, "answers": 0.05, "answers of heads": 1.0, "metrics": 0.05,
             "metrics of heads": 0.1},
}
_UPDATE = "`prior-bench check --update --reason ...`"
_LARGEST_USED = 1e6  # of a tolerance; a shape that differs has no size


def check(options: Options) -> Report:
    """The numbers of this program against the golden values."""
    baseline, start = _baseline(options), perf_counter()
    findings: list[Finding] = []
    compared: list[Golden] = []
    for name in _chosen(options.methods, golden.methods(baseline), baseline):
        stored = golden.read(baseline, name, options.kind)
        if stored is None:
            known = ", ".join(golden.kinds(baseline, name)) or "none"
            findings.append(_incomparable(name, "golden values", options.kind, known,
                                          f"none for this device kind and precision: run {_UPDATE} on such a device"))
            continue
        compared.append(stored)
        findings += compare(_measured(name, baseline, options), stored, options)
    return Report(GATE, tuple(findings), _facts(options, compared, perf_counter() - start))


def update(options: Options, reason: str) -> Report:
    """Write golden values anew, and checkpoints that are missing; the report compares new with old ones."""
    baseline, start = _baseline(options), perf_counter()
    if options.tasks:
        raise UserError("the golden values of a method are written for all tasks", where="--task", fix="leave it out")
    if options.baseline is None and not checkpoints.in_working_tree():
        raise UserError("the packaged baseline of an installed program stays as it is", where="--update",
                        fix="give --baseline FOLDER, or run in a working tree of prior-bench")
    findings: list[Finding] = []
    compared: list[Golden] = []
    origin = Origin.now(reason, options.precision)
    for name in _chosen(options.methods, checkpoints.trainable(), baseline):
        checkpoints.ensure(name, golden.weights_folder(baseline, name), options)
        measured = _measured(name, baseline, options)
        if failed := [f"{title}: {cell.problem}" for title, cell in measured.items() if cell.problem]:
            raise UserError("what fails cannot become golden", where="; ".join(failed), fix="mend it first")
        if (old := _old(baseline, name, options)) is not None:
            findings += compare(measured, old, options, anyway=True)
            compared.append(old)
        cells = {title: GoldenCell(cell.made_from, {what: q.fingerprint for what, q in cell.quantities.items()})
                 for title, cell in measured.items()}
        options.say(f"{name}: wrote {golden.write(baseline, name, options.kind, origin, cells)}")
    return Report(GATE, tuple(findings), _facts(options, compared, perf_counter() - start))


def compare(measured: Mapping[str, Measured], stored: Golden, options: Options, anyway: bool = False
            ) -> Iterator[Finding]:
    """A finding for each quantity of each cell, or one for a cell that cannot be compared; with `anyway`, both."""
    tolerances = TOLERANCES[options.precision.name]
    wanted = {title for title in stored.cells if _asked(title, options)}
    for title in sorted(wanted - set(measured)):
        yield _incomparable(title, "cell", "present", "missing", f"no longer made; if that is meant, run {_UPDATE}")
    for title, cell in measured.items():
        if cell.problem:
            status: Status = "regression" if cell.broken else "not comparable"
            yield Finding(GATE, title, "cell", status, "numbers", "none", reason=cell.problem)
        elif title not in stored.cells:
            yield _incomparable(title, "cell", "missing", "present", f"not in the baseline; run {_UPDATE}")
        else:
            yield from _compare_cell(title, cell, stored.cells[title], tolerances, anyway)


def _compare_cell(title: str, cell: Measured, stored: GoldenCell, tolerances: Mapping[Group, float], anyway: bool
                  ) -> Iterator[Finding]:
    others = {name: found for name, found in cell.made_from.items() if found != stored.made_from.get(name)}
    for name, found in others.items():
        yield _incomparable(title, name, stored.made_from.get(name, "none"), found,
                            f"other {name} than in the baseline; if that is meant, run {_UPDATE}")
    if others and not anyway:
        return
    for what in sorted(set(stored.quantities) - set(cell.quantities)):
        yield _incomparable(title, what, "present", "missing", f"no longer made; if that is meant, run {_UPDATE}")
    for what, quantity in cell.quantities.items():
        if what in stored.quantities:
            yield _compare_quantity(title, what, quantity, stored.quantities[what], tolerances[quantity.group])
        else:
            yield _incomparable(title, what, "missing", "present", f"not in the baseline; run {_UPDATE}")


def _compare_quantity(title: str, what: str, quantity: Quantity, expected: Fingerprint, tolerance: float) -> Finding:
    found = quantity.fingerprint
    apart, number = difference(found, expected, quantity.scale)
    status: Status = "passed" if apart <= tolerance else "regression"
    if isinf(apart):
        def shown(one: Fingerprint) -> str:
            return f"shape {'x'.join(map(str, one.shape)) or 'of a number'}, {one.undefined} undefined"
        return Finding(GATE, title, what, status, shown(expected), shown(found), "the same shape")
    name = f"{expected.name(number)} " if expected.name(number) else ""
    unit = f"{tolerance:g} of {quantity.scale or expected.scale:.3g}"
    return Finding(GATE, title, what, status, f"{name}{expected.numbers[number]:.6g}",
                   f"{name}{found.numbers[number]:.6g}", unit, used=min(apart / tolerance, _LARGEST_USED))


def _incomparable(title: str, what: str, expected: str, found: str, reason: str) -> Finding:
    return Finding(GATE, title, what, "not comparable", expected, found, reason=reason)


def _asked(title: str, options: Options) -> bool:
    """Whether a golden cell belongs to the tasks asked for; what a method gives alone always does."""
    part = title.split("/")[1]
    return not options.tasks or part in PARTS or part in options.tasks


def _baseline(options: Options) -> Path:
    return options.baseline if options.baseline is not None else golden.PACKAGED


def _chosen(asked: tuple[str, ...], known: list[str], baseline: Path) -> list[str]:
    if not known:
        raise UserError("there is no exact baseline", where=str(baseline), fix=f"write one with {_UPDATE}")
    for name in asked:
        if name not in known:
            raise unknown_name("method of the exact gate", name, known, where="--method", see=str(baseline))
    return list(asked) or known


def _measured(name: str, baseline: Path, options: Options) -> dict[str, Measured]:
    start = perf_counter()
    with tempfile.TemporaryDirectory(prefix="prior-bench-check-") as scratch:
        measured = measure(name, golden.weights_folder(baseline, name), options, Path(scratch))
    options.say(f"{name}: {len(measured)} cells measured in {perf_counter() - start:.1f} s")
    return measured


def _old(baseline: Path, name: str, options: Options) -> Golden | None:
    """The golden values that are replaced; None where they are missing, or damaged, which is a reason to update."""
    try:
        return golden.read(baseline, name, options.kind)
    except UserError as error:
        options.say(f"{name}: {error.what}")
        return None


def _facts(options: Options, compared: list[Golden], seconds: float) -> dict[str, str]:
    from prior_bench.execution import device_name
    from prior_bench.provenance import package_versions, peak_memory

    memory = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in peak_memory().items())
    now = package_versions()
    changed = {f"{name} {then.get(name, 'missing')} -> {version}" for then in (g.origin.versions for g in compared)
               for name, version in now.items() if then.get(name) != version}
    return {
        "device": device_name(options.precision), "precision": options.precision.name,
        "baseline": golden.origins(compared) or "none",
        **({"versions that changed since": ", ".join(sorted(changed))} if changed else {}),
        "time": f"{seconds:.0f} s", "peak memory": memory,
    }

"""The statistical gate: pre-training and evaluating anew gives numbers like those of the baseline's seeds.

Metrics are tested for a change for the worse, loss terms for any change (judgement.py), all together by Holm's method.
A better metric passes and is named among the facts: the baseline wants an update, or a leak wants to be found. Time
and memory of a training step, as ratios to its bare encoders, may grow by a stated share. See docs/gate.md.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

from prior_bench.errors import UserError, unknown_name
from prior_bench.leaderboard.gate.options import Options, Origin
from prior_bench.leaderboard.gate.report import Finding, Report, Status
from prior_bench.leaderboard.gate.statistical import seeds as files
from prior_bench.leaderboard.gate.statistical import suite
from prior_bench.leaderboard.gate.statistical.judgement import LEVEL, POWER, Change
from prior_bench.leaderboard.gate.statistical.seeds import Baseline, Series, SuiteCell
from prior_bench.provenance import git_commit
from prior_bench.statistics import holm

GATE = "statistical"
SEEDS = 10  # of a baseline
NEW_SEEDS = 1  # of a check: two and more find less
COST_TOLERANCES = {"time": 0.3, "memory": 0.05}  # relative growth of the ratio to the bare encoders
_UPDATE = "`prior-bench check --gate statistical --update --reason ...`"


def check(options: Options) -> Report:
    """The numbers of this program against the baseline's seeds."""
    start, folder = perf_counter(), _folder(options)
    known = files.methods(folder)
    if not known:
        raise UserError("there is no statistical baseline", where=str(folder), fix=f"write one with {_UPDATE}")
    findings: list[Finding] = []
    stored: dict[str, Baseline] = {}
    for method in _chosen(options.methods, known):
        found = files.read(folder, method, options.kind)
        if found is None:
            findings.append(_incomparable(
                method, "baseline", options.kind, ", ".join(files.kinds(folder, method)),
                f"none for this device kind and precision: run {_UPDATE} on such a device"))
            continue
        others = [*_other_libraries(method, found), *_other_cells(found, suite.plan(method, 0, options), options)]
        findings += others
        if not others:  # what could not be compared is not computed
            stored[method] = found
    seeds = {method: _new_seeds(options, found) for method, found in stored.items()}
    measured = {title: cell for method in stored for title, cell in suite.run(method, seeds[method], options).items()}
    judged, tests = judge({title: cell for one in stored.values() for title, cell in one.cells.items()}, measured)
    return Report(GATE, (*findings, *judged), _facts(options, stored.values(), seeds.values(), tests,
                                                     perf_counter() - start))


def update(options: Options, reason: str) -> Report:
    """Write the baseline anew; the report tests its seeds against the old ones."""
    start, folder = perf_counter(), _folder(options)
    if options.tasks:
        raise UserError("the baseline of a method is written for all tasks", where="--task", fix="leave it out")
    seeds = list(options.seeds) or list(range(SEEDS))
    if len(seeds) < 2:
        raise UserError("a baseline needs the deviation between seeds", where="--seed", expected="5 seeds or more")
    if options.baseline is None and git_commit() is None:
        raise UserError("the packaged baseline of an installed program stays as it is", where="--update",
                        fix="give --baseline FOLDER, or run in a working tree of prior-bench")
    old: dict[str, Baseline] = {}
    measured: dict[str, SuiteCell] = {}
    origin = Origin.now(reason, options.precision)
    for method in _chosen(options.methods, suite.trainable()):
        cells = suite.run(method, seeds, options)
        if failed := [f"{title}: {cell.problem}" for title, cell in cells.items() if cell.problem]:
            raise UserError("what fails cannot become a baseline", where="; ".join(failed), fix="mend it first")
        if (before := _old(folder, method, options)) is not None:
            old[method] = before
            measured |= cells
        options.say(f"{method}: wrote {files.write(folder, method, options.kind, origin, seeds, cells)}")
    findings, tests = judge({title: cell for one in old.values() for title, cell in one.cells.items()}, measured)
    return Report(GATE, tuple(findings), _facts(options, old.values(), [seeds], tests, perf_counter() - start))


# ------------------------------------------------------------------------------------------- judging


@dataclass(frozen=True, slots=True)
class Compared:
    """One t test of the run: where, and what it says, adjusted over all of them."""

    cell: str
    what: str
    change: Change
    adjusted: float
    better: float  # adjusted p of a change for the better


def judge(old: Mapping[str, SuiteCell], new: Mapping[str, SuiteCell]) -> tuple[list[Finding], tuple[Compared, ...]]:
    """A finding for each quantity of the cells in `new`, and the tests behind them."""
    findings: list[Finding] = []
    pairs: list[tuple[str, str, Series, Series]] = []
    for title, cell in new.items():
        if cell.problem:
            status: Status = "regression" if cell.broken else "not comparable"
            findings.append(Finding(GATE, title, "cell", status, "numbers", "none", reason=cell.problem))
        elif title not in old:
            findings.append(_incomparable(title, "cell", "missing", "present", f"not in the baseline; run {_UPDATE}"))
        else:
            findings += _other_quantities(title, old[title], cell)
            pairs += [(title, name, old[title].quantities[name], series) for name, series in cell.quantities.items()
                      if name in old[title].quantities]
    costs = [pair for pair in pairs if pair[0].endswith(f"/{suite.COST}")]
    tests = compared([pair for pair in pairs if pair not in costs])
    findings += [_finding(test, len(tests)) for test in tests]
    findings += [_cost(*pair) for pair in costs]
    order = {title: place for place, title in enumerate(new)}
    return sorted(findings, key=lambda f: order[f.cell]), tests


def compared(pairs: Sequence[tuple[str, str, Series, Series]]) -> tuple[Compared, ...]:
    """All tests of a run, adjusted together (Holm): those for the worse, and apart from them those for the better."""
    changes = [Change.of(_numbers(old), _numbers(new), old.better) for _, _, old, new in pairs]
    adjusted, better = holm([c.p for c in changes]), holm([c.p_better for c in changes])
    return tuple(Compared(title, name, change, float(p), float(q))
                 for (title, name, _, _), change, p, q in zip(pairs, changes, adjusted, better, strict=True))


def _numbers(series: Series) -> list[float]:
    return [value for value in series.values if value is not None]


def _finding(test: Compared, tests: int) -> Finding:
    change, level = test.change, LEVEL / tests
    failed = test.adjusted < LEVEL
    reason = ""
    if failed:
        what = "worse than" if change.sides == 1 else "apart from"
        reason = f"{what} seeds make it: p = {test.adjusted:.1g} (Holm, {tests} tests)"
    elif test.better < LEVEL:
        reason = f"better than seeds make it: p = {test.better:.1g}"
    return Finding(
        GATE, test.cell, test.what, "regression" if failed else "passed",
        f"{change.old:.4g} (deviation {change.deviation:.2g}, {change.degrees + 1} seeds)", f"{change.new:.4g}",
        f"{change.critical(level):.2g}; finds {change.detectable(level):.2g} with power {POWER:.0%}", reason,
        change.used(test.adjusted))


def _cost(title: str, name: str, old: Series, new: Series) -> Finding:
    """A ratio to the bare encoders against the baseline's, medians over the seeds."""
    before, now, tolerance = median(_numbers(old)), median(_numbers(new)), COST_TOLERANCES[name]
    growth = now / before - 1
    failed = growth > tolerance
    return Finding(GATE, title, name, "regression" if failed else "passed", f"{before:.3g} times the bare encoders",
                   f"{now:.3g}", f"{tolerance:+.0%}", f"a training step costs {growth:+.0%}" if failed else "",
                   max(0.0, growth / tolerance))


# ----------------------------------------------------------------------------- what cannot be compared


def _incomparable(title: str, what: str, expected: str, found: str, reason: str) -> Finding:
    return Finding(GATE, title, what, "not comparable", expected, found, reason=reason)


def _other_libraries(method: str, stored: Baseline) -> Iterator[Finding]:
    """Libraries that weights depend on whose major version is another one."""
    from prior_bench.engine.pretrain import versions

    for name, now in versions().items():
        then = stored.origin.versions.get(name)
        if then is not None and then.partition(".")[0] != now.partition(".")[0]:
            yield _incomparable(method, name, then, now, f"another major version; run {_UPDATE}")


def _other_cells(stored: Baseline, planned: suite.Planned, options: Options) -> Iterator[Finding]:
    """Cells that the baseline has and the suite has not, or the other way, or that are made from something else."""
    own = {title: cell for title, cell in stored.cells.items() if not options.tasks
           or title.split("/")[1] in {*options.tasks, suite.TRAINING, suite.COST}}
    for title in sorted(set(own) - set(planned.made_from)):
        yield _incomparable(title, "cell", "present", "missing", f"no longer made; if that is meant, run {_UPDATE}")
    for title, made_from in planned.made_from.items():
        if title not in own:
            yield _incomparable(title, "cell", "missing", "present", f"not in the baseline; run {_UPDATE}")
            continue
        before = own[title].made_from
        for name in sorted(set(made_from) | set(before)):
            if made_from.get(name) != before.get(name):
                yield _incomparable(title, name, before.get(name, "none"), made_from.get(name, "none"),
                                    f"other {name} than in the baseline; if that is meant, run {_UPDATE}")


def _other_quantities(title: str, old: SuiteCell, new: SuiteCell) -> Iterator[Finding]:
    for what in sorted(set(old.quantities) - set(new.quantities)):
        yield _incomparable(title, what, "present", "missing", f"no longer made; if that is meant, run {_UPDATE}")
    for what in sorted(set(new.quantities) - set(old.quantities)):
        yield _incomparable(title, what, "missing", "present", f"not in the baseline; run {_UPDATE}")


# ------------------------------------------------------------------------------------------- options


def _folder(options: Options) -> Path:
    return options.baseline if options.baseline is not None else files.PACKAGED


def _chosen(asked: tuple[str, ...], known: list[str]) -> list[str]:
    for name in asked:
        if name not in known:
            raise unknown_name("method of the statistical gate", name, known, where="--method")
    return list(asked) or known


def _old(folder: Path, method: str, options: Options) -> Baseline | None:
    """The baseline that is replaced; None where it is missing, or damaged, which is a reason to update."""
    try:
        return files.read(folder, method, options.kind)
    except UserError as error:
        options.say(f"{method}: {error.what}")
        return None


def _new_seeds(options: Options, stored: Baseline) -> list[int]:
    """Those asked for, or the next after the baseline's, so that unchanged code gives the same answer every night."""
    first = max(stored.seeds) + 1
    seeds = list(options.seeds) or list(range(first, first + NEW_SEEDS))
    if known := sorted(set(seeds) & set(stored.seeds)):
        raise UserError(f"the baseline holds seed {known[0]}: it would be compared with itself", where="--seed",
                        expected=f"a seed other than {', '.join(map(str, stored.seeds))}")
    return seeds


def _facts(options: Options, stored: Collection[Baseline], seeds: Iterable[Sequence[int]], tests: Sequence[Compared],
           seconds: float) -> dict[str, str]:
    from prior_bench.execution import device_name
    from prior_bench.provenance import peak_memory

    origins = dict.fromkeys(f"{one.origin.reason} ({one.origin.date}, {one.origin.device}, {len(one.seeds)} seeds, "
                            f"commit {one.origin.commit[:12]})" for one in stored)
    facts = {"device": device_name(options.precision), "precision": options.precision.name,
             "baseline": "; ".join(origins) or "none",
             "seeds": ", ".join(map(str, sorted({seed for some in seeds for seed in some}))) or "none"}
    if tests:
        facts["tests"] = f"{len(tests)}, at most {LEVEL:.0%} false alarms a run"
        facts |= _detectable(tests)
    if risen := [f"{t.cell} {t.what} {t.change.old:.4g} -> {t.change.new:.4g}" for t in tests if t.better < LEVEL]:
        facts["better than the baseline"] = f"{'; '.join(risen)}: look for a leak, else run {_UPDATE}"
    memory = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in peak_memory().items())
    return facts | {"time": f"{seconds:.0f} s", "peak memory": memory}


def _detectable(tests: Sequence[Compared]) -> dict[str, str]:
    """The smallest regression that a run finds with power POWER, by metric: from the least to the largest of cells."""
    found: dict[str, list[float]] = {}
    for test in tests:
        if test.change.sides == 1:
            found.setdefault(test.what, []).append(test.change.detectable(LEVEL / len(tests)))
    parts = [f"{name} {min(sizes):.2g} to {max(sizes):.2g}" for name, sizes in found.items()]
    return {f"found with power {POWER:.0%}": "a loss of " + ", ".join(parts)} if parts else {}

"""The statistical gate: pre-training and evaluating anew gives numbers like those of the baseline's seeds.

Metrics are tested for a change for the worse, loss terms for any change (judgement.py), all together by Holm's method.
A better metric passes and is named among the facts: the baseline wants an update, or a leak wants to be found. Time
and memory of a training step, as ratios to its bare encoders, may grow by a stated share. See docs/gate.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

from prior_bench.errors import UserError
from prior_bench.leaderboard.gate import baseline as files
from prior_bench.leaderboard.gate.baseline import Origin
from prior_bench.leaderboard.gate.options import Options
from prior_bench.leaderboard.gate.report import Finding, Report, Status
from prior_bench.leaderboard.gate.statistical import suite
from prior_bench.leaderboard.gate.statistical.judgement import LEVEL, POWER, Change
from prior_bench.leaderboard.gate.statistical.seeds import (
    LEAST,
    PACKAGED,
    Baseline,
    Series,
    SuiteCell,
    content,
    methods,
)
from prior_bench.statistics import holm

GATE = files.Gate("statistical", PACKAGED, "`prior-bench check --gate statistical --update --reason ...`")
SEEDS = 10  # of a baseline
NEW_SEEDS = 1  # of a check: two and more find less
COST_TOLERANCES = {"time": 0.3, "memory": 0.05}  # relative growth of the ratio to the bare encoders


def check(options: Options) -> Report:
    """The numbers of this program against the baseline's seeds."""
    start, folder = perf_counter(), GATE.folder(options)
    findings: list[Finding] = []
    stored: dict[str, Baseline] = {}
    for method in GATE.chosen(options, methods(folder)):
        found = files.read(Baseline, folder, method, options.kind)
        if found is None:
            findings.append(GATE.no_baseline(method, options))
            continue
        others = [*_other_libraries(method, found), *_other_cells(found, suite.plan(method, 0, options), options)]
        findings += others
        if not others:  # what could not be compared is not computed
            stored[method] = found
    seeds = {method: _new_seeds(options, found) for method, found in stored.items()}
    measured = {title: cell for method in stored for title, cell in suite.run(method, seeds[method], options).items()}
    judged, tests = judge(_cells(stored.values()), measured)
    return Report(GATE.name, (*findings, *judged), _facts(options, stored.values(), seeds.values(), tests, start))


def update(options: Options, reason: str) -> Report:
    """Write the baseline anew; the report tests its seeds against the old ones."""
    start = perf_counter()
    seeds = options.seeds or tuple(range(SEEDS))
    if len(seeds) < LEAST:
        raise UserError(f"a baseline needs the deviation between seeds, for which {len(seeds)} are too few",
                        where="--seed", expected=f"{LEAST} seeds or more", fix="leave it out, or give more")
    folder = GATE.folder_to_write(options)
    old: list[Baseline] = []
    measured: dict[str, SuiteCell] = {}
    origin = Origin.now(reason, options.precision)
    for method in GATE.chosen(options, files.trainable()):
        cells = suite.run(method, seeds, options)
        if failed := [f"{title}: {cell.problem}" for title, cell in cells.items() if cell.problem]:
            raise UserError("what fails cannot become a baseline", where="; ".join(failed), fix="mend it first")
        if (before := GATE.replaced(Baseline, method, options)) is not None:
            old.append(before)
            measured |= cells
        new = Baseline(files.SCHEMA, options.kind, origin, seeds, cells)
        options.say(f"{method}: wrote {files.write(folder, method, options.kind, content(new))}")
    findings, tests = judge(_cells(old), measured)
    return Report(GATE.name, tuple(findings), _facts(options, old, [seeds], tests, start))


def _cells(baselines: Iterable[Baseline]) -> dict[str, SuiteCell]:
    return {title: cell for one in baselines for title, cell in one.cells.items()}


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
            findings.append(Finding(GATE.name, title, "cell", status, "numbers", "none", reason=cell.problem))
        elif title not in old:
            findings.append(GATE.additional(title, "cell"))
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
        GATE.name, test.cell, test.what, "regression" if failed else "passed",
        f"{change.old:.4g} (deviation {change.deviation:.2g}, {change.degrees + 1} seeds)", f"{change.new:.4g}",
        f"{change.critical(level):.2g}; finds {change.detectable(level):.2g} with power {POWER:.0%}", reason,
        change.used(test.adjusted))


def _cost(title: str, name: str, old: Series, new: Series) -> Finding:
    """A ratio to the bare encoders against the baseline's, medians over the seeds."""
    before, now, tolerance = median(_numbers(old)), median(_numbers(new)), COST_TOLERANCES[name]
    growth = now / before - 1
    failed = growth > tolerance
    return Finding(GATE.name, title, name, "regression" if failed else "passed",
                   f"{before:.3g} times the bare encoders", f"{now:.3g}", f"{tolerance:+.0%}",
                   f"a training step costs {growth:+.0%}" if failed else "", max(0.0, growth / tolerance))


# ----------------------------------------------------------------------------- what cannot be compared


def _other_libraries(method: str, stored: Baseline) -> Iterator[Finding]:
    """Libraries that weights depend on whose major version is another one."""
    from prior_bench.engine.pretrain import versions

    for name, now in versions().items():
        then = stored.origin.versions.get(name)
        if then is not None and then.partition(".")[0] != now.partition(".")[0]:
            yield GATE.incomparable(method, name, then, now, f"another major version; run {GATE.update}")


def _other_cells(stored: Baseline, planned: suite.Planned, options: Options) -> Iterator[Finding]:
    """Cells that the baseline has and the suite has not, or the other way, or that are made from something else."""
    own = {title: cell for title, cell in stored.cells.items() if not options.tasks
           or title.split("/")[1] in {*options.tasks, suite.TRAINING, suite.COST}}
    for title in sorted(set(own) - set(planned.made_from)):
        yield GATE.missing(title, "cell")
    for title, made_from in planned.made_from.items():
        if title in own:
            yield from GATE.other(title, made_from, own[title].made_from)
        else:
            yield GATE.additional(title, "cell")


def _other_quantities(title: str, old: SuiteCell, new: SuiteCell) -> Iterator[Finding]:
    for what in sorted(set(old.quantities) - set(new.quantities)):
        yield GATE.missing(title, what)
    for what in sorted(set(new.quantities) - set(old.quantities)):
        yield GATE.additional(title, what)


# ------------------------------------------------------------------------------------- seeds and facts


def _new_seeds(options: Options, stored: Baseline) -> list[int]:
    """Those asked for, or the next after the baseline's, so that unchanged code gives the same answer every night."""
    first = max(stored.seeds) + 1
    seeds = list(options.seeds) or list(range(first, first + NEW_SEEDS))
    if known := sorted(set(seeds) & set(stored.seeds)):
        raise UserError(f"the baseline holds seed {known[0]}: it would be compared with itself", where="--seed",
                        expected=f"a seed other than {', '.join(map(str, stored.seeds))}")
    return seeds


def _facts(options: Options, stored: Iterable[Baseline], seeds: Iterable[Sequence[int]], tests: Sequence[Compared],
           start: float) -> dict[str, str]:
    more = {"seeds": ", ".join(map(str, sorted({seed for some in seeds for seed in some}))) or "none"}
    if tests:
        more["tests"] = f"{len(tests)}, at most {LEVEL:.0%} false alarms a run"
        more |= _detectable(tests)
    if risen := [f"{t.cell} {t.what} {t.change.old:.4g} -> {t.change.new:.4g}" for t in tests if t.better < LEVEL]:
        more["better than the baseline"] = f"{'; '.join(risen)}: look for a leak, else run {GATE.update}"
    return files.facts(options, start, (one.origin.line(f"{len(one.seeds)} seeds") for one in stored), more)


def _detectable(tests: Sequence[Compared]) -> dict[str, str]:
    """The smallest regression that a run finds with power POWER, by metric: from the least to the largest of cells."""
    found: dict[str, list[float]] = {}
    for test in tests:
        if test.change.sides == 1:
            found.setdefault(test.what, []).append(test.change.detectable(LEVEL / len(tests)))
    parts = [f"{name} {min(sizes):.2g} to {max(sizes):.2g}" for name, sizes in found.items()]
    return {f"found with power {POWER:.0%}": "a loss of " + ", ".join(parts)} if parts else {}

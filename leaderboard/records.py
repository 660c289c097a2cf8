"""leaderboard.csv and leaderboard.json: everything the tables know, for programs.

The CSV has one line for each metric of each row and fraction; the JSON has the same, with the paired comparisons and
overviews. What is not there is empty or null. Published numbers are in the JSON alone, under `published`.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from prior_bench.leaderboard.published import Published
from prior_bench.leaderboard.ranking import Comparison, Overview, compared, overviews, ranks
from prior_bench.leaderboard.tables import Entry, Known, Row, Table, by_size

SCHEMA = 1
COLUMNS = ("dataset", "task", "target", "mode", "profile", "protocol_version", "fraction", "method", "recipe",
           "pretrain_source", "reference", "note", "metric", "status", "mean", "subset_deviation", "head_deviation",
           "pretrain_deviation", "interval_low", "interval_high", "rank", "pretrain_seeds", "runs", "reason")


def comma_separated(known: Known) -> str:
    """The CSV."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for table in known.tables:
        for record in _records(table, compared(table)):
            writer.writerow(_heading(table) | {name: _text(value) for name, value in record.items()})
    return buffer.getvalue()


def as_json(known: Known, published: Sequence[Published]) -> str:
    """The JSON."""
    content = {
        "schema": SCHEMA, "notes": known.notes, "tables": [_table(table) for table in known.tables],
        "overviews": [_overview(one) for one in overviews(known.tables)],
        "published": [one.as_dict() for one in published]}
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _table(table: Table) -> dict[str, Any]:
    main, comparisons = table.main, compared(table)
    about = {} if main is None else {"main_metric": main.name, "higher_is_better": main.higher_is_better,
                                     "range": list(main.range), "counts": main.counts}
    return _heading(table) | about | {"records": list(_records(table, comparisons)),
                                      "comparisons": [comparison_record(c) for c in comparisons]}


def _heading(table: Table) -> dict[str, Any]:
    h = table.heading
    return {"dataset": h.dataset, "task": h.task, "target": h.target, "mode": h.mode, "profile": h.profile,
            "protocol_version": h.version}


def _row(row: Row) -> dict[str, Any]:
    return {"method": row.method, "recipe": row.recipe, "pretrain_source": row.source}


def _records(table: Table, comparisons: Sequence[Comparison]) -> Iterator[dict[str, Any]]:
    main, given = table.main, ranks(comparisons)
    for row in sorted(table.entries):
        for fraction in sorted(table.entries[row], key=by_size):
            first = dict.fromkeys(COLUMNS[len(_heading(table)):]) | {
                "fraction": fraction, **_row(row), "reference": int(row.reference), "note": row.note}
            for record in metric_records(table.entries[row][fraction]):
                if main is not None and record["metric"] == main.name:
                    record["rank"] = given.get((row, fraction))
                yield first | record


def metric_records(entry: Entry) -> Iterator[dict[str, Any]]:
    """What is known of each metric of an entry, or why it has none."""
    if not entry.rebuilt:
        yield {"metric": None, "status": "not applicable", "runs": len(entry.not_applicable),
               "reason": "; ".join(sorted(set(entry.not_applicable)))}
        return
    seeds = len({r.result.cell.pretrain_seed for r in entry.rebuilt})
    for name in dict.fromkeys(name for r in entry.rebuilt for name in r.metrics):
        s = entry.metric(name)
        low, high = s.interval if s.interval is not None else (None, None)
        yield {"metric": name, "status": "undefined" if s.mean is None else "done", "mean": rounded(s.mean),
               "subset_deviation": rounded(s.subset_deviation), "head_deviation": rounded(s.head_deviation),
               "pretrain_deviation": rounded(s.pretrain_deviation), "interval_low": rounded(low),
               "interval_high": rounded(high), "pretrain_seeds": seeds, "runs": s.cells, "reason": s.reason}


def comparison_record(c: Comparison) -> dict[str, Any]:
    """A paired comparison, without its table."""
    better = None if c.better is None else "a" if c.better == c.a else "b"
    return {"fraction": c.fraction, "a": _row(c.a), "b": _row(c.b), "difference": rounded(c.paired.difference),
            "standard_error": rounded(c.paired.error), "interval": [rounded(v) for v in c.paired.interval],
            "p": rounded(c.paired.p), "p_holm": rounded(c.p_holm), "better": better,
            "detectable": rounded(c.paired.detectable)}


def _overview(one: Overview) -> dict[str, Any]:
    standings = [_row(s.row) | {"mean_rank": rounded(s.mean_rank), "best_or_tied": s.first,
                                "interval": None if s.interval is None else [rounded(v) for v in s.interval]}
                 for s in one.standings]
    return {"profile": one.profile, "protocol_versions": one.versions, "track": one.track, "cells": one.cells,
            "all_cells": one.all_cells, "methods": standings}


def rounded(value: float | None) -> float | None:
    """Six significant digits: what differs beyond them is the machine's arithmetic."""
    return None if value is None else float(f"{value:.6g}")


def _text(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value

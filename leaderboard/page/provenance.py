"""What stands behind each number of the page: its runs, and of each run all that its result knows.

Metrics are the rebuilt ones, never the stored ones. What a run recorded besides (settings, selection on validation
data, times) cannot be rebuilt from predictions and is named so on the page.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from prior_bench.leaderboard import records
from prior_bench.leaderboard.page.view import OverviewSection, Section, fraction_label, title
from prior_bench.leaderboard.published import WARNING, Published
from prior_bench.leaderboard.rebuild import Rebuilt, remarks
from prior_bench.leaderboard.tables import Entry, Row
from prior_bench.results import jsonable
from prior_bench.statistics import interval


def of_section(section: Section) -> dict[str, Any]:
    """`entries` by the keys that the table's numbers have, and the `cells` that they name."""
    entries, cells = {}, {}
    for row in section.rows:
        for at, fraction in enumerate(section.table.fractions):
            key, entry = section.entry_key(row, at), section.table.entry(row, fraction)
            if key is not None and entry is not None:
                entries[key] = _entry(section, row, fraction, entry)
                cells.update({one.result.cell.name: _cell(one) for one in entry.rebuilt})
    return {"entries": entries, "cells": cells}


def of_overview(one: OverviewSection) -> dict[str, Any]:
    """The order of each method in each cell, of which its mean rank is the mean."""
    places = [title(heading) + ("" if fraction is None else f", {fraction_label(fraction)}")
              for heading, fraction in one.overview.places]
    return {"places": places, "orders": [list(standing.orders) for standing in one.overview.standings],
            "caption": one.caption}


def of_published(number: Published) -> dict[str, Any]:
    return asdict(number) | {"warning": WARNING}


def _entry(section: Section, row: Row, fraction: float | None, entry: Entry) -> dict[str, Any]:
    compared = [records.comparison_record(c) for c in section.comparisons
                if c.fraction == fraction and row in (c.a, c.b)]
    main = section.table.main
    return {
        "method": row.method, "track": row.recipe, "source": row.source, "reference": row.reference, "note": row.note,
        "place": section.title, "fraction": None if fraction is None else fraction_label(fraction),
        "profile": section.heading.profile, "version": section.heading.version,
        "main": None if main is None else main.name,
        "rank": section.ranks.get((row, fraction)), "metrics": list(records.metric_records(entry)),
        "comparisons": compared, "cells": [one.result.cell.name for one in entry.rebuilt],
        "not_applicable": sorted(set(entry.not_applicable)),
    }


def _cell(one: Rebuilt) -> dict[str, Any]:
    """All that a result knows, with rebuilt metrics in place of the stored ones."""
    result = one.result
    metrics = []
    for metric in one.metrics.values():
        draws = one.replicates.get(metric.name)
        limits = None if draws is None else interval(draws)
        metrics.append({"name": metric.name, "value": records.rounded(metric.value),
                        "interval": None if limits is None else [records.rounded(limit) for limit in limits],
                        "reason": metric.reason, "counts": metric.counts})
    return {"cell": asdict(result.cell) | {"digest": result.cell.digest}, "status": result.status, "metrics": metrics,
            "details": jsonable(result.details), "provenance": jsonable(result.provenance),
            "remarks": list(remarks(result, one))}

"""The files of an exact baseline. A folder for each method, which holds its checkpoint and its golden values:

    <method>/weights/       a weights folder of ours; matrices in float16
    <method>/<kind>.json    golden values of one device kind and precision ("cpu-fp32"), and why and from what they are
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from prior_bench.errors import UserError
from prior_bench.leaderboard.gate.exact.fingerprint import Fingerprint
from prior_bench.leaderboard.gate.options import Origin
from prior_bench.results import parse_json, write_text

PACKAGED = Path(__file__).parent / "baseline"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class GoldenCell:
    """Fingerprints by quantity, and digests of what must be the same to compare them ("weights", "data", ...)."""

    made_from: dict[str, str]
    quantities: dict[str, Fingerprint]


@dataclass(frozen=True, slots=True)
class Golden:
    """Golden values of one method on one device kind in one precision, by cell ("prior/zero-shot/findings")."""

    schema: int
    kind: str
    origin: Origin
    cells: dict[str, GoldenCell]


def weights_folder(baseline: Path, method: str) -> Path:
    return baseline / method / "weights"


def golden_file(baseline: Path, method: str, kind: str) -> Path:
    return baseline / method / f"{kind}.json"


def methods(baseline: Path) -> list[str]:
    """Methods with a checkpoint in a baseline."""
    return sorted(path.parent.name for path in baseline.glob("*/weights"))


def kinds(baseline: Path, method: str) -> list[str]:
    """Device kinds and precisions for which a method has golden values."""
    return sorted(path.stem for path in (baseline / method).glob("*.json"))


def read(baseline: Path, method: str, kind: str) -> Golden | None:
    """Golden values, strictly; None: there are none for this kind."""
    file = golden_file(baseline, method, kind)
    if not file.is_file():
        return None
    try:
        golden = parse_json(Golden, file.read_text(encoding="utf-8"), SCHEMA)
    except ValueError as error:
        raise UserError(f"the golden values are damaged: {error}", where=str(file),
                        fix="restore the file, or write it anew with `prior-bench check --update --reason ...`"
                        ) from error
    if golden.kind != kind:
        raise UserError(f"the golden values are of {golden.kind!r}", where=str(file),
                        expected=f"{kind!r}, as the file's name says", fix="restore the file")
    return golden


def write(baseline: Path, method: str, kind: str, origin: Origin, cells: Mapping[str, GoldenCell]) -> Path:
    """Golden values as JSON, one array a line."""
    text = json.dumps(asdict(Golden(SCHEMA, kind, origin, dict(cells))), indent=1, allow_nan=False, ensure_ascii=False)
    text = re.sub(r"\[[^\[\]\"]*\]", lambda found: json.dumps(json.loads(found[0])), text)
    file = golden_file(baseline, method, kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text + "\n")
    return file


def origins(goldens: Iterable[Golden]) -> str:
    """Why, when and from what the golden values were made, in a line."""
    return "; ".join(dict.fromkeys(
        f"{g.origin.reason} ({g.origin.date}, {g.origin.device}, torch {g.origin.versions.get('torch', '?')}, commit "
        f"{g.origin.commit[:12]})" for g in goldens))

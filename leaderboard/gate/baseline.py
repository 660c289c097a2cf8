"""What the baselines of both gates share: what they are of, their files, and what is said where one does not fit.

A baseline is a folder with <method>/<kind>.json for each method and device kind with precision ("prior/cpu-fp32.json").
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from prior_bench import plugins, provenance, recipe_files
from prior_bench.errors import UserError, unknown_name
from prior_bench.files import check_writable, write_text
from prior_bench.leaderboard.gate.options import Options
from prior_bench.leaderboard.gate.report import Finding
from prior_bench.results import parse_json

if TYPE_CHECKING:
    from prior_bench.engine.precision import Precision

DATASET, RECIPE = "phantom-ci", "ci"
# Lungs stand for the masks: they are the ones that a head finds within few steps.
TARGETS = ("findings", "phantom-5x40", "reports", "lungs", "lesions")
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Origin:
    """Why and from what a baseline was made."""

    reason: str
    date: str
    commit: str
    device: str
    precision: str
    versions: dict[str, str]

    @classmethod
    def now(cls, reason: str, precision: Precision) -> Origin:
        from prior_bench.execution import device_name

        return cls(reason, datetime.now(UTC).date().isoformat(), provenance.git_commit() or "unknown",
                   device_name(precision), precision.name, provenance.package_versions())

    def line(self, more: str) -> str:
        return f"{self.reason} ({self.date}, {self.device}, {more}, commit {self.commit[:12]})"


class Stored(Protocol):
    """The content of a file of a baseline."""

    @property
    def kind(self) -> str: ...


S = TypeVar("S", bound=Stored)


# --------------------------------------------------------------------------------------------- its files


def trainable() -> list[str]:
    """Methods that have the recipe and pre-train with it."""
    def trains(method: str) -> bool:
        file = recipe_files.recipe_file(method)
        return RECIPE in recipe_files.read(file) and recipe_files.resolve(file, RECIPE).get("training") is not None

    return [name for name in plugins.names("methods") if trains(name)]


def file_of(folder: Path, method: str, kind: str) -> Path:
    return folder / method / f"{kind}.json"


def kinds(folder: Path, method: str) -> list[str]:
    """Device kinds and precisions for which a method has a baseline."""
    return sorted(path.stem for path in (folder / method).glob("*.json"))


def read(form: type[S], folder: Path, method: str, kind: str) -> S | None:
    """What a baseline holds of a method, strictly; None: nothing for this kind."""
    file = file_of(folder, method, kind)
    if not file.is_file():
        return None
    try:
        found = parse_json(form, file.read_text(encoding="utf-8"), SCHEMA)
        if found.kind != kind:
            raise ValueError(f"kind: {found.kind!r}, expected {kind!r} as the file's name says")
    except (ValueError, OSError) as error:
        raise UserError(f"the baseline is damaged: {error}", where=str(file),
                        fix="restore the file, or write it anew with --update --reason ...") from error
    return found


def write(folder: Path, method: str, kind: str, content: Mapping[str, Any]) -> Path:
    """A file of a baseline, one array a line."""
    text = json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False)
    text = re.sub(r"\[[^\[\]\"]*\]", lambda found: json.dumps(json.loads(found[0])), text)
    file = file_of(folder, method, kind)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text + "\n")
    return file


# ---------------------------------------------------------------------------------------------- a gate


@dataclass(frozen=True, slots=True)
class Gate:
    """A gate's name, its packaged baseline and the command that writes one: what its findings and errors speak of."""

    name: str
    packaged: Path
    update: str

    def folder(self, options: Options) -> Path:
        return options.baseline if options.baseline is not None else self.packaged

    def folder_to_write(self, options: Options) -> Path:
        """The folder, if an update may write there what was asked for."""
        if options.tasks:
            raise UserError("the baseline of a method is written for all tasks", where="--task", fix="leave it out")
        if options.baseline is None and provenance.git_commit() is None:
            raise UserError("the packaged baseline of an installed program stays as it is", where="--update",
                            fix="give --baseline FOLDER, or run in a working tree of prior-bench")
        check_writable(self.folder(options), 1 << 24, "--baseline")
        return self.folder(options)

    def chosen(self, options: Options, known: Sequence[str]) -> Sequence[str]:
        """The methods asked for, or all that are known."""
        folder = str(self.folder(options))
        if not known:
            raise UserError(f"there is no {self.name} baseline", where=folder, fix=f"write one with {self.update}")
        for name in options.methods:
            if name not in known:
                raise unknown_name(f"method of the {self.name} gate", name, known, where="--method", see=folder)
        return options.methods or known

    def replaced(self, form: type[S], method: str, options: Options) -> S | None:
        """What an update replaces; None where it is missing, or damaged, which is a reason to update."""
        try:
            return read(form, self.folder(options), method, options.kind)
        except UserError as error:
            options.say(f"{method}: {error.what}")
            return None

    # what cannot be compared

    def incomparable(self, title: str, what: str, expected: str, found: str, reason: str) -> Finding:
        return Finding(self.name, title, what, "not comparable", expected, found, reason=reason)

    def no_baseline(self, method: str, options: Options) -> Finding:
        known = ", ".join(kinds(self.folder(options), method)) or "none"
        return self.incomparable(method, "baseline", options.kind, known,
                                 f"none for this device kind and precision: run {self.update} on such a device")

    def missing(self, title: str, what: str) -> Finding:
        return self.incomparable(title, what, "present", "missing",
                                 f"no longer made; if that is meant, run {self.update}")

    def additional(self, title: str, what: str) -> Finding:
        return self.incomparable(title, what, "missing", "present", f"not in the baseline; run {self.update}")

    def other(self, title: str, made_from: Mapping[str, str], before: Mapping[str, str]) -> list[Finding]:
        """A finding for each thing that a cell is made from and that is not what it was."""
        return [self.incomparable(title, name, before.get(name, "none"), made_from.get(name, "none"),
                                  f"other {name} than in the baseline; if that is meant, run {self.update}")
                for name in sorted({*made_from, *before}) if made_from.get(name) != before.get(name)]


def facts(options: Options, start: float, origins: Iterable[str], more: Mapping[str, str]) -> dict[str, str]:
    """The head of a report. `start` is when the gate began, by `perf_counter`."""
    from prior_bench.execution import device_name

    memory = ", ".join(f"{name} {size / 2**20:.0f} MiB" for name, size in provenance.peak_memory().items())
    return {"device": device_name(options.precision), "precision": options.precision.name,
            "baseline": "; ".join(dict.fromkeys(origins)) or "none", **more,
            "time": f"{perf_counter() - start:.0f} s", "peak memory": memory}

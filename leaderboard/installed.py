"""What the tasks and data sets that are installed say of a cell, which may come from anywhere."""

from __future__ import annotations

from prior_bench import plugins
from prior_bench.digests import digest_json
from prior_bench.errors import UserError
from prior_bench.types import Cell, Target

HOW_TO_INSTALL = "give its file as --plugin or install its package"


def has_task(name: str) -> bool:
    return name in plugins.names("tasks")


def settings_digest(cell: Cell) -> str | None:
    """The digest of the settings with which this program would compute a cell, empty where it has no such cell.

    None where that cannot be told: the data set is not installed, or the task has another version of its protocol.
    """
    task = plugins.load("tasks", cell.task)()
    try:
        dataset = plugins.load("datasets", cell.dataset)
    except UserError:
        return None
    if task.version != cell.protocol_version:
        return None
    target = dataset.targets.get(cell.target)
    if target is None or not task.accepts(target) or cell.mode not in task.modes or cell.profile not in task.profiles:
        return ""
    return digest_json(task.settings(dataset, target, cell.mode, cell.profile))


def data_digest(dataset: str) -> str | None:
    """The digest of a data set that the program makes itself; None of others, whose files need not be here."""
    try:
        kind = plugins.load("datasets", dataset)
    except UserError:
        return None
    return None if kind.needs_root else str(kind().digest())


def is_sanity(dataset: str, target: str) -> bool:
    """Whether a target is a sanity check, as its data set says; not where that is not installed."""
    try:
        found: Target | None = plugins.load("datasets", dataset).targets.get(target)
    except UserError:
        return False
    return found is not None and found.sanity

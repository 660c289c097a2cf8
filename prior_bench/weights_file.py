"""What is told of a weights file before torch is imported: whether there is one, and how to look into it."""

from __future__ import annotations

import shlex
from pathlib import Path

from prior_bench.errors import UserError


def check_there(file: Path) -> None:
    """Refuse what cannot be a weights file at all."""
    if file.is_dir():
        raise UserError("this is a folder, not a weights file", where=str(file), fix="give a file in it")
    if not file.exists():
        raise UserError("the weights file does not exist", where=str(file), fix="check the path")
    if not file.is_file():
        raise UserError("this is a device or a pipe, not a weights file", where=str(file), fix="give a file")
    if file.stat().st_size == 0:
        raise UserError("the weights file is empty", where=str(file), fix="download or copy it again")


def inspecting(file: Path) -> str:
    """The command that says what a file holds."""
    return f"prior-bench weights inspect {shlex.quote(str(file))}"

"""Errors that users can mend. Anything else that is raised is a bug and keeps its traceback, but for what the system
refuses (cli/common.py)."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MANY = 40  # names; more are counted, not listed

class UserError(Exception):
    """A mistake in what the user gave: the CLI prints it without a traceback and exits with code 2.

    Args:
        what: what went wrong, in one sentence.
        where: the file, option or field concerned.
        expected: what was expected there.
        fix: what to do about it.
    """

    def __init__(self, what: str, *, where: str = "", expected: str = "", fix: str = ""):
        self.what, self.where, self.expected, self.fix = what, where, expected, fix
        lines = [what]
        lines += [f"  {label}: {text}" for label, text in
                  (("where", where), ("expected", expected), ("fix", fix)) if text]
        super().__init__("\n".join(lines))


def unknown_name(kind: str, name: str, known: Iterable[str], where: str = "",
                 see: str = "`prior-bench list`") -> UserError:
    """The error for a name that is not known, with the nearest known names; `see` says where all of them stand."""
    known = sorted(known)
    near = get_close_matches(name, known, n=3, cutoff=0.5)
    shown = ", ".join(known) if len(known) <= MANY else f"{len(known)} names"
    return UserError(
        f"unknown {kind} {name!r}",
        where=where,
        expected=f"one of {shown}" if known else f"no {kind} is installed",
        fix=f"did you mean {' or '.join(repr(n) for n in near)}?" if near else f"see {see}",
    )

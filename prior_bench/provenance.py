"""Where a number came from: versions, commit, device, time, memory and the command. Part of every result."""

from __future__ import annotations

import os
import platform
import re
import resource
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

UPSTREAM = ("mmengine", "mmcv", "mmcv-lite", "mmdet", "mmsegmentation")  # we depend on the onedl- forks


@cache
def package_versions() -> dict[str, str]:
    """Versions of prior-bench, of all packages that it depends on, and of upstream's OpenMMLab if installed."""
    needed = [line for line in requires("prior-bench") or () if "extra ==" not in line]
    names = [re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0] for line in needed]
    found = {}
    for name in sorted(["prior-bench", *names, *UPSTREAM]):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue  # one family of OpenMMLab is installed, not both
    return found


@cache
def git_commit() -> str | None:
    """Commit of the working tree that the package runs from, "+changes" where files differ; None: no working tree."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return head + ("+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None  # git is not installed, or the folder belongs to another user


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=10,
                          stdin=subprocess.DEVNULL)
    return done.stdout.strip()


def command() -> str:
    """The command line; of an absolute path its last name alone: results are published, a machine's folders need not
    be."""
    return shlex.join(_without_folders(argument) for argument in sys.argv)


def _without_folders(argument: str) -> str:
    option, equals, value = argument.rpartition("=")
    return f"{option}{equals}{os.path.basename(value.rstrip('/'))}" if os.path.isabs(value) else argument


def peak_memory() -> dict[str, int]:
    """Peak resident memory of this process so far, and of the GPU where one is used (whichever it is), in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        peak["gpu"] = max(torch.cuda.max_memory_allocated(index) for index in range(torch.cuda.device_count()))
    return peak


def collect() -> dict[str, Any]:
    """What is the same for every cell of a process, plus the time and the peak memory so far."""
    return {
        "packages": package_versions(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "commit": git_commit(),
        "command": command(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "peak_memory_bytes": peak_memory(),
    }

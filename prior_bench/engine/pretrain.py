"""Pre-training: the weights that a recipe gives on a dataset, made once, cached by content, resumed after a kill.

    cache/pretrain/<key>/
        weights/            what `prior_bench.weights` saves: safetensors, recipe, tokenizer, provenance
        log.jsonl           one line a step: rates, every loss term by its name, images per second
        loss_curves.png     one panel per term
        checkpoint.pt       only while the run is unfinished
        done.json           written last: the run is complete

Planning asks for keys and for finished runs, so nothing here imports torch before it trains.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prior_bench import plugins
from prior_bench.digests import digest_json, digest_sources
from prior_bench.errors import UserError

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset
    from prior_bench.engine.precision import Precision
    from prior_bench.recipes import Recipe

Report = Callable[[str, float, str], None]  # phase, share done in 0..1, what to show beside it

LOG = "log.jsonl"
LIBRARIES = ("torch", "timm", "transformers", "open-clip-torch", "tokenizers", "numpy", "Pillow")
_BESIDE = {"step", "epoch", "stage", "images_per_second"}  # of a log's row: no curve
_PACKAGE = Path(__file__).parents[1]
_SOURCES = ("encoders", "data", "losses.py", "set_similarity.py", "method.py", "recipes.py", "weights.py",
            "state_files.py", "layouts.py", "engine/pretrain.py", "engine/training.py", "engine/samples.py",
            "engine/hooks.py", "engine/processes.py", "engine/runner.py", "engine/precision.py")


def versions() -> dict[str, str]:
    """Versions of the libraries that weights depend on, without importing them."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def world_size() -> int:
    """How many processes torchrun started; one without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def pretrain_key(method_name: str, recipe: Recipe, dataset: Dataset, seed: int) -> str:
    """Content key of a pre-training run: recipe, seed, data, processes, sources and library versions.

    Where a recipe leaves the precision to the machine (`auto`), so does the key; the provenance says what was chosen.
    """
    sources = [_PACKAGE / name for name in _SOURCES if (_PACKAGE / name).exists()]
    return digest_json({
        "method": method_name,
        "recipe": recipe.digest(),
        "seed": seed,
        "data": dataset.digest(),
        "processes": world_size(),
        "plugin": digest_sources(plugins.sources("methods", method_name)),
        "sources": digest_sources(*sources),
        "versions": versions(),
    })


def run_folder(cache: Path, key: str) -> Path:
    return Path(cache) / "pretrain" / key


def finished(cache: Path, key: str) -> Path | None:
    """The weights folder of a complete run, or None."""
    folder = run_folder(cache, key)
    return folder / "weights" if (folder / "done.json").is_file() else None


def pretrain(method_name: str, recipe: Recipe, dataset: Dataset, *, seed: int, precision: Precision, cache: Path,
             report: Report = lambda phase, share, text: None, command: str = "",
             log: Callable[[Mapping[str, Any]], None] = lambda row: None) -> Path:
    """The weights folder of this run: reused where it is complete, continued where it was killed, else trained.

    Two processes that want the same run share it: the second waits for the first. Under torchrun every rank calls this;
    rank 0 writes.

    Args:
        seed: seeds initialisation, order, augmentation and dropout; stands in place of the recipe's.
        precision: device and precision; a recipe that names its precision overrules it.
        report: called about once a second with the phase, the share done, and the loss and images per second.
        command: recorded in the provenance.
        log: called with each step's row of log.jsonl, as it is written.

    Raises:
        UserError: the recipe trains nothing; too few studies for the batch; the cache cannot be written or is full;
            memory runs out (the last checkpoint is kept); the loss is no longer finite.
    """
    check_trainable(method_name, recipe)
    key = pretrain_key(method_name, recipe, dataset, seed)
    if (weights := finished(cache, key)) is not None:
        return weights

    from prior_bench.engine.processes import processes
    from prior_bench.engine.training import Run
    from prior_bench.files import check_writable

    folder = run_folder(cache, key)
    check_writable(folder, 1 << 20, "--cache")
    with processes(precision, folder / "lock", report) as group:
        if group.first(finished(cache, key) is None):
            run = Run(method_name, recipe, dataset, seed, group, folder, Path(cache) / "images", report, log)
            provenance = run.train()
            if group.rank == 0:
                run.finish({"key": key, "command": command, "versions": versions(), **provenance})
            group.wait()
    return folder / "weights"


def check_trainable(method_name: str, recipe: Recipe) -> None:
    """UserError for a method or recipe without a pre-training step, or stages that do not add up."""
    if recipe.training is None or not plugins.load("methods", method_name).pretrains:
        raise UserError(f"the method {method_name!r} has nothing to pre-train with this recipe", where="training",
                        fix="give it to `prior-bench run`, which needs no pre-training of it")
    total = sum(stage.share for stage in recipe.training.stages)
    if abs(total - 1) > 1e-6:
        raise UserError(f"the stages' shares add up to {total:g}", where="training.stages", expected="a sum of 1")


def log_file(weights: Path) -> Path:
    """The log of a weights folder: inside it, as `pretrain --output` copies it, or beside it where it was made."""
    inside = weights / LOG
    return inside if inside.is_file() else weights.parent / LOG


def read_log(file: Path) -> list[dict[str, float]]:
    """The rows of a log.jsonl; a last line that a kill cut short is left out."""
    rows = []
    for line in file.read_text().splitlines() if file.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def terms(rows: Sequence[Mapping[str, float]]) -> list[str]:
    """Names of what has a curve in a log: the weighted total, each term, and last the learning rate."""
    names = dict.fromkeys(name for row in rows for name in row if name not in _BESIDE)
    return sorted(names, key=lambda name: name == "lr")


def thinned(rows: Sequence[Mapping[str, float]], points: int = 40) -> dict[str, list[list[float]]]:
    """The curves of a log, short enough to travel with every result: of each term at most `points` pairs of a middle
    step and the mean around it, in four significant digits."""
    found: dict[str, list[list[float]]] = {}
    width = max(1, -(-len(rows) // points))
    for start in range(0, len(rows), width):
        part = rows[start : start + width]
        for name in terms(part):
            own = [row[name] for row in part if name in row]
            found.setdefault(name, []).append([part[len(part) // 2]["step"], float(f"{sum(own) / len(own):.4g}")])
    return found

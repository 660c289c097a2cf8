"""Plans what `prior-bench run` was asked for: the cells, which weights they want, and which are done.

Nothing here imports torch, pydantic or rich: `--dry-run` and a run with nothing to do must be quick. Weights are known
before they are loaded through a *note*: what they are made from (recipe, seed, data, sources, library versions) has a
digest, and under that digest the cache remembers the digest of the weights. A changed input has no note, so the weights
are made, or found in the cache, by the engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prior_bench import plugins, recipe_files, results, weights_folder
from prior_bench.digests import digest_json, digest_sources
from prior_bench.errors import UserError, unknown_name
from prior_bench.files import write_text
from prior_bench.types import FRACTIONS, Cell
from prior_bench.weights_folder import WeightsFolder, weights_digest

if TYPE_CHECKING:
    from prior_bench.data.dataset import Dataset
    from prior_bench.task import Plan, Task
    from prior_bench.types import Target

_WEIGHT_KEYS = ("weights", "name", "encoder")  # of a recipe, whose value may be the path of weights
NO_SOURCE = "none"  # pretrain_source of weights that no pre-training made: the reference rows
_PACKAGE = Path(__file__).parent
# What initial weights depend on, and trained ones.
_SOURCES = ("encoders", "method.py", "recipes.py", "recipe_files.py", "weights.py", "state_files.py", "layouts.py")
_TRAINING_SOURCES = (*_SOURCES, "engine", "data", "losses.py", "set_similarity.py")


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked for: the options of `prior-bench run`."""

    methods: Sequence[str]
    tasks: Sequence[str] = ("all",)
    datasets: Sequence[str] = ("phantom",)
    targets: Sequence[str] = ()  # empty: the default targets of each dataset
    pretrain_on: str | None = None  # None: the one requested dataset that has reports
    fractions: Sequence[float] = FRACTIONS
    seeds: Sequence[int] = (0,)  # of pre-training and of initial weights
    subset_seeds: Sequence[int] | None = None  # None: the dataset's
    modes: Sequence[str] = ()  # empty: each task's default
    profile: str = "standard"
    recipe: str = "small"
    overrides: Mapping[str, Any] = field(default_factory=dict)  # of the recipe, by dotted key
    weights: Path | None = None
    allow_partial_weights: bool = False
    device: str = "auto"
    precision: str = "auto"
    output: Path = Path("results")
    cache: Path = Path("cache")
    data_root: Path | None = None
    max_bad_images: int = 0


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights that a cell wants, named by what they are made from; they need not exist yet."""

    method: str
    recipe: str  # as shown: "small", or "small[training.epochs=1]"
    source: str  # dataset, "file:NAME", or "none"
    seed: int
    key: str  # digest of everything that they are made from
    digest: str | None = field(compare=False)  # of the weights themselves; None: not known before they are made
    overrides: Mapping[str, Any] = field(compare=False)  # of the recipe, as far as they concern it; in the key

    @property
    def title(self) -> str:
        made = {NO_SOURCE: ""}.get(self.source, f", {self.source}")
        return f"{self.method} ({self.recipe}{made}, seed {self.seed})"


@dataclass(frozen=True, slots=True)
class PlannedCell:
    """A cell before its weights are known."""

    weights: Weights
    task: str
    protocol_version: int
    profile: str
    settings_digest: str
    dataset: str
    data_digest: str
    plan: Plan

    @property
    def title(self) -> str:
        p = self.plan
        size = "" if p.fraction is None else f", {p.fraction:.0%}, subset {p.subset_seed}, head {p.head_seed}"
        task = self.task if p.mode == self.task else f"{self.task} {p.mode}"
        return f"{self.weights.title}: {task} on {self.dataset}/{p.target}{size}"

    def cell(self, weights_digest: str) -> Cell:
        w, p = self.weights, self.plan
        return Cell(w.method, w.recipe, w.source, w.seed, weights_digest,
                    self.task, self.protocol_version, self.profile, p.mode, self.settings_digest,
                    self.dataset, self.data_digest, p.target, p.fraction, p.subset_seed, p.head_seed)


@dataclass(frozen=True, slots=True)
class Opened:
    """A dataset and its digest, taken once."""

    dataset: Dataset
    digest: str


@dataclass(slots=True)
class Grid:
    """The planned cells in the order in which they run, and what was opened to plan them."""

    request: Request
    cells: list[PlannedCell]
    tasks: dict[str, Task]
    datasets: dict[str, Opened]  # the requested ones and the one to pre-train on
    source: str | None  # the dataset to pre-train on
    left_out: dict[str, str] = field(default_factory=dict)  # methods of `all`, and tasks asked for, with the reason

    def done(self, planned: PlannedCell) -> bool:
        """Whether the cell's result is on disk; a cell whose weights are not known is not done."""
        digest = planned.weights.digest
        return digest is not None and results.is_done(self.request.output, planned.cell(digest))

    @property
    def missing(self) -> list[PlannedCell]:
        return [cell for cell in self.cells if not self.done(cell)]


def plan(request: Request) -> Grid:
    """Expand a request into its cells. Raises UserError for anything in it that is unknown or does not fit."""
    check(request)
    left_out = _left_out(request)
    request = replace(request, methods=_method_names(request))
    tasks = {name: plugins.load("tasks", name)() for name in _task_names(request)}
    _known(request.profile, list(dict.fromkeys(p for t in tasks.values() for p in t.profiles)), "profile", "--profile")
    modes = _modes(request, tasks)
    source = _pretrain_source(request)
    _check_targets(request)
    datasets = {name: open_dataset(name, request) for name in dict.fromkeys([*request.datasets, source]) if name}
    cells = [
        cell
        for method in request.methods
        for seed in request.seeds
        for weights in [_weights(request, method, seed, datasets.get(source or ""))]
        for dataset in request.datasets
        for cell in _cells(request, weights, datasets[dataset], tasks, modes)
    ]
    without = {name: _why_no_cell(request, task, modes[name]) for name, task in tasks.items()
               if name not in {cell.task for cell in cells}}
    if not cells:
        raise UserError("nothing to evaluate: no task fits the datasets, targets, modes and profile asked for",
                        where="; ".join(f"{name} {why}" for name, why in without.items()),
                        fix="see `prior-bench list tasks` and `prior-bench list datasets`")
    asked = {name: why for name, why in without.items() if name in request.tasks}  # `all` are those that fit
    return Grid(request, cells, tasks, datasets, source, left_out | asked)


def _cells(request: Request, weights: Weights, opened: Opened, tasks: dict[str, Task],
           modes: dict[str, list[str]]) -> list[PlannedCell]:
    """Cells of one (weights, dataset); tasks that train nothing come first, they are quick."""
    dataset, found = type(opened.dataset), []
    for name, task in tasks.items():
        if request.profile not in task.profiles:
            continue
        for target in filter(task.accepts, _targets(request, dataset)):
            for mode in modes[name]:
                settings = digest_json(task.settings(dataset, target, mode, request.profile))
                plans = task.plan(dataset, target, mode, request.fractions, request.subset_seeds)
                found += [PlannedCell(weights, name, task.version, request.profile, settings, dataset.name,
                                      opened.digest, one) for one in plans]
    return sorted(found, key=lambda cell: cell.plan.fraction is not None)


def _targets(request: Request, dataset: type[Dataset]) -> list[Target]:
    """The targets of a dataset that are asked for, or its default ones."""
    return [target for target in dataset.targets.values()
            if (target.name in request.targets if request.targets else target.default and not target.sanity)]


def _why_no_cell(request: Request, task: Task, modes: Sequence[str]) -> str:
    """Why nothing that was asked for is a cell of the task."""
    if request.profile not in task.profiles:
        return f"has no profile {request.profile!r}; it has {', '.join(task.profiles)}"
    if not modes:
        return f"has no mode {' or '.join(request.modes)}; it has {', '.join(task.modes)}"
    targets = [target.name for name in request.datasets for target in _targets(request, plugins.load("datasets", name))]
    return f"evaluates {task.evaluates()}, and there is none among {', '.join(targets)}"


# ----------------------------------------------------------------------------------- what was asked


def check(request: Request) -> None:
    """Refuse what can be refused without opening anything."""
    for option, asked in (("--method", request.methods), ("--task", request.tasks), ("--dataset", request.datasets),
                          ("--fraction", request.fractions), ("--seed", request.seeds)):
        if not asked:
            raise UserError(f"{option} is empty", where=option, expected="one or more, by comma",
                            fix="see `prior-bench list`")
    for kind, given in (("methods", request.methods), ("datasets", request.datasets)):
        for name in given:
            if (kind, name) == ("methods", "all"):
                continue
            option = kind.removesuffix("s")
            _known(plugins.registered(kind, name), plugins.names(kind), option, f"--{option}")
            if kind == "methods":
                _check_encoder(*plugins.family(name))
    for fraction in request.fractions:
        if fraction not in FRACTIONS:
            known = [f"{f:g}" for f in FRACTIONS]
            near = min(FRACTIONS, key=lambda f: max(f / fraction, fraction / f) if fraction > 0 else 0)
            raise UserError(f"unknown fraction {fraction:g}", where="--fraction", expected=f"one of {', '.join(known)}",
                            fix=f"did you mean {near:g}?")
    if request.weights is not None and len(request.methods) != 1:
        raise UserError("a weights file belongs to one method", where="--weights", expected="one name in --method")
    if request.weights is not None and not request.weights.exists():
        raise UserError("the weights file does not exist", where=str(request.weights), fix="check --weights")


def _check_encoder(method: str, encoder: str) -> None:
    """Refuse an encoder's name, as in timm:NAME, after a method whose recipes have no place for it."""
    known = recipe_files.read(recipe_files.recipe_file(method)).values() if encoder else ()
    if encoder and not any("encoder" in values for values in known):
        raise UserError(f"the method {method!r} takes no name of an encoder", where="--method",
                        fix=f"leave :{encoder} out")


def _known(name: str, known: Sequence[str], kind: str, where: str) -> None:
    if name not in known:
        raise unknown_name(kind, name, known, where=where)


def _method_names(request: Request) -> list[str]:
    """The methods asked for. `all` are those that have the recipe and can run without being told more: not families
    (timm:NAME), nor references whose weights lie on the hub."""
    if "all" not in request.methods:
        return list(dict.fromkeys(request.methods))

    def stands_alone(method: str) -> bool:
        file = recipe_files.recipe_file(method)
        if request.recipe not in recipe_files.read(file):
            return False
        return "encoder" not in recipe_files.resolve(file, request.recipe) and not _fetched(file, request.recipe)

    return [name for name in plugins.names("methods") if stands_alone(name)]


def _fetched(file: Path, recipe: str) -> bool:
    """Whether the recipe is that of a reference whose weights lie on the hub."""
    values = recipe_files.resolve(file, recipe)
    return values.get("training") is None and values.get("image", {}).get("weights") == "hub"


def _left_out(request: Request) -> dict[str, str]:
    """Of `all`, the methods to train that have no recipe of the name asked for, and those that would be fetched."""
    if "all" not in request.methods:
        return {}
    found = {}
    for name in plugins.names("methods"):
        file = recipe_files.recipe_file(name)
        trained = [recipe for recipe in recipe_files.read(file) if recipe_files.resolve(file, recipe).get("training")]
        if trained and request.recipe not in trained:
            found[name] = f"has no recipe {request.recipe!r}; it has {', '.join(trained)}"
        elif request.recipe in recipe_files.read(file) and _fetched(file, request.recipe):
            found[name] = "takes its weights from the hub; ask for it by name"
    return found


def _task_names(request: Request) -> list[str]:
    known = plugins.names("tasks")
    for name in request.tasks:
        _known(name, [*known, "all"], "task", "--task")
    return known if "all" in request.tasks else list(dict.fromkeys(request.tasks))


def _modes(request: Request, tasks: dict[str, Task]) -> dict[str, list[str]]:
    """The modes to run by task: those asked for that the task has, or its default."""
    if not request.modes:
        return {name: [task.modes[0]] for name, task in tasks.items()}
    for mode in request.modes:
        _known(mode, sorted({m for task in tasks.values() for m in task.modes}), "mode", "--mode")
    return {name: [m for m in request.modes if m in task.modes] for name, task in tasks.items()}


def _check_targets(request: Request) -> None:
    known = sorted({t for name in request.datasets for t in plugins.load("datasets", name).targets})
    for target in request.targets:
        _known(target, known, "target", "--target")


def _pretrain_source(request: Request) -> str | None:
    """The dataset to pre-train on, whose reports also make vocabularies: as given, or the only one that has reports."""
    if request.pretrain_on is not None:
        _known(request.pretrain_on, plugins.names("datasets"), "dataset", "--pretrain-on")
        if not _has_reports(request.pretrain_on):
            usable = ", ".join(filter(_has_reports, plugins.names("datasets")))
            raise UserError(f"the dataset {request.pretrain_on!r} has no reports to pre-train on",
                            where="--pretrain-on", expected=f"one of {usable}")
        return request.pretrain_on
    having = [name for name in request.datasets if _has_reports(name)]
    return having[0] if len(having) == 1 else None


def _has_reports(dataset: str) -> bool:
    return any(target.kind == "report" for target in plugins.load("datasets", dataset).targets.values())


# ------------------------------------------------------------------------------------------ weights


def _weights(request: Request, method: str, seed: int, source: Opened | None) -> Weights:
    """Name the weights of one (method, seed), and look up their digest."""
    file = recipe_files.recipe_file(method)
    trains = recipe_files.resolve(file, request.recipe).get("training") is not None
    overrides = {key: value for key, value in sorted(request.overrides.items())
                 if trains or key.partition(".")[0] != "training"}  # one --set serves methods and reference rows
    shown = ",".join(f"{key}={_shown(key, value, request.cache)}" for key, value in overrides.items())
    recipe = f"{request.recipe}[{shown}]" if shown else request.recipe
    if encoder := plugins.family(method)[1]:
        overrides = {**overrides, "encoder": encoder}
    values = recipe_files.resolve(file, request.recipe, overrides)
    made_from: list[Any] = [method, values, seed, digest_sources(plugins.sources("methods", method)),
                            _core_digest(_TRAINING_SOURCES if trains else _SOURCES), _library_versions(),
                            _local_weights(values, request.cache)]
    loads = not trains and recipe_files.serves_a_file(file, request.recipe)
    if request.weights is not None:
        if not trains and not loads:
            raise UserError(f"the method {method!r} takes no weights", where="--weights",
                            fix=f"in its place: --set image.weights={request.weights}, or the path in the method's "
                                "name, as in hf:FOLDER")
        content = weights_digest(request.weights, request.cache)
        key = digest_json([*made_from, content, request.allow_partial_weights,
                           source.digest if source is not None else None])  # whose reports may make the vocabulary
        ours = weights_folder.find(request.weights)
        if ours is not None:
            _check_folder(ours, method, seed)
            made_on = ours.dataset or f"file:{request.weights.name}"
            return Weights(method, recipe, made_on, seed, key, ours.digest(request.cache), overrides)
        digest = read_note(request.cache, key)
        return Weights(method, recipe, f"file:{request.weights.name}", seed, key, digest, overrides)
    if trains:
        if source is None:
            raise UserError(f"the method {method!r} must be pre-trained, and it is not clear on what",
                            where="--pretrain-on", expected="a dataset with reports",
                            fix="give --pretrain-on, or --weights")
        key = digest_json([*made_from, source.digest, _processes()])
        return Weights(method, recipe, source.dataset.name, seed, key, read_note(request.cache, key), overrides)
    if loads:
        raise UserError(f"the recipe {request.recipe!r} of {method!r} is for a released file, and none is given",
                        where="--weights", fix="give --weights FILE")
    vocabulary = source.digest if source is not None and values.get("text", {}) is not None else None
    key = digest_json([*made_from, vocabulary])
    return Weights(method, recipe, NO_SOURCE, seed, key, key, overrides)  # what they are made from says it all


def _check_folder(folder: WeightsFolder, method: str, seed: int) -> None:
    """Results of weights of ours bear the names that they were made by. (The recipe is compared once it is read.)"""
    if folder.method != method:
        raise UserError(f"the weights are those of {folder.method!r}, not of {method!r}", where=str(folder.path),
                        fix=f"give --method {folder.method}")
    if folder.seed not in (None, seed):
        raise UserError(f"the weights were pre-trained with seed {folder.seed}, not with seed {seed}",
                        where=str(folder.path), fix=f"give --seed {folder.seed}")


@cache
def _core_digest(sources: tuple[str, ...]) -> str:
    return digest_sources(*(_PACKAGE / name for name in sources))


@cache
def _library_versions() -> dict[str, str]:
    from prior_bench.engine.pretrain import versions

    return versions()


def _processes() -> int:
    from prior_bench.engine.pretrain import world_size

    return world_size()


def _shown(key: str, value: Any, memo: Path) -> Any:
    """A setting in a row's name: weights by their file's name and content, wherever they lie on this machine."""
    path = Path(str(value))
    if key.rpartition(".")[2] not in _WEIGHT_KEYS or not path.exists():
        return value
    return f"{path.resolve().name}#{weights_digest(path, memo)[:8]}"


def _local_weights(values: Mapping[str, Any], memo: Path) -> list[str]:
    """Content of the files and folders that a recipe takes weights from: their names alone say nothing."""
    found = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _local_weights(value, memo)
        elif key in _WEIGHT_KEYS and isinstance(value, str):
            # encoder: "NAME/path of a file" and "local-dir:folder" of OpenCLIP, too
            spellings = (value, value.partition("/")[2], value.removeprefix("local-dir:"))
            found += [weights_digest(Path(one), memo) for one in spellings if one and Path(one).exists()][:1]
    return found


def read_note(cache: Path, key: str) -> str | None:
    """The digest of the weights that were made from `key`, if that is remembered."""
    file = _note(cache, key)
    return json.loads(file.read_text())["weights_digest"] if file.is_file() else None


def write_note(cache: Path, key: str, weights_digest: str) -> None:
    _note(cache, key).parent.mkdir(parents=True, exist_ok=True)
    write_text(_note(cache, key), json.dumps({"weights_digest": weights_digest}))


def _note(cache: Path, key: str) -> Path:
    return cache / "weights-notes" / f"{key}.json"


# ----------------------------------------------------------------------------------------- datasets


def open_dataset(name: str, request: Request) -> Opened:
    """A dataset by name, without the images that cannot be read where `--max-bad-images` allows some."""
    kind = plugins.load("datasets", name)
    root = kind.find_root(request.data_root)
    dataset: Dataset = kind(root=root, cache=request.cache)
    opened = Opened(dataset, dataset.digest())
    if request.max_bad_images == 0:
        return opened  # the image store refuses the first bad image that is needed
    bad = bad_images(opened, request.cache)
    if len(bad) > request.max_bad_images:
        shown = [f"{id}: {reason}" for id, reason in list(bad.items())[:20]]
        raise UserError(f"{len(bad)} images of {name} cannot be read", where="; ".join(shown),
                        expected=f"at most {request.max_bad_images} (--max-bad-images)",
                        fix="mend the files or allow more")
    if not bad:
        return opened
    dataset = kind(root=root, cache=request.cache, exclude=frozenset(bad))
    return Opened(dataset, dataset.digest())


def bad_images(opened: Opened, cache: Path) -> dict[str, str]:
    """Images that cannot be decoded, with the reason. Every image is decoded once; the answer is kept by content."""
    dataset, memo = opened.dataset, cache / "bad-images" / f"{opened.digest}.json"
    if memo.is_file():
        found: dict[str, str] = json.loads(memo.read_text())
        return found

    def problem(id: str) -> str | None:
        try:
            dataset.read_image(dataset.records[id])
        except UserError as error:
            return error.what
        return None

    ids = sorted(dataset.records)
    with ThreadPoolExecutor() as pool:
        bad = {id: reason for id, reason in zip(ids, pool.map(problem, ids), strict=True) if reason is not None}
    memo.parent.mkdir(parents=True, exist_ok=True)
    write_text(memo, json.dumps(bad))
    return bad

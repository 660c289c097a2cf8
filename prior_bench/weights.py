"""Weights: our own folders (safetensors, recipe, tokenizer), files by methods' authors, and how much they cover.

No code is ever unpickled: files by others are read with `weights_only=True`, and no configuration is taken from one.
`read_trusted`, for `prior-bench weights convert --trust` alone, is the exception.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from prior_bench import plugins
from prior_bench.digests import digest_array, digest_file, digest_json
from prior_bench.errors import UserError

if TYPE_CHECKING:
    from prior_bench.method import Method
    from prior_bench.recipes import Recipe

SCHEMA = 1
WEIGHTS, RECIPE, META, TOKENIZER = "weights.safetensors", "recipe.json", "meta.json", "tokenizer"
IMAGE, TEXT, HEADS = "image encoder", "text encoder", "heads"
PARTS = {"image_encoder": IMAGE, "text_encoder": TEXT}  # by first name of a key; the rest are heads
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_DAMAGED = (RuntimeError, EOFError, OSError, ValueError, KeyError)  # what torch.load raises on incomplete files


# ------------------------------------------------------------------------------------------ coverage


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of a model a file fills, by part (image encoder, text encoder, heads), in keys.

    `missing` are the model's keys that the file lacks or has in another shape; `unexpected` are the file's keys without
    a place in the model.
    """

    loaded: Mapping[str, int]
    expected: Mapping[str, int]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def share(self, part: str) -> float:
        """Share of the part's keys that were loaded, 0..1; 1 for a part that the model does not have."""
        expected = self.expected.get(part, 0)
        return self.loaded.get(part, 0) / expected if expected else 1.0

    def __str__(self) -> str:
        parts = ", ".join(f"{part} {self.loaded.get(part, 0)}/{n} keys ({100 * self.share(part):.0f} %)"
                          for part, n in self.expected.items())
        return f"loaded {parts}; {len(self.missing)} missing, {len(self.unexpected)} unexpected"


def part_of(key: str) -> str:
    return PARTS.get(key.partition(".")[0], HEADS)


def coverage_of(module: nn.Module, state: Mapping[str, Tensor], whole: str | None = None) -> Coverage:
    """What loading `state` into `module` would fill; `whole` names a module that is one part."""
    own = module.state_dict()
    loaded: dict[str, int] = {}
    expected: dict[str, int] = {}
    missing = []
    for key, value in own.items():
        part = whole or part_of(key)
        expected[part] = expected.get(part, 0) + 1
        if key in state and state[key].shape == value.shape:
            loaded[part] = loaded.get(part, 0) + 1
        else:
            has = f" (shape {tuple(state[key].shape)} instead of {tuple(value.shape)})" if key in state else ""
            missing.append(key + has)
    return Coverage(loaded, expected, tuple(missing), tuple(key for key in state if key not in own))


def fit_state(module: nn.Module, state: Mapping[str, Tensor], whole: str | None = None) -> Coverage:
    """Load the keys that fit by name and shape; says which did not."""
    coverage = coverage_of(module, state, whole)
    own = module.state_dict()
    module.load_state_dict({k: v for k, v in state.items() if k in own and v.shape == own[k].shape}, strict=False)
    return coverage


# --------------------------------------------------------------------------------------- reading files


def read_state(file: Path) -> dict[str, Tensor]:
    """The state dict in a safetensors, PyTorch or NumPy (.npz) file, out of its wrappers (`state_dict`, `model`,
    `module.`)."""
    file = Path(file)
    if not file.is_file():
        raise UserError("the weights file does not exist", where=str(file), fix="check the path")
    readers = {".safetensors": _read_safetensors, ".npz": _read_numpy}
    return _state_of(readers.get(file.suffix, _read_torch)(file), file)


def read_trusted(file: Path) -> dict[str, Tensor]:
    """The state dict in a PyTorch file that its user trusts: it is unpickled whole, so that code in it runs. Objects of
    packages that are not installed become empty shells."""
    if not file.is_file():
        raise UserError("the weights file does not exist", where=str(file), fix="check the path")
    try:
        content = torch.load(file, map_location="cpu", weights_only=False, pickle_module=_Trusted)
    except (pickle.UnpicklingError, *_DAMAGED) as error:
        raise _unreadable(file, error) from error
    return _state_of(content.state_dict() if isinstance(content, nn.Module) else content, file)


def write_state(state: Mapping[str, Tensor], file: Path) -> None:
    """A state dict as safetensors."""
    from safetensors.torch import save_file

    save_file({key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}, file)


def _state_of(content: Any, file: Path) -> dict[str, Tensor]:
    """The tensors of what was read, out of their wrappers."""
    if not isinstance(content, Mapping):
        raise UserError(f"the weights file holds a {type(content).__name__}", where=str(file), expected="a state dict")
    for wrapper in _WRAPPERS:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise UserError("the weights file holds no tensors", where=str(file), expected="a state dict, bare or under "
                        + " or ".join(repr(w) for w in _WRAPPERS))
    while all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _load_tensors(file: Path) -> Any:
    """The content of a PyTorch file, without running anything in it; pickle.UnpicklingError where that cannot be."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(file):  # the old format, in which Lightning never wrote
            raise
        try:
            content = torch.load(file, map_location="cpu", weights_only=False, pickle_module=_Inert)
        except (RuntimeError, TypeError, AttributeError):  # as a shell that is called
            raise error from None
        inside = [content.get(wrapper) for wrapper in _WRAPPERS] if isinstance(content, Mapping) else []
        if any(isinstance(part, _Shell) for part in (content, *inside)):  # a whole model, say
            raise
        return content


class _Inert:
    """A pickle module that runs nothing: tensors are rebuilt, and objects of packages, as a Lightning file's
    hyper-parameters are, become empty shells. Of packages nothing is imported. What the standard library has beyond
    plain data is refused, as no honest file needs it, and so are tensors of a kind that would be lost as shells."""

    TENSORS = frozenset({("collections", "OrderedDict"), ("torch._utils", "_rebuild_tensor_v2"),
                         ("torch._utils", "_rebuild_parameter"), ("builtins", "dict"), ("builtins", "list"),
                         ("builtins", "set"), ("builtins", "int"), ("builtins", "str"), ("collections", "defaultdict")})
    DATA = frozenset({"argparse", "collections", "copyreg", "_codecs", "datetime", "enum", "pathlib", "typing"})
    PLAIN = frozenset({"bool", "bytearray", "bytes", "complex", "float", "frozenset", "object", "slice", "tuple"})
    NAMES: Mapping[str, str] = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # old ones, which torch still writes

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            module = _Inert.NAMES.get(module, module)
            if (module, name) in _Inert.TENSORS or (module == "torch" and name.endswith("Storage")):
                return super().find_class(module, name)
            package = module.partition(".")[0]
            plain = package in _Inert.DATA or (module == "builtins" and name in _Inert.PLAIN)
            if (package in sys.stdlib_module_names and not plain) or (package == "torch" and "_rebuild" in name):
                raise pickle.UnpicklingError(f"the file wants {module}.{name}")
            return _Shell

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _Inert.Unpickler(file, **options).load()


class _Trusted:
    """A pickle module for trusted files: as Python's, but a class that cannot be imported becomes an empty shell."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            try:
                return super().find_class(module, name)
            except (ImportError, AttributeError):
                return _Shell

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _Trusted.Unpickler(file, **options).load()


class _Shell(dict[Any, Any]):
    """Stands for an object that is not rebuilt; takes whatever arguments and state a pickle gives it, and drops it."""

    def __init__(self, *arguments: Any, **named: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Nothing."""

    def __setitem__(self, key: Any, value: Any) -> None:
        """Nothing."""

    def append(self, value: Any) -> None:
        """Nothing."""

    def extend(self, values: Any) -> None:
        """Nothing."""

    def add(self, value: Any) -> None:
        """Nothing."""

    def __hash__(self) -> int:  # type: ignore[override]  # it may stand for a key
        return id(self)


def _read_safetensors(file: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except SafetensorError as error:
        raise _unreadable(file, error) from error


def _read_numpy(file: Path) -> Any:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (zipfile.BadZipFile, TypeError, *_DAMAGED) as error:
        raise _unreadable(file, error) from error


def _read_torch(file: Path) -> Any:
    try:
        return _load_tensors(file)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the weights file holds more than tensors, or is damaged, and was not opened: {reason}", where=str(file),
            expected="a file that torch.load(weights_only=True) accepts",
            fix="unpickling can run any code: if you trust its source, take out its tensors once with "
                f"`prior-bench weights convert --trust {file.name} {file.stem}.safetensors`"
        ) from error
    except _DAMAGED as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> UserError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return UserError(f"the weights file cannot be read, it may be truncated: {reason}", where=str(file),
                     expected="a complete safetensors or PyTorch file",
                     fix="download or copy it again and compare its size")


def load_checkpoint(method: Method, file: Path, allow_partial: bool = False) -> Coverage:
    """Fill a method from a weights file of ours or, by `Method.adapt_checkpoint`, of its authors.

    Refuses a file that does not fill the whole image encoder, or fills a part of the text encoder only, unless
    `allow_partial`. A file without a text encoder makes the method vision-only (`has_text` False).
    """
    file = Path(file)
    state = method.adapt_checkpoint(read_state(file / WEIGHTS if file.is_dir() else file))
    coverage = coverage_of(method, state)
    image, text = coverage.share(IMAGE), coverage.share(TEXT)
    if not allow_partial and (image < 1 or 0 < text < 1):
        raise UserError(f"the file does not fit the {method.name} model: {coverage}", where=str(file),
                        expected="every weight of the image encoder, and of the text encoder if there is one",
                        fix=f"choose the recipe that the file was made with; first missing: "
                            f"{', '.join(coverage.missing[:3]) or 'none'}; first unexpected: "
                            f"{', '.join(coverage.unexpected[:3]) or 'none'}; or allow partial weights by name")
    fit_state(method, state)
    if text == 0 and method.has_text:
        method.has_text = False
    return coverage


# ----------------------------------------------------------------------------------------- our folders


def save_weights(folder: Path, method: Method, recipe: Recipe, provenance: Mapping[str, Any]) -> Path:
    """Write a method's weights folder in one step: it is there complete, or not at all."""
    folder = Path(folder)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_state(method.state_dict(), temporary / WEIGHTS)
    (temporary / RECIPE).write_text(json.dumps(recipe.model_dump(mode="json"), indent=2), encoding="utf-8")
    meta = {"schema": SCHEMA, "method": method.name, "has_text": method.has_text,
            "image_input": asdict(method.image_input), "parameters": sum(p.numel() for p in method.parameters()),
            "provenance": dict(provenance)}
    (temporary / META).write_text(json.dumps(meta, indent=2, default=str), encoding="utf-8")
    (temporary / TOKENIZER).mkdir()  # left empty by a method without a text encoder
    method.save_tokenizer(temporary / TOKENIZER)
    for path in temporary.rglob("*"):
        if path.is_file():
            with open(path, "rb") as f:
                os.fsync(f.fileno())
    if folder.exists():
        old = folder.with_name(f".{folder.name}.old.{os.getpid()}")
        os.replace(folder, old)
        os.replace(temporary, folder)
        shutil.rmtree(old)
    else:
        os.replace(temporary, folder)
    return folder


def load_method(folder: Path) -> Method:
    """The method in a weights folder of ours, in eval mode."""
    folder = Path(folder)
    meta = _read_json(folder / META)
    cls = plugins.load("methods", meta["method"])
    try:
        recipe = cls.recipe_class.model_validate(_read_json(folder / RECIPE))
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, e["loc"])) for e in error.errors())
        raise UserError(f"the recipe of the weights is not one of this version of {meta['method']}: {fields}",
                        where=str(folder / RECIPE), fix="pre-train again, or use the version that made the weights"
                        ) from error
    recipe = recipe.model_copy(update={"image": recipe.image.model_copy(update={"weights": "random"})})
    method: Method = new_method(cls, recipe, seed=0, tokenizer=folder / TOKENIZER)
    method.has_text = meta["has_text"]
    state = read_state(folder / WEIGHTS)
    coverage = fit_state(method, state)
    if coverage.missing or coverage.unexpected:
        raise UserError(f"the weights do not fit this version of {method.name}: {coverage}", where=str(folder),
                        expected=f"keys as written by version {SCHEMA} of the format",
                        fix=f"pre-train again; first missing: {coverage.missing[:3]}")
    return method.eval()


def new_method(cls: type[Method], recipe: Recipe, seed: int, texts: Iterable[str] | None = None,
               tokenizer: Path | None = None) -> Method:
    """A freshly initialised method; its random weights hang on `seed` alone, and the global random state is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls.from_recipe(recipe, texts, tokenizer).eval()


def _read_json(file: Path) -> Any:
    if not file.is_file():
        raise UserError("this is not a weights folder", where=str(file.parent),
                        expected=f"{WEIGHTS}, {RECIPE} and {META}",
                        fix="give the folder that `prior-bench pretrain` printed, or a weights file")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"the file is not valid JSON: {error}", where=str(file), fix="pre-train again") from error


# ------------------------------------------------------------------------------------------- digests


def weights_digest(path: Path, memo: Path | None = None) -> str:
    """Digest of what a weights folder or file computes: weights, recipe and tokenizer; not its provenance."""
    path = Path(path)
    if path.is_file():
        return digest_file(path, memo)
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name != META)
    return digest_json([[str(p.relative_to(path)), digest_file(p, memo)] for p in files])


def state_digest(method: nn.Module) -> str:
    """Digest of a method's weights in memory, for references that have no file."""
    state = method.state_dict()
    return digest_json([[key, digest_array(value.detach().cpu().numpy())] for key, value in state.items()])

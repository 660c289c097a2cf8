"""Files of weights by others, read without running anything in them: PyTorch, safetensors and numpy state dicts.

A pickle is looked through before it is read, then read with `weights_only=True` where that does, and else by an
unpickler that makes empty shells of what is no tensor. No configuration is taken from a file. `read_trusted`, for
`prior-bench weights convert --trust` alone, is the exception.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import shlex
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor, nn

from prior_bench.errors import UserError
from prior_bench.weights_file import check_there, inspecting

_WRAPPERS = ("state_dict", "model", "model_state_dict")
_DTYPES = frozenset({torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
                     torch.int8, torch.uint8, torch.bool})
_GROWTH = 10  # of what is in a file over the file: neither torch.save nor numpy.savez compresses
_ZIP = b"PK\x03\x04"  # by which torch, too, tells its format from the old one
_PICKLE = b"\x80"  # of every protocol that torch.save writes
_RUN = frozenset({"ctypes", "importlib", "nt", "os", "posix", "pty", "runpy", "shutil", "socket", "subprocess", "sys"})
_NESTED = 10_000  # objects in a tuple and the tuples in it
# All that a file of plain tensors names: torch's own unpickler reads it. (Of other names that one accepts some fill the
# memory, as bytearray, and some give tensors attributes.)
_TENSOR_NAMES = re.compile(r"collections (OrderedDict|Counter)|torch Size|torch (?!Untyped)[A-Za-z0-9]+Storage|"
                           r"torch\._utils _rebuild_(tensor|tensor_v2|parameter)")


def read_state(file: Path) -> dict[str, Tensor]:
    """The state dict in a safetensors, PyTorch or NumPy (.npz) file, out of its wrappers (`state_dict`, `model`,
    `module.`)."""
    file = Path(file)
    check_there(file)
    readers = {".safetensors": _read_safetensors, ".npz": _read_numpy}
    return _state_of(readers.get(file.suffix, _read_torch)(file), file)


def read_trusted(file: Path) -> dict[str, Tensor]:
    """The state dict in a PyTorch file, or a plain pickle of tensors or arrays, that its user trusts: it is unpickled
    whole, so that code in it runs. Objects of packages that are not installed become empty shells."""
    check_there(file)
    try:
        content = _unpickled(file)
    except Exception as error:
        if not _known_start(file):
            raise _no_weights(file) from error
        raise _unreadable(file, error) from error
    return _state_of(_as_tensors(content.state_dict() if isinstance(content, nn.Module) else content), file)


def _unpickled(file: Path) -> Any:
    """What a trusted file holds. One that is neither torch's archive nor of its old format, which begins with a number
    of torch's, is a plain pickle; it is read once, as its code runs each time."""
    with open(file, "rb") as f:
        first = None if f.read(4) == _ZIP or f.seek(0) else _Trusted.load(f)
    if first is None or first == torch.serialization.MAGIC_NUMBER:
        return torch.load(file, map_location="cpu", weights_only=False, pickle_module=_Trusted)
    return first


def _as_tensors(content: Any) -> Any:
    """NumPy's arrays of numbers as tensors, in dictionaries."""
    if isinstance(content, np.ndarray) and content.dtype.kind in "fiub":
        return torch.from_numpy(np.array(content))  # a copy, which can be written to
    return {key: _as_tensors(value) for key, value in content.items()} if type(content) is dict else content


def write_state(state: Mapping[str, Tensor], file: Path) -> None:
    """A state dict as safetensors."""
    from safetensors.torch import save_file

    file.touch()
    mode = file.stat().st_mode  # that of any new file here; safetensors' would be for its owner alone
    save_file({key: value.detach().to("cpu", copy=True).contiguous() for key, value in state.items()}, file)
    file.chmod(mode)


def _state_of(content: Any, file: Path) -> dict[str, Tensor]:
    """The tensors of what was read, out of their wrappers."""
    if not isinstance(content, dict):
        raise UserError(f"the weights file holds a {type(content).__name__}", where=str(file), expected="a state dict",
                        fix="save the model's instead: torch.save(model.state_dict(), FILE)")
    for wrapper in _WRAPPERS:  # by dict's own methods: objects in a file may have attributes that hide theirs
        inside = dict.get(content, wrapper)
        if isinstance(inside, dict):
            content = inside
    state = {key: Tensor.detach(value) for key, value in dict.items(content)
             if isinstance(key, str) and isinstance(value, Tensor)}
    if not state:
        raise UserError("the weights file holds no tensors", where=str(file), expected="a state dict, bare or under "
                        + " or ".join(repr(w) for w in _WRAPPERS),
                        fix="save the model's: torch.save(model.state_dict(), FILE)")
    largest = _GROWTH * file.stat().st_size
    for key, value in state.items():
        if not (key.isprintable() and value.layout is torch.strided and value.device.type == "cpu"
                and value.dtype in _DTYPES and value.numel() * value.element_size() <= largest):
            raise UserError(f"{key!a} in the weights file is no plain tensor: {value.dtype}, {tuple(value.shape)}",
                            where=str(file), expected="tensors of numbers that the file holds, under printable names")
    for _ in range(2):  # DataParallel, and once more around it
        if all(key.startswith("module.") for key in state):
            state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def check_finite(state: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that are no numbers, before anything is computed with them."""
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise UserError(f"{len(broken)} of {len(state)} tensors hold NaN or infinite numbers: {', '.join(broken[:3])}",
                        where=source, expected="finite weights",
                        fix="take another checkpoint, from before the training diverged, or download it again")


@contextmanager
def converting(file: Path | None = None) -> Iterator[None]:
    """Around code that renames, cuts and joins the tensors of a file by their names: they may have any shape."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"tensors in the weights file have other shapes than their names tell: {_reason(error)}",
                        where=str(file) if file else "", expected="the shapes of the layout that the names are of",
                        fix=f"{f'see `{inspecting(file)}`; ' if file else ''}the file may be damaged") from error


def _load_tensors(file: Path) -> Any:
    """The content of a PyTorch file, without running anything in it; pickle.UnpicklingError where that cannot be."""
    with open(file, "rb") as f:
        archive = f.read(4) == _ZIP
        f.seek(0)
        names = _names_in_archive(file) if archive else _names_in_old_format(f)
    others = sorted(name for name in names if not _TENSOR_NAMES.fullmatch(name))
    if not others:
        return torch.load(file, map_location="cpu", weights_only=True)
    running = [name for name in others if _runs(name)]  # told before what else is not read
    # Lightning never wrote the old format, and a file can make torch's reader of it write other files.
    if running or not archive:
        raise _Wants((running or others)[0])
    try:
        content = torch.load(file, map_location="cpu", weights_only=False, pickle_module=_Inert)
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # as of a shell that is called
        raise pickle.UnpicklingError(_reason(error)) from error
    inside = [dict.get(content, wrapper) for wrapper in _WRAPPERS] if isinstance(content, dict) else []
    if any(isinstance(part, _Shell) for part in (content, *inside)):
        raise pickle.UnpicklingError("it holds a whole model or another object")
    return content


def _check_growth(file: Path) -> None:
    """Refuse an archive that would fill the memory."""
    with zipfile.ZipFile(file) as archive:
        inside = sum(entry.file_size for entry in archive.infolist())
    if inside > _GROWTH * file.stat().st_size:
        raise UserError(f"the weights file unpacks to {inside / 1e6:.0f} MB, which is more than weights can",
                        where=str(file), expected=f"at most {_GROWTH} times its own size")


def _names_in_archive(file: Path) -> set[str]:
    _check_growth(file)
    reader = torch._C.PyTorchFileReader(str(file))  # as torch.load sees it: others may see another archive in it
    if "constants.pkl" in reader.get_all_records():
        raise pickle.UnpicklingError("it is a TorchScript program")
    return _names_in_pickle(io.BytesIO(reader.get_record("data.pkl")))


def _names_in_old_format(f: IO[bytes]) -> set[str]:
    names = set()
    for _ in range(5):  # magic number, version, system, content, keys; then the numbers
        names |= _names_in_pickle(f)
        position = f.tell()
        if not f.read(1):  # not that format, then
            break
        f.seek(position)
    return names


def _names_in_pickle(f: IO[bytes]) -> set[str]:
    """What a pickle would import, before it is read: "torch._utils _rebuild_tensor_v2".

    Refuses tuples in tuples, each perhaps many times: as the key of a dictionary one would be hashed for ever, or
    overflow the stack. So it follows, on a stack of numbers, how many objects each tuple comes to.
    """
    names: set[str] = set()
    stack: list[int] = []
    marks: list[int] = []
    memo: dict[Any, int] = {}
    try:
        for op, argument, _ in pickletools.genops(f):
            if op.name == "MARK":
                marks.append(len(stack))
                continue
            marked = pickletools.markobject in op.stack_before
            before = op.stack_before.index(pickletools.markobject) if marked else len(op.stack_before)
            start = (marks.pop() if marked else len(stack)) - before
            if start < (marks[-1] if marks else 0):
                raise ValueError("it takes more than there is")
            taken, stack[start:] = stack[start:], []
            if op.name in ("GLOBAL", "INST", "STACK_GLOBAL"):
                names.add(argument or "a name put together")
            if "GET" in op.name:
                stack.append(memo[argument])
            elif "PUT" in op.name:
                memo[argument] = stack[-1]
            elif op.name == "MEMOIZE":
                memo[len(memo)] = taken[0]
                stack += taken
            elif op.name == "DUP":
                stack += taken * 2
            elif "TUPLE" in op.name:
                stack.append(1 + sum(taken))
                if stack[-1] > _NESTED:
                    raise ValueError(f"a tuple in it holds more than {_NESTED} objects")
            else:
                stack += [1] * len(op.stack_after)
    except Exception as error:
        raise pickle.UnpicklingError(_reason(error)) from error
    return names


class _Wants(pickle.UnpicklingError):
    """A file names what is no plain data: "module name". `runs` says whether that runs commands or code."""

    def __init__(self, what: str):
        super().__init__(f"the file wants {what}")
        self.runs = _runs(what)


def _runs(what: str) -> bool:
    """Whether "module name" is there to run commands or code: weights made in good faith have none of these."""
    module, _, name = what.partition(" ")
    package = _Inert.NAMES.get(module, module).partition(".")[0]
    return package in _RUN or (package == "builtins" and name not in _Inert.PLAIN)


class _Inert:
    """A pickle module that runs nothing: tensors are rebuilt, and objects of packages, as a Lightning file's
    hyper-parameters are, become empty shells. Of packages nothing is imported. What the standard library has beyond
    plain data is refused, as no honest file needs it, and so are tensors of a kind that would be lost as shells.

    torch's own unpickler takes stand-ins, too (`torch.serialization.safe_globals`), but puts no items into one, which
    configurations that are kinds of dict or list need (yacs, Lightning's AttributeDict), and knows protocol 2 alone.
    """

    TENSORS = frozenset({"_rebuild_tensor_v2", "_rebuild_parameter"})
    DATA = frozenset({"argparse", "collections", "copyreg", "_codecs", "datetime", "enum", "pathlib", "typing"})
    PLAIN = frozenset({"bool", "bytearray", "bytes", "complex", "dict", "float", "frozenset", "int", "list", "object",
                       "set", "slice", "str", "tuple"})
    NAMES: Mapping[str, str] = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # old ones, which torch still writes

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            """(torch's wrapper of this class knows the kinds of storage itself.)"""
            module = _Inert.NAMES.get(module, module)
            if (module, name) == ("collections", "OrderedDict"):
                return OrderedDict
            if module == "torch._utils" and name in _Inert.TENSORS:
                rebuild = getattr(torch._utils, name)
                return lambda *arguments: rebuild(*arguments)  # a new one each: a file can set attributes of functions
            package = module.partition(".")[0]
            plain = package in _Inert.DATA or (module == "builtins" and name in _Inert.PLAIN)
            if (package in sys.stdlib_module_names and not plain) or (
                    package == "torch" and ("_rebuild" in name or "Storage" in name)):
                raise _Wants(f"{module} {name}")
            return _Shell

    @staticmethod
    def load(file: Any, **options: Any) -> Any:
        return _Inert.Unpickler(file, **options).load()


class _Trusted:
    """A pickle module for trusted files: as Python's, but a class that cannot be imported becomes an empty shell."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            try:
                if _runs(f"{module} {name}"):
                    print(f"warning: the file runs code: {_reason(Exception(f'{module} {name}'))}", file=sys.stderr)
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
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except Exception as error:
        raise _unreadable(file, error) from error


def _read_numpy(file: Path) -> Any:
    try:
        _check_growth(file)
        with np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(file, error) from error


def _read_torch(file: Path) -> Any:
    try:
        return _load_tensors(file)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        if not _known_start(file):
            raise _no_weights(file) from error
        command = (f"`prior-bench weights convert --trust {shlex.quote(str(file))} "
                   f"{shlex.quote(f'{file.stem}.safetensors')}`")
        if isinstance(error, _Wants) and error.runs:
            raise UserError(f"the weights file would run code, and was not opened: {_reason(error)}",
                            where=str(file), expected="a file that torch.load(weights_only=True) accepts",
                            fix="no honest weights need this: delete it, or ask its makers for a state dict alone; "
                                f"{command} would run that code") from error
        raise UserError(
            f"the weights file holds more than tensors, or is damaged, and was not opened: {_reason(error)}",
            where=str(file),
            expected="a file that torch.load(weights_only=True) accepts",
            fix=f"unpickling can run any code: if you trust its source, take out its tensors once with {command}"
        ) from error
    except Exception as error:  # of a damaged file torch raises almost any
        raise _unreadable(file, error) from error


def _known_start(file: Path) -> bool:
    with open(file, "rb") as f:
        start = f.read(4)
    return start == _ZIP or start.startswith(_PICKLE)


def _no_weights(file: Path) -> UserError:
    return UserError("this is not a weights file: it is neither a zip archive nor a pickle", where=str(file),
                     expected="a PyTorch, safetensors (.safetensors) or NumPy (.npz) file",
                     fix="check the path; a download may have left a page or a pointer in its place")


def _reason(error: Exception) -> str:
    """The first line of an error, which may cite the file, without what a terminal would obey."""
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return "".join(letter if letter.isprintable() else "?" for letter in first)


def _unreadable(file: Path, error: Exception) -> UserError:
    return UserError(f"the weights file cannot be read, it may be truncated: {_reason(error)}", where=str(file),
                     expected="a complete safetensors or PyTorch file",
                     fix="download or copy it again and compare its size")

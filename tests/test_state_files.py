"""Weights files made to harm whoever opens them: nothing in them runs, and each is refused with a line or read."""

from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from prior_bench.cli import app
from prior_bench.encoders.image import ImageEncoder
from prior_bench.errors import UserError
from prior_bench.recipes import ImageEncoderSpec
from prior_bench.state_files import read_state

# ------------------------------------------------------------------- pickles by hand, opcode by opcode


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


REBUILD = name("torch._utils", "_rebuild_tensor_v2")
EMPTY = name("collections", "OrderedDict") + b")R"
SHELL = name("foreign", "Thing") + b")\x81"  # with one of these a file needs the reader of foreign objects


def tensor(shape: tuple[int, ...] = (3,), stride: tuple[int, ...] = (1,), key: bytes = b"") -> bytes:
    storage = b"(" + text("storage") + name("torch", "FloatStorage") + (key or text("0")) + text("cpu") + number(3)
    return (REBUILD + b"(" + storage + b"tQ" + number(0) + numbers(*shape) + numbers(*stride) + b"\x89" + EMPTY + b"tR")


def mapping(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key.replace("_", ".")) + value for key, value in items.items()) + b"u"


def archive(file: Path, content: bytes) -> Path:
    """A file as torch.save writes it, with three numbers as storage 0."""
    with zipfile.ZipFile(file, "w") as z:
        for record, data in (("data.pkl", b"\x80\x02" + content + b"."), ("byteorder", b"little"), ("version", b"3\n"),
                             ("data/0", np.arange(3, dtype="<f4").tobytes())):
            z.writestr(f"archive/{record}", data)
    return file


def old_format(content: bytes) -> bytes:
    head = [0x1950a86a20f9469cfc6c, 1001, {"little_endian": True}]
    return b"".join(pickle.dumps(x, 2) for x in head) + b"\x80\x02" + content + b"." + pickle.dumps([], 2)


def beside(content: bytes) -> bytes:
    """A state dict, and something beside it that only the reader of foreign objects passes over."""
    return b"}(" + text("state_dict") + mapping(conv1_weight=tensor()) + text("more") + b"(" + SHELL + content + b"lu"


def read(file: Path) -> dict[str, torch.Tensor]:
    state = read_state(file)
    assert torch.equal(state["conv1.weight"], torch.arange(3.0))
    return state


# --------------------------------------------------------------------------------------- code that would run


@pytest.mark.parametrize("called", ["os system", "posix system", "subprocess Popen", "builtins exec",
                                    "builtins getattr", "builtins __import__", "os.path os.system",
                                    "torch UntypedStorage", "torch._utils _rebuild_qtensor",
                                    "torch storage.UntypedStorage"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_what_runs_code_or_fills_the_memory_is_refused(called, protocol, tmp_path):
    module, attribute = called.split()
    found = name(module, attribute) if protocol == 2 else text(module) + text(attribute) + b"\x93"
    file = archive(tmp_path / "evil.ckpt", beside(found + b"(" + text(f"touch {tmp_path}/it-ran") + b"tR"))
    with pytest.raises(UserError, match="the file wants"):
        read_state(file)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(("called", "runs"), [("posix system", True), ("__builtin__ eval", True),
                                              ("functools partial", False), ("logging Logger", False)])
@pytest.mark.parametrize("wrap", [lambda file, content: archive(file, beside(content)),
                                  lambda file, content: file.write_bytes(old_format(content))])
def test_what_runs_code_is_called_so(called, runs, wrap, tmp_path):
    file = tmp_path / "evil.ckpt"
    wrap(file, name("functools", "wraps") + b"0" + name(*called.split()) + b")R")  # it is told first
    with pytest.raises(UserError) as error:
        read_state(file)
    assert ("would run code" in error.value.what) == runs
    assert ("delete it" in error.value.fix) == runs
    assert f"convert --trust {file} evil.safetensors" in error.value.fix


@pytest.mark.parametrize("content", [
    b"(" + text("touch it-ran") + b"ios\nsystem\n",  # INST
    b"(" + name("os", "system") + text("touch it-ran") + b"o",  # OBJ
    b"\x82\x01"])  # EXT1
def test_old_ways_to_call_are_refused(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"more than tensors|would run code"):
        read_state(archive(tmp_path / "evil.ckpt", beside(content)))
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("called", ["torch.hub load", "numpy load", "pathlib os.system", "builtins bytearray"])
def test_names_of_packages_are_shells(called, tmp_path):
    module, attribute = called.split()
    found = text(module) + text(attribute) + b"\x93"
    read(archive(tmp_path / "file.ckpt", beside(found + b"(" + number(2**40) + b"tR")))


def test_a_file_that_is_a_zip_and_of_the_old_format_writes_nothing(tmp_path, monkeypatch):
    """torch's reader of the old format compares sources of containers, and writes their differences into a file whose
    name is the container's: here a function to which the file gives a name."""
    monkeypatch.chdir(tmp_path)
    function = REBUILD + b"}" + text("dump_patches") + b"\x88sbN}" + text("__name__") + text("written") + b"s\x86b"
    container = b"(" + text("module") + function + text("file") + text("other source\n") + b"tQ"
    end = io.BytesIO()
    with zipfile.ZipFile(end, "w") as z:
        z.writestr("x", "y")
    (tmp_path / "evil.pt").write_bytes(old_format(mapping(a=SHELL, b=container)) + end.getvalue())
    assert zipfile.is_zipfile(tmp_path / "evil.pt")
    with pytest.raises(UserError, match="the file wants foreign Thing"):
        read_state(tmp_path / "evil.pt")
    assert os.listdir(tmp_path) == ["evil.pt"]
    assert torch._utils._rebuild_tensor_v2.__name__ == "_rebuild_tensor_v2"


def test_a_file_cannot_change_the_functions_that_read_it(tmp_path):
    before = torch._utils._rebuild_tensor_v2.__defaults__
    read(archive(tmp_path / "file.ckpt", beside(REBUILD + b"N}" + text("__defaults__") + numbers(1) + b"s\x86b")))
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_torchscript_program_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), tmp_path / "program.pt")
    with pytest.raises(UserError, match="TorchScript"):
        read_state(tmp_path / "program.pt")


def test_the_old_format_is_read_where_it_holds_tensors_alone(tmp_path):
    torch.save({"state_dict": {"conv1.weight": torch.arange(3.0)}}, tmp_path / "old.pt",
               _use_new_zipfile_serialization=False)
    read(tmp_path / "old.pt")
    (tmp_path / "evil.pt").write_bytes(old_format(name("builtins", "bytearray") + b"(" + number(2**40) + b"tR"))
    with pytest.raises(UserError, match="the file wants builtins bytearray"):
        read_state(tmp_path / "evil.pt")


# ---------------------------------------------------------------------------------------- memory and time


READS = """
import sys; from pathlib import Path
from prior_bench.errors import UserError; from prior_bench.state_files import read_state
for file in sys.argv[1:]:
    try:
        read_state(Path(file))
    except UserError as error:
        print(error.what)
"""


def test_tuples_that_are_hashed_for_ever_or_overflow_the_stack(tmp_path):
    """In a process of its own: without the check it would hang, or crash."""
    wide, deep = b")" + b"q\x01h\x01\x86" * 60, b")" + b"\x85" * 1_000_000
    files = [archive(tmp_path / f"{n}.pt", b"(" + shell + b"}" + key + number(1) + b"sl")
             for n, (key, shell) in enumerate((key, shell) for key in (wide, deep) for shell in (b"", SHELL))]
    files.append(tmp_path / "old.pt")
    files[-1].write_bytes(old_format(b"}" + wide + number(1) + b"s"))
    done = subprocess.run([sys.executable, "-c", READS, *files], capture_output=True, text=True, timeout=120)
    assert done.stdout.count("a tuple in it holds more than 10000 objects") == len(files), done.stderr


def test_a_later_protocol_is_looked_through(tmp_path):
    """It numbers what it remembers itself (MEMOIZE)."""
    torch.save({"conv1.weight": torch.arange(3.0)}, tmp_path / "file.pt", pickle_protocol=4)
    read(tmp_path / "file.pt")
    deep = b")\x94" + b"\x85\x94" * 20_000
    with pytest.raises(UserError, match="a tuple in it holds more than 10000 objects"):
        read_state(archive(tmp_path / "deep.pt", b"}" + deep + number(1) + b"s"))


def test_archives_that_unpack_to_far_more_than_they_are(tmp_path):
    np.savez_compressed(tmp_path / "bomb.npz", a=np.zeros(1_000_000))
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("archive/data.pkl", b"\x80\x02X" + struct.pack("<I", 10**7) + bytes(10**7) + b".")
    for file in ("bomb.npz", "bomb.pt"):
        with pytest.raises(UserError, match="unpacks to"):
            read_state(tmp_path / file)


def test_arrays_larger_than_the_memory(tmp_path):
    head = repr({"descr": "<f8", "fortran_order": False, "shape": (2**50,)}).ljust(117) + "\n"
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as z:
        z.writestr("a.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode())
    with pytest.raises(UserError, match="cannot be read"):
        read_state(tmp_path / "huge.npz")


@pytest.mark.parametrize("shell", [{}, {"x": SHELL}])
def test_a_tensor_that_repeats_its_numbers_for_ever(shell, tmp_path):
    evil = tensor((2**20, 2**16, 7, 7), (0, 0, 0, 0))
    file = archive(tmp_path / "evil.pt", mapping(conv1_weight=evil, layer1_weight=tensor(), **shell))
    with pytest.raises(UserError, match=r"'conv1.weight' in the weights file is no plain tensor"):
        read_state(file)


def test_a_prefix_without_end(tmp_path):
    file = tmp_path / "many.pt"
    torch.save({"module." * 300_000 + "x": torch.ones(3)}, file)
    assert len(read_state(file)) == 1


# ------------------------------------------------------------------------------------------- tracebacks


@pytest.mark.parametrize("content", [b"", b"R", b"t", b"h\x05", b"G\x00", b"\x8a\x05\x01", b"]" + number(1) + b"Q"])
@pytest.mark.parametrize("wrap", [archive, lambda file, content: file.write_bytes(b"\x80\x02" + content + b".")])
def test_broken_pickles_are_refused(content, wrap, tmp_path):
    wrap(tmp_path / "broken.pt", content)
    with pytest.raises(UserError, match=r"broken\.pt"):
        read_state(tmp_path / "broken.pt")


@pytest.mark.parametrize("content", [
    b"}]" + number(1) + b"s",  # a list as a key
    mapping(conv1_weight=REBUILD + b"(" + number(1) + b"tR"), mapping(conv1_weight=tensor(key=b"]"), x=SHELL),
    mapping(conv1_weight=text("x") + b"Q"), mapping(conv1_weight=b"(" + text("storage") + b"tQ", x=SHELL)])
def test_pickles_that_make_torch_stumble_are_refused(content, tmp_path):
    with pytest.raises(UserError):
        read_state(archive(tmp_path / "broken.pt", content))


def test_attributes_of_objects_in_a_file_hide_nothing(tmp_path):
    hidden = b"}(" + b"".join(text(key) + number(5) for key in ("items", "get", "keys")) + b"ub"
    read(archive(tmp_path / "file.pt", EMPTY + text("conv1.weight") + tensor() + b"s" + hidden))
    of_tensor = (name("torch._tensor", "_rebuild_from_type_v2") + b"(" + REBUILD + name("torch", "Tensor")
                 + b")}" + text("detach") + number(5) + b"stR")
    with pytest.raises(UserError):
        read_state(archive(tmp_path / "file.pt", mapping(conv1_weight=of_tensor)))


@pytest.mark.parametrize("key", ["\ud800conv1", "\x1b]0;title\x07conv1"])
def test_names_that_a_terminal_would_obey_or_cannot_show(key, tmp_path):
    archive(tmp_path / "file.pt", b"}(" + text(key) + tensor() + b"u")
    said = CliRunner().invoke(app, ["weights", "inspect", str(tmp_path / "file.pt")])
    assert said.exit_code == 2
    assert "no plain tensor" in said.output
    assert "\x1b" not in said.output


@pytest.mark.parametrize("value", [torch.ones(3, dtype=torch.complex64), torch.eye(3).to_sparse(),
                                   torch.ones(3, device="meta")])
def test_other_kinds_of_tensors_are_named(value, tmp_path):
    torch.save({"conv1.weight": value}, tmp_path / "file.pt")
    with pytest.raises(UserError):
        read_state(tmp_path / "file.pt")


@pytest.mark.parametrize(("arch", "key", "shape"), [
    ("resnet18", "conv1.weight", (64,)), ("test_vit", "pos_embed", (7,)), ("test_vit", "pos_embed", (1, 7, 2))])
def test_shapes_that_their_names_do_not_tell(arch, key, shape, tmp_path):
    start = "layer1.0.conv1.weight" if arch == "resnet18" else "blocks.0.norm1.weight"
    torch.save({start: torch.ones(64), key: torch.ones(shape)}, tmp_path / "file.pt")
    with pytest.raises(UserError):
        ImageEncoder(ImageEncoderSpec(name=arch, weights=str(tmp_path / "file.pt"), channels=1, size=64))
    said = CliRunner().invoke(app, ["weights", "inspect", str(tmp_path / "file.pt")])
    assert said.exit_code in (0, 2), said.exception

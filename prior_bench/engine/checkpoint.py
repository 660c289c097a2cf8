"""Checkpoints that a killed run resumes from: written atomically, read without running anything that they hold.

MMEngine's own falls back to `weights_only=False`, evaluates the config that a file holds and saves no random state.
Here a file is read with `weights_only=True` and no fallback, and holds the state of every generator, so that a resumed
run on CPU equals the uninterrupted one bit for bit.
"""

from __future__ import annotations

import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prior_bench.errors import UserError
from prior_bench.files import write_file

FORMAT = 1


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them; the old file stays until the new one is on disk.

    Raises:
        UserError: the disk is full or the folder cannot be written; a file that was there before is unharmed.
    """
    try:
        write_file(Path(path), lambda file: torch.save({"format": FORMAT, **content}, file))
    except (UserError, RuntimeError) as error:  # torch's writer turns a full disk into a RuntimeError
        reason = error.what if isinstance(error, UserError) else error
        raise UserError(f"the checkpoint could not be written: {reason}", where=str(path),
                        fix="free disk space or mend the folder's permissions, then run the same command again; "
                            "it continues from the last checkpoint") from error


def load(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """The content of a file of `save`, tensors on `device`.

    Raises:
        UserError: the file is missing, truncated, of another format, or holds more than tensors and plain values.
    """
    path = Path(path)
    fix = "delete the file to start this run again from its beginning"
    if not path.is_file():
        raise UserError("the checkpoint does not exist", where=str(path))
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError("the checkpoint holds code or objects, and is not loaded", where=str(path),
                        expected="tensors, numbers and strings only (weights_only)", fix=fix) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"the checkpoint is damaged: {str(error).splitlines()[0] if str(error) else error!r}",
                        where=str(path), fix=fix) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError("the file is not a checkpoint of this version of prior-bench", where=str(path), fix=fix)
    return content


def load_model(model: nn.Module, content: Mapping[str, Any], path: Path, strict: bool = True) -> None:
    """Copy a checkpoint's weights into a model; UserError if they are another architecture's."""
    try:
        model.load_state_dict(content["model"], strict=strict)
    except RuntimeError as error:
        raise UserError("the checkpoint is of another architecture", where=str(path), expected=str(error)[:400],
                        fix="use the recipe that it was made with, or delete it") from error


# ------------------------------------------------------------------------------------- random states


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The global generators of python, numpy, torch and the CUDA device, as tensors of fixed shape."""
    version, words, gauss = random.getstate()
    assert version == 3, "python's generator changed its format"
    legacy: Any = np.random.get_state(legacy=False)
    numpy_words = [*legacy["state"]["key"].tolist(), legacy["state"]["pos"], legacy["has_gauss"]]
    state = {
        "python": torch.tensor(words, dtype=torch.int64),
        "python_gauss": torch.tensor(float("nan") if gauss is None else gauss, dtype=torch.float64),
        "numpy": torch.tensor(numpy_words, dtype=torch.int64),
        "numpy_gauss": torch.tensor(legacy["gauss"], dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Put the global generators back to a state of `random_state`."""
    state = {name: value.cpu() for name, value in state.items()}
    gauss = float(state["python_gauss"])
    random.setstate((3, tuple(state["python"].tolist()), None if gauss != gauss else gauss))
    *keys, position, has_gauss = state["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, float(state["numpy_gauss"])))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def gather_random_states(device: torch.device) -> list[dict[str, Tensor]]:
    """The random state of every rank, in rank order; to be called by all ranks."""
    own = random_state(device)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [own]
    ranks: list[dict[str, Tensor]] = [{} for _ in range(torch.distributed.get_world_size())]
    for name, value in own.items():
        value = value.to(device)  # nccl moves device tensors only
        copies = [torch.empty_like(value) for _ in ranks]
        torch.distributed.all_gather(copies, value)
        for rank, copy in zip(ranks, copies, strict=True):
            rank[name] = copy.cpu()
    return ranks

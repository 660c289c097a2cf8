"""Our weights folders: the files in one, what it says of its making, and its digest; without torch, for planning.

`weights` writes them and builds methods from them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prior_bench import plugins
from prior_bench.digests import digest_file, digest_json, digest_sources
from prior_bench.engine.pretrain import LOG, log_file, read_log, thinned
from prior_bench.errors import UserError

WEIGHTS, RECIPE, META, TOKENIZER = "weights.safetensors", "recipe.json", "meta.json", "tokenizer"
_HISTORY = (META, LOG)  # say how the weights were made, not what they compute


@dataclass(frozen=True, slots=True)
class WeightsFolder:
    """A weights folder of ours. `dataset` and `seed` are those of the pre-training, None where there was none."""

    path: Path
    method: str
    dataset: str | None
    seed: int | None
    key: str  # of the pre-training

    def digest(self, memo: Path) -> str:
        """What a cell's numbers hang on: the weights, and the method's code, of which training uses a part alone."""
        return digest_json([weights_digest(self.path, memo), digest_sources(plugins.sources("methods", self.method))])

    @property
    def history(self) -> dict[str, Any]:
        """What the provenance of results says of the weights' pre-training."""
        return {} if not self.key else {"pretrain_key": self.key, "losses": thinned(read_log(log_file(self.path)))}


def find(path: Path) -> WeightsFolder | None:
    """The weights folder at `path`, or in the run's folder there, or around the file there; None for others'."""
    places = [path, path / "weights"] if path.is_dir() else [path.parent] if path.name == WEIGHTS else []
    folder = next((one for one in places if (one / META).is_file()), None)
    if folder is None:
        return None
    meta = read_json(folder / META)
    made = meta["provenance"]
    return WeightsFolder(folder, meta["method"], made.get("dataset"), made.get("seed"), made.get("key", ""))


def read_json(file: Path) -> Any:
    """One of the folder's JSON files."""
    if not file.is_file():
        raise UserError("this is not a weights folder", where=str(file.parent),
                        expected=f"{WEIGHTS}, {RECIPE} and {META}",
                        fix="give the folder that `prior-bench pretrain` printed")
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"the file is not valid JSON: {error}", where=str(file), fix="pre-train again") from error


def weights_digest(path: Path, memo: Path | None = None) -> str:
    """Digest of what a weights folder or file computes: weights, recipe and tokenizer; not its history."""
    path = Path(path)
    if path.is_file():
        return digest_file(path, memo)
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.name not in _HISTORY)
    return digest_json([[str(p.relative_to(path)), digest_file(p, memo)] for p in files])

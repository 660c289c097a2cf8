"""The exact gate's checkpoints: pre-trained by each method's recipe `ci` on the gate's dataset, matrices in float16.

`prior-bench check --update` makes those that are missing, so a method's checkpoint is made anew by deleting its folder.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from prior_bench import grid, plugins, recipe_files, recipes
from prior_bench.engine.pretrain import pretrain
from prior_bench.leaderboard.gate.baseline import DATASET, RECIPE
from prior_bench.leaderboard.gate.options import Options
from prior_bench.state_files import read_state, write_state
from prior_bench.weights_folder import META, WEIGHTS

_OF_THE_RUN = ("command", "seconds", "images_per_second", "peak_memory_bytes")  # of a run, not of its weights


def ensure(method: str, folder: Path, options: Options) -> None:
    """Train a method's checkpoint into `folder`, unless it is there."""
    if folder.exists():
        return
    kind = plugins.load("methods", method)
    recipe = recipes.load(recipe_files.recipe_file(method), RECIPE, kind.recipe_class)
    dataset = grid.open_dataset(DATASET, grid.Request(methods=[method], cache=options.cache)).dataset
    options.say(f"{method}: pre-training by the recipe {RECIPE} on {DATASET}")
    trained = pretrain(method, recipe, dataset, seed=0, precision=options.precision, cache=options.cache)
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.copytree(trained, temporary)
    state = read_state(trained / WEIGHTS)
    write_state({key: value.half() if value.is_floating_point() and value.dim() > 1 else value
                 for key, value in state.items()}, temporary / WEIGHTS)
    meta = json.loads((trained / META).read_text(encoding="utf-8"))
    meta["provenance"] = {key: value for key, value in meta["provenance"].items() if key not in _OF_THE_RUN}
    (temporary / META).write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    temporary.rename(folder)

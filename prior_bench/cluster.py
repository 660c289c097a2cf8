"""Runs a grid on a Ray cluster: one task for each set of weights, so that what one encoder makes stays together.

Results folder, cache and data root must lie on a file system that all machines share; the locks that let two processes
share a folder let two machines do so. A task gets a whole machine, or one GPU of it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prior_bench import plugins, results
from prior_bench.data.dataset import chosen_root
from prior_bench.errors import UserError
from prior_bench.execution import Listener, Summary, execute
from prior_bench.grid import Grid, PlannedCell, Request, Weights, plan

POLL_SECONDS = 2.0


def execute_on_ray(grid: Grid, listener: Listener, address: str, plugin_files: Sequence[Path] = ()) -> Summary:
    """As `execution.execute`, on the Ray cluster at `address` ("local": one started here, "auto": the running one).

    Raises: UserError where ray is not installed, or a task met one.
    """
    ray = _ray()
    ray.init(address=None if address == "local" else address, log_to_driver=False, include_dashboard=False)
    try:
        task = ray.remote(**_share_of_a_machine(ray, grid.request.device))(_run)
        missing = grid.missing  # as it is now: it shrinks while workers store results
        wanted = dict.fromkeys(cell.weights for cell in missing)
        files = [file.resolve() for file in plugin_files]
        running = {task.remote(_part(grid.request, weights), files, Path.cwd()): weights for weights in wanted}
        summary = Summary()
        while running:
            ended, _ = ray.wait(list(running), timeout=POLL_SECONDS)
            for one in ended:
                _tell(grid, running.pop(one), missing, _outcome(ray, one), listener, summary)
        return summary
    finally:
        ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError("ray is not installed", where="--ray", fix="pip install 'prior-bench[ray]'") from error
    return ray


def _share_of_a_machine(ray: Any, device: str) -> dict[str, float]:
    """A GPU where there are some and they may be used, else the processors of the smallest machine."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if device != "cpu" and any(machine.get("GPU", 0) for machine in machines):
        return {"num_gpus": 1}
    return {"num_cpus": min(machine.get("CPU", 1) for machine in machines)}


def _part(request: Request, weights: Weights) -> Request:
    """The part of a request that concerns one set of weights. Workers have other variables, and see one GPU alone."""
    root = chosen_root(request.data_root)
    return replace(request, methods=[weights.method], seeds=[weights.seed], data_root=root,
                   device="cuda" if request.device.startswith("cuda") else request.device)


def _run(request: Request, plugin_files: Sequence[Path], folder: Path) -> Summary:
    """What a worker does, in the folder in which the command was given, so that paths mean the same."""
    os.chdir(folder)
    for file in plugin_files:
        plugins.add_file(file)
    return execute(plan(request), Listener())  # what was done is told when the task has ended


def _outcome(ray: Any, ended: Any) -> Summary:
    try:
        found: Summary = ray.get(ended)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from error
        raise
    return found


def _tell(grid: Grid, weights: Weights, missing: Sequence[PlannedCell], done: Summary, listener: Listener,
          summary: Summary) -> None:
    """Tell the listener what a worker left on disk, and add up."""
    summary.new += done.new
    summary.found += done.found
    summary.lost += done.lost
    summary.failed |= done.failed
    again = plan(replace(grid.request, methods=[weights.method], seeds=[weights.seed]))
    for cell in again.cells:
        if cell not in missing:
            continue
        if not again.done(cell):
            listener.failed(cell, "failed on its worker")
            continue
        assert cell.weights.digest is not None
        path = results.result_path(grid.request.output, cell.cell(cell.weights.digest))
        listener.finished(cell, results.read_result(path), None)

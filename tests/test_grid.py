"""Planning and running cells, on the toy plug-ins: what is asked for, what is skipped, what survives a failure."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from prior_bench import execution, grid, plugins, results, weights_folder
from prior_bench.engine.precision import choose
from prior_bench.errors import UserError
from prior_bench.grid import Request

PLUGIN = Path(__file__).parent / "plugin" / "toy_plugin.py"


@pytest.fixture(autouse=True)
def toy_plugins(monkeypatch):
    monkeypatch.setattr(plugins, "_from_files", {kind: {} for kind in plugins.KINDS})
    plugins.add_file(PLUGIN)


@pytest.fixture
def request_(tmp_path):
    return Request(methods=("toy-method",), tasks=("toy-task",), datasets=("toy-data",), output=tmp_path / "results",
                   cache=tmp_path / "cache")


class Silent:
    """A listener that remembers what it was told."""

    def __init__(self):
        self.done, self.errors, self.waited, self.phases, self.coverages = [], [], [], [], []

    def weights(self, weights, phase, share, text):
        self.phases.append(phase)

    def loaded(self, weights, coverage):
        self.coverages.append(coverage)

    def progress(self, cell, phase, share):
        self.phases.append(phase)

    def waiting(self, cell):
        self.waited.append(cell)

    def finished(self, cell, result, seconds):
        self.done.append(cell)

    def failed(self, cell, error):
        self.errors.append(error)


def run(request):
    listener = Silent()
    return execution.execute(grid.plan(request), listener), listener


# -------------------------------------------------------------------------------------------- planning


def test_cells_of_a_request(request_):
    planned = grid.plan(request_)
    fractions = [(c.plan.fraction, c.plan.subset_seed) for c in planned.cells]
    assert fractions == [(0.01, 0), (0.01, 1), (0.1, 0), (0.1, 1), (1.0, 0)]
    assert {c.plan.target for c in planned.cells} == {"findings"}
    assert len({c.cell("w").digest for c in planned.cells}) == 5
    assert planned.missing == planned.cells


def test_targets_modes_and_seeds_can_be_asked_for(request_):
    more = replace(request_, targets=("extra",), modes=("finetune", "linear"), subset_seeds=(7,), seeds=(0, 1))
    cells = grid.plan(more).cells
    assert {c.plan.target for c in cells} == {"extra"}
    assert {c.plan.mode for c in cells} == {"linear", "finetune"}
    assert {c.plan.subset_seed for c in cells if c.plan.fraction < 1} == {7}
    assert {c.weights.seed for c in cells} == {0, 1}
    assert len({c.weights.digest for c in cells}) == 2


def test_what_trains_nothing_comes_first(request_):
    tasks = [c.task for c in grid.plan(replace(request_, tasks=("toy-task", "toy-text"))).cells]
    assert tasks == ["toy-text"] + ["toy-task"] * 5


def test_all_methods_are_those_that_need_not_be_told_more(request_):
    def planned(recipe):
        cells = grid.plan(replace(request_, methods=("all",), pretrain_on="phantom", recipe=recipe)).cells
        return {cell.weights.method for cell in cells}

    references = {"random", "thumbnail", "supervised"}
    assert planned("small") >= {"prior", "convirt", "gloria", "mgca", "place"} | references
    assert planned("small-vit") >= {"mgca", "place", "mpma"} | references
    assert not planned("small") & {"timm", "open-clip", "hf", "imagenet", "encoder", "mpma"}


def test_all_says_which_methods_it_leaves_out(request_):
    def left_out(recipe, *methods):
        return grid.plan(replace(request_, methods=methods, pretrain_on="phantom", recipe=recipe)).left_out

    assert left_out("small", "all")["mpma"] == "has no recipe 'small'; it has paper, small-vit, small-vit-long, ci"
    assert "weights from the hub" in left_out("small", "all")["imagenet"]
    assert "imagenet" not in left_out("ci", "all")  # it has no such recipe
    assert {"prior", "convirt", "gloria"} <= left_out("small-vit", "all").keys()
    assert not {"place", "random", "timm"} & left_out("small-vit", "all").keys()
    assert left_out("small", "prior") == {}


def test_a_task_is_planned_under_the_profiles_that_it_has(request_):
    both = replace(request_, tasks=("toy-task", "zero-shot"))
    assert {c.task for c in grid.plan(replace(both, profile="paper")).cells} == {"toy-task"}
    assert {c.profile for c in grid.plan(replace(both, profile="paper")).cells} == {"paper"}
    with pytest.raises(UserError, match="nothing to evaluate") as error:
        grid.plan(replace(both, profile="standard-local"))
    assert "toy-task has no profile 'standard-local'; it has standard, paper; zero-shot evaluates" in error.value.where


@pytest.mark.parametrize(("task", "changes", "why"), [
    ("zero-shot", {"targets": ("covid", "covid_notes")}, "targets with prompts, and there is none among covid_notes, "
                                                         "covid"),
    ("segmentation", {"targets": ("covid", "covid_notes")}, "evaluates mask targets with training images, and there "),
    ("toy-text", {"modes": ("retrieval",)}, "has no mode retrieval; it has zero-shot"),
    ("detection", {"profile": "standard-local"}, "has no profile 'standard-local'; it has standard"),
])
def test_a_task_that_is_asked_for_and_has_no_cell_says_why(request_, monkeypatch, task, changes, why):
    covid = plugins.load("datasets", "covid-chestxray")
    monkeypatch.setattr(plugins.load("datasets", "toy-data"), "targets", covid.targets)
    asked = replace(request_, tasks=("retrieval", task), **changes)
    planned = grid.plan(asked)
    assert {cell.task for cell in planned.cells} == {"retrieval"}
    assert set(planned.left_out) == {task}
    assert why in planned.left_out[task]
    assert grid.plan(replace(asked, tasks=("all",))).left_out == {}


def test_the_cell_depends_on_the_recipe_and_the_profile(request_):
    def digests(**changes):
        return {c.cell(c.weights.digest).digest for c in grid.plan(replace(request_, **changes)).cells}

    assert digests() == digests()
    for changes in ({"recipe": "other"}, {"overrides": {"width": 4}}, {"profile": "paper"}, {"seeds": (1,)}):
        assert not digests() & digests(**changes)
    (shown,) = {c.weights.recipe for c in grid.plan(replace(request_, overrides={"width": 4})).cells}
    assert shown == "small[width=4]"
    (shown,) = {c.weights.recipe for c in grid.plan(replace(request_, overrides={"training.epochs": 4})).cells}
    assert shown == "small"  # nothing is trained, so it stays what it is


@pytest.mark.parametrize(("changes", "message"), [
    ({"methods": ("toy-metod",)}, "did you mean 'toy-method'"),
    ({"methods": ("toy-method:resnet18",)}, "takes no name of an encoder"),
    ({"tasks": ("toy-tak",)}, "did you mean 'toy-task'"),
    ({"datasets": ("toy-dat",)}, "did you mean 'toy-data'"),
    ({"datasets": ("toy-data:x",)}, "did you mean 'toy-data'"),
    ({"targets": ("finding",)}, "did you mean 'findings'"),
    ({"modes": ("linea",)}, "did you mean 'linear'"),
    ({"profile": "standrad"}, "did you mean 'standard'"),
    ({"recipe": "smal"}, "did you mean 'small'"),
    ({"fractions": (0.2,)}, "did you mean 0.1"),
    ({"fractions": (10.0,)}, "did you mean 1?"),
    ({"fractions": (0.0,)}, "one of 0.01, 0.1, 1"),
    ({"pretrain_on": "phantm"}, "did you mean 'phantom'"),
    ({"pretrain_on": "toy-data"}, "has no reports to pre-train on"),
    ({"methods": ("prior",)}, "give --pretrain-on, or --weights"),
    ({"weights": Path("none.pt")}, "none.pt"),
    ({"weights": PLUGIN}, "takes no weights"),
    ({"weights": PLUGIN, "methods": ("encoder",), "recipe": "resnet50"}, f"--set image.weights={PLUGIN}"),
    ({"methods": ()}, "--method is empty"),
    ({"methods": ("prior",), "recipe": "image-only"}, "is for a released file, and none is given"),
    ({"methods": ("toy-method", "toy-other"), "weights": PLUGIN}, "belongs to one method"),
    ({"targets": ("reports",), "datasets": ("toy-data", "phantom")}, "nothing to evaluate"),
])
def test_unknown_and_unfitting_requests(request_, changes, message):
    with pytest.raises(UserError) as error:
        grid.plan(replace(request_, **changes))
    assert message in str(error.value)


def test_pretrained_weights_are_known_by_their_note(request_):
    request = replace(request_, methods=("prior",), pretrain_on="phantom")
    weights = grid.plan(request).cells[0].weights
    assert weights.digest is None
    assert weights.source == "phantom"
    grid.write_note(request.cache, weights.key, "abc")
    assert grid.plan(request).cells[0].weights.digest == "abc"
    changed = replace(request, overrides={"training.epochs": 1})
    assert grid.plan(changed).cells[0].weights.digest is None


# ------------------------------------------------------------------------------------------- running


def test_a_second_run_has_nothing_to_do(request_):
    summary, listener = run(request_)
    assert (summary.new, len(listener.done)) == (5, 5)
    assert grid.plan(request_).missing == []
    summary, listener = run(request_)
    assert (summary.new, listener.done) == (0, [])
    for result in results.read_results(request_.output):
        assert result.provenance["seeds"]["subset"] == result.cell.subset_seed
        assert set(result.provenance["digests"]) == {"weights", "data", "protocol", "split"}
        assert result.provenance["packages"]["prior-bench"]
        assert result.provenance["seconds"]["fit"] >= 0
        assert result.provenance["peak_memory_bytes"]["process"] > 1 << 20


def test_only_what_is_missing_runs(request_):
    run(replace(request_, fractions=(0.1,)))
    summary, _ = run(request_)
    assert summary.new == 3
    next(request_.output.glob("*.json")).unlink()
    assert run(request_)[0].new == 1
    next(request_.output.glob("*.parquet")).unlink()
    assert run(request_)[0].new == 1


def test_text_tasks_do_not_apply_to_methods_without_text(request_):
    run(replace(request_, tasks=("toy-text",)))
    (result,) = results.read_results(request_.output)
    assert (result.status, result.reason) == ("not_applicable", "toy-method has no text encoder")
    assert grid.plan(replace(request_, tasks=("toy-text",))).missing == []


def test_a_bug_costs_its_cell_only(request_, monkeypatch):
    monkeypatch.setenv("TOY_FAIL", "0.1")
    summary, listener = run(request_)
    assert summary.new == 3
    assert len(summary.failed) == summary.lost == 2
    assert all("ZeroDivisionError: a bug in the toy task" in trace for trace in summary.failed.values())
    assert len(listener.errors) == 2
    monkeypatch.delenv("TOY_FAIL")
    assert run(request_)[0].new == 2


def test_no_weights_are_made_while_a_recipe_is_not_valid(request_, monkeypatch):
    monkeypatch.setattr(execution, "obtain", lambda *_: pytest.fail("computed"))
    with pytest.raises(UserError, match="unknown setting 'widht'"):
        run(replace(request_, overrides={"widht": 4}))


def test_weights_that_fail_cost_all_their_cells(request_, monkeypatch):
    monkeypatch.setattr(execution, "obtain", lambda *_: 1 / 0)
    summary, _ = run(request_)
    assert (len(summary.failed), summary.lost) == (1, 5)


def test_a_user_error_ends_the_run_and_keeps_what_was_done(request_, monkeypatch):
    monkeypatch.setenv("TOY_USER_ERROR", "0.1")
    with pytest.raises(UserError, match="toy file is broken"):
        run(request_)
    assert len(list(request_.output.glob("*.json"))) == 2


def test_full_disk_in_a_cell_is_a_user_error(request_, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "features")

    monkeypatch.setattr(execution, "evaluate", full)
    with pytest.raises(UserError, match="No space left"):
        run(request_)


def test_output_is_checked_before_computing(request_, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(execution, "obtain", lambda *_: pytest.fail("computed"))
    with pytest.raises(UserError, match="cannot write"):
        run(replace(request_, output=tmp_path / "file" / "results"))
    with pytest.raises(UserError, match="cannot write"):
        run(replace(request_, cache=tmp_path / "file" / "cache"))


def test_a_cell_in_flight_elsewhere_comes_last(request_):
    planned = grid.plan(request_)
    first = planned.cells[0]
    cell = first.cell(first.weights.digest)
    request_.output.mkdir()
    lock = results.cell_lock(request_.output, cell)
    lock.acquire()
    listener = Silent()
    listener.waiting = lambda _: lock.release()  # the other process ends without a result, as after kill -9
    execution.execute(planned, listener)
    assert [c.plan for c in listener.done] == [c.plan for c in [*planned.cells[1:], first]]


def test_stored_cells_are_shown_again_once_their_weights_are_known(request_):
    run(request_)
    planned = grid.plan(request_)
    forgotten = [replace(cell, weights=replace(cell.weights, digest=None)) for cell in planned.cells]
    listener = Silent()
    execution._run_weights(replace(planned, cells=forgotten), planned.cells[0].weights, forgotten,
                           choose("cpu", "fp32"), listener, summary := execution.Summary())
    assert (summary.new, summary.found) == (0, len(planned.cells))
    assert [cell.plan for cell in listener.done] == [cell.plan for cell in planned.cells]


@pytest.fixture
def folder(tmp_path):
    """A weights folder of PRIOR's recipe `ci`, as a pre-training with seed 3 on toy-data leaves it."""
    from prior_bench import recipe_files, recipes, weights

    kind = plugins.load("methods", "prior")
    recipe = recipes.load(recipe_files.recipe_file("prior"), "ci", kind.recipe_class)
    made = weights.new_method(kind, recipe, 3, ["No acute disease.", "The heart is enlarged."])
    provenance = {"key": "k", "dataset": "toy-data", "seed": 3}
    return weights.save_weights(tmp_path / "run" / "weights", made, recipe, provenance)


@pytest.mark.parametrize("given", [".", "weights.safetensors", ".."])
def test_weights_of_ours_stand_in_place_of_pretraining(request_, folder, given, tmp_path):
    request = replace(request_, methods=("prior",), weights=folder / given, recipe="ci", seeds=(3,), fractions=(1.0,))
    run(request)
    (result,) = results.read_results(request.output)
    cell = result.cell
    assert (cell.recipe, cell.pretrain_source, cell.pretrain_seed) == ("ci", "toy-data", 3)  # as if trained just now
    assert cell.weights_digest == weights_folder.find(folder).digest(tmp_path)
    assert result.provenance["weights"] == {"pretrain_key": "k", "losses": {}}
    assert result.provenance["recipe"]["image"]["name"] == "test_resnet"
    assert grid.plan(request).missing == []


def test_other_code_of_the_method_is_another_cell(request_, folder, monkeypatch):
    """A change of what training does not use, as of local scores, gives the same weights and other numbers."""
    request = replace(request_, methods=("prior",), weights=folder, recipe="ci", seeds=(3,), fractions=(1.0,))
    run(request)
    assert grid.plan(request).missing == []
    digest_sources = weights_folder.digest_sources
    monkeypatch.setattr(weights_folder, "digest_sources", lambda *roots: f"{digest_sources(*roots)} edited")
    assert len(grid.plan(request).missing) == 1


@pytest.mark.parametrize(("changes", "message", "fix"), [
    ({"seeds": (0,)}, "seed 3, not with seed 0", "give --seed 3"),
    ({"methods": ("mgca",)}, "those of 'prior', not of 'mgca'", "give --method prior"),
    ({"recipe": "small"}, "another recipe: image.name is test_resnet there and resnet18 here", "give --recipe ci"),
    ({"overrides": {"training.epochs": 2}}, "training.epochs is 5.0 there and 2.0 here", "give --recipe ci"),
])
def test_weights_of_ours_are_called_what_they_are(request_, folder, changes, message, fix):
    request = replace(request_, methods=("prior",), weights=folder, recipe="ci", seeds=(3,), fractions=(1.0,))
    with pytest.raises(UserError, match=message) as error:
        run(replace(request, **changes))
    assert error.value.fix == fix


@pytest.mark.parametrize(("method", "recipe"), [("encoder", "resnet50"), ("prior", "image-only")])
def test_what_a_released_file_filled_is_told_and_kept(request_, tmp_path, method, recipe):
    import timm
    import torch

    state = timm.create_model("resnet18", num_classes=0).state_dict()
    torch.save(state, tmp_path / "released.pt")
    overrides = {"image.name": "resnet18", "image.size": 32}
    file = {"weights": tmp_path / "released.pt", "overrides": overrides}
    if method == "encoder":
        file = {"overrides": overrides | {"image.weights": str(tmp_path / "released.pt")}}
    _, listener = run(replace(request_, methods=(method,), recipe=recipe, fractions=(1.0,), **file))
    (told,) = listener.coverages
    assert f"image encoder {len(state)}/{len(state)} keys (100 %)" in told
    (result,) = results.read_results(request_.output)
    assert result.provenance["weights"] == {"coverage": told}


def test_a_row_names_a_file_by_its_content(request_, tmp_path, monkeypatch):
    """The same file is the same row, however its path is written, and the path of a machine is nobody's business."""
    def recipe(path):
        changes = {"methods": ("encoder",), "recipe": "resnet50", "overrides": {"image.weights": str(path)}}
        return grid.plan(replace(request_, **changes)).cells[0].weights.recipe

    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.pth").write_bytes(b"first")
    first = recipe("own.pth")
    assert first == recipe(tmp_path / "own.pth") == recipe("./own.pth")
    assert re.fullmatch(r"resnet50\[image\.weights=own\.pth#[0-9a-f]{8}\]", first)
    (tmp_path / "own.pth").write_bytes(b"second")
    assert recipe("own.pth") != first


# ---------------------------------------------------------------------------------------- bad images


def test_bad_images_are_left_out_and_listed(request_, monkeypatch):
    monkeypatch.setenv("TOY_BAD", "i6,i7")
    with pytest.raises(UserError, match="2 images of toy-data cannot be read") as error:
        grid.plan(replace(request_, max_bad_images=1))
    assert "i6: the image cannot be used" in str(error.value)
    request = replace(request_, max_bad_images=2)
    assert "i6" not in grid.plan(request).datasets["toy-data"].dataset.records
    run(request)
    assert all(r.provenance["excluded_images"] == ["i6", "i7"] for r in results.read_results(request.output))
    assert all(m.counts["images"] == 18 for r in results.read_results(request.output) for m in r.metrics[:1])

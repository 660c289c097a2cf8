"""What a CUDA device alone can show: features as on the CPU, training, resuming, two ranks, and all tasks there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cosine_similarity

from prior_bench import plugins, recipe_files, recipes
from prior_bench.engine import hooks
from prior_bench.engine.precision import Precision, choose
from prior_bench.engine.pretrain import pretrain, read_log
from prior_bench.leaderboard.gate.baseline import trainable
from prior_bench.leaderboard.gate.exact.measure import exactly
from prior_bench.weights import load_method, new_method

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
TEXTS = ["The heart is enlarged. No pneumothorax.", "Small left effusion.", "No acute findings. Ribs are intact."] * 4


@pytest.fixture(autouse=True)
def no_tf32():
    with exactly():
        yield


@pytest.fixture
def train(toy, tmp_path):
    """pretrain() of the toy method in a cache of its own: the weights folder."""
    plugins.add_file(Path(__file__).parent / "engine" / "toy_method.py")
    module = sys.modules[plugins.load("methods", "toy-method").__module__]

    def run(cache: str, precision: Precision, **settings) -> Path:
        return pretrain("toy-method", module.toy_recipe(**settings), toy, seed=0, precision=precision,
                        cache=tmp_path / cache)

    return run


def parameters(weights: Path) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in load_method(weights).parameters()])


@pytest.mark.parametrize("name", trainable())
def test_features_are_those_of_the_cpu(name):
    kind = plugins.load("methods", name)
    method = new_method(kind, recipes.load(recipe_files.recipe_file(name), "ci", kind.recipe_class), 0, TEXTS)
    pixels = torch.rand(4, method.image_input.channels, 64, 64, generator=torch.Generator().manual_seed(0))

    def features(precision: Precision) -> list[torch.Tensor]:
        precision.place(method)
        with torch.inference_mode(), precision.cast():
            image = method.encode_image(pixels.to(precision.device))
            text = method.encode_text(TEXTS[:3])
            found = (image.joint, image.pooled, *method.pyramid(pixels.to(precision.device)), text.joint)
        return [each.float().cpu() for each in found]

    expected = features(choose("cpu", "fp32"))
    fp32, bf16 = (features(choose("cuda", precision)) for precision in ("fp32", "bf16"))
    for cpu, same, close in zip(expected, fp32, bf16, strict=True):
        torch.testing.assert_close(same, cpu, rtol=1e-4, atol=1e-4)
        assert cosine_similarity(close.flatten(), cpu.flatten(), dim=0) > 0.99


def test_fp32_trains_as_on_the_cpu(train):
    """Up to the noise of the toy's dropout, which every device draws for itself."""
    ends = {device: np.mean([row["global"] for row in read_log(train(device, choose(device, "fp32"), epochs=8).parent
                                                                / "log.jsonl")[-20:]]) for device in ("cpu", "cuda")}
    assert ends["cuda"] == pytest.approx(ends["cpu"], rel=0.15)


def test_bf16_is_chosen_and_learns(train):
    chosen = choose("auto", "auto")
    assert chosen.device.type == "cuda"
    weights = train("auto", chosen, epochs=8)
    rows = read_log(weights.parent / "log.jsonl")
    assert rows[-1]["global"] < 0.8 * rows[0]["global"]
    done = json.loads((weights.parent / "done.json").read_text())
    assert done["precision"] == chosen.key()


def test_a_stopped_run_goes_on_where_it_stopped(train, monkeypatch):
    class StopError(Exception):
        pass

    whole = train("whole", choose("cuda", "fp32"))
    monkeypatch.setattr(hooks, "CHECKPOINT_SECONDS", 0.0)
    method = plugins.load("methods", "toy-method")

    def stopping(self, progress: float) -> None:
        if progress >= 0.5:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(method, "after_step", stopping)
        with pytest.raises(StopError):
            train("pieces", choose("cuda", "fp32"))
    torch.testing.assert_close(parameters(train("pieces", choose("cuda", "fp32"))), parameters(whole),
                               rtol=1e-3, atol=1e-4)


RANK = """
import os, sys
import torch.distributed as dist
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from prior_bench import plugins
plugins.add_file(Path(sys.argv[1]) / "engine" / "toy_method.py")
from toy import ToyDataset
from prior_bench.engine.precision import choose
from prior_bench.engine.pretrain import pretrain
init = dist.init_process_group
dist.init_process_group = lambda backend, **more: init("gloo", **more)  # nccl refuses two ranks on one device
recipe = sys.modules[plugins.load("methods", "toy-method").__module__].toy_recipe()
pretrain("toy-method", recipe, ToyDataset(), seed=0, precision=choose("cuda", "fp32"), cache=Path(sys.argv[2]))
"""


def test_two_ranks_share_one_device(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [subprocess.Popen([sys.executable, "-c", RANK, str(Path(__file__).parent), str(tmp_path)],
                              env=environment | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
             for rank in range(2)]
    errors = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    done, = tmp_path.glob("pretrain/*/done.json")
    assert json.loads(done.read_text())["processes"] == 2
    rows = read_log(done.parent / "log.jsonl")
    assert rows[-1]["global"] < rows[0]["global"]


def test_all_tasks_run_there(tmp_path, ci_cache):
    done = subprocess.run(
        [sys.executable, "-c", "from prior_bench.cli import main; main()", "run", "--method", "mgca", "--recipe", "ci",
         "--dataset", "phantom-ci", "--task", "all", "--device", "cuda", "--cache", str(ci_cache), "--output",
         str(tmp_path), "--set", "training.epochs=1"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(file.read_text()) for file in tmp_path.glob("*.json")]
    found = [result for result in found if "cell" in result]
    assert {result["cell"]["task"] for result in found} == {"classification", "zero-shot", "retrieval", "segmentation",
                                                           "detection"}
    assert all(result["provenance"]["device"].startswith("cuda") for result in found)

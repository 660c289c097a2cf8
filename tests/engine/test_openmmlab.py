"""The bridge to OpenMMLab: torchvision's operators under mmcv's names, quiet imports, and what is refused."""

import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import torchvision

from prior_bench.engine import openmmlab
from prior_bench.errors import UserError

openmmlab.install_operators()
ops = pytest.importorskip("mmcv.ops")
generator = torch.Generator().manual_seed(0)


def boxes(n):
    corner = torch.rand(n, 2, generator=generator) * 50
    return torch.cat([corner, corner + 1 + torch.rand(n, 2, generator=generator) * 30], dim=1)


def test_nms_equals_torchvision():
    xyxy, scores = boxes(200), torch.rand(200, generator=generator)
    found, kept = ops.nms(xyxy, scores, 0.5)
    assert kept.tolist() == torchvision.ops.nms(xyxy, scores, 0.5).tolist()
    assert torch.equal(found, torch.cat([xyxy, scores[:, None]], dim=1)[kept])


def test_nms_with_offset_counts_border_pixels():
    xyxy = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 4]])  # 10 x 10 and 10 x 5 pixels: IoU 0.5, without offset 0.44
    scores = torch.tensor([0.9, 0.8])
    assert ops.nms(xyxy, scores, 0.47, offset=0)[1].tolist() == [0, 1]
    assert ops.nms(xyxy, scores, 0.47, offset=1)[1].tolist() == [0]


def test_batched_nms_equals_torchvision():
    xyxy, scores = boxes(200), torch.rand(200, generator=generator)
    labels = torch.randint(3, (200,), generator=generator)
    _, kept = ops.batched_nms(xyxy, scores, labels, {"type": "nms", "iou_threshold": 0.5})
    assert kept.tolist() == torchvision.ops.batched_nms(xyxy, scores, labels, 0.5).tolist()


def test_nms_of_nothing():
    assert len(ops.nms(torch.empty(0, 4), torch.empty(0), 0.5)[1]) == 0


@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_and_its_gradient_equal_torchvision(aligned):
    rois = torch.cat([torch.randint(2, (7, 1), generator=generator).float(), boxes(7)], dim=1)
    gradients = []
    for pool in (lambda x: ops.RoIAlign(5, 0.25, 2, aligned=aligned)(x, rois),
                 lambda x: torchvision.ops.roi_align(x, rois, 5, 0.25, 2, aligned)):
        features = torch.rand(2, 3, 20, 20, generator=torch.Generator().manual_seed(1), requires_grad=True)
        pooled = pool(features)
        (pooled * torch.arange(pooled.numel()).view(pooled.shape)).sum().backward()
        gradients.append((pooled.detach(), features.grad))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_focal_loss_and_its_gradient_equal_torchvision():
    target = torch.tensor([0, 2, 3, 1, 3])  # 3 is background
    truth = torch.nn.functional.one_hot(target, 4)[:, :3].float()
    gradients = []
    for loss in (lambda x: ops.sigmoid_focal_loss(x, target, 2.0, 0.25, None, "sum"),
                 lambda x: torchvision.ops.sigmoid_focal_loss(x, truth, 0.25, 2.0, "sum")):
        logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), requires_grad=True)
        value = loss(logits)
        value.backward()
        gradients.append((value.detach(), logits.grad))
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.skipif(openmmlab.install_operators() == "compiled", reason="mmcv's operators are compiled here")
def test_other_operators_can_be_imported_but_not_called():
    from mmcv.ops import nms_rotated

    with pytest.raises(UserError, match="nms_rotated"):
        nms_rotated(torch.zeros(1, 5), torch.zeros(1), 0.5)


def test_compiled_operators_are_used_when_there(monkeypatch):
    monkeypatch.setitem(sys.modules, "mmcv._ext", types.ModuleType("mmcv._ext"))
    assert openmmlab.install_operators.__wrapped__() == "compiled"


@pytest.mark.parametrize(("installed", "expected"), [
    ({"onedl-mmengine": "1", "onedl-mmcv": "2"}, "onedl"),
    ({"mmengine": "1", "mmcv-lite": "2"}, "upstream"),
])
def test_family(monkeypatch, installed, expected):
    monkeypatch.setattr(openmmlab, "_installed", lambda: installed)
    assert openmmlab.family() == expected


@pytest.mark.parametrize(("installed", "message"), [
    ({"onedl-mmengine": "1", "onedl-mmcv": "2", "mmcv": "2"}, "both families"),
    ({}, "no OpenMMLab"),
])
def test_a_mixture_is_refused(monkeypatch, installed, message):
    monkeypatch.setattr(openmmlab, "_installed", lambda: installed)
    with pytest.raises(UserError, match=message) as error:
        openmmlab.describe()
    assert "pip install" in error.value.fix


def test_describe():
    found = openmmlab.describe()
    assert set(found.versions) == {"mmengine", "mmcv", "mmdet", "mmseg"}
    assert "torchvision" in found.operators or "compiled" in found.operators
    if len(found.opencv) > 1:
        assert any("opencv-python-headless" in hint for hint in found.hints)


def test_opencv_without_libgl_is_explained(monkeypatch):
    real = openmmlab.importlib.import_module

    def import_module(name):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file")
        return real(name)

    monkeypatch.setattr(openmmlab.importlib, "import_module", import_module)
    assert any("libGL" in hint for hint in openmmlab.describe().hints)
    readme = " ".join((Path(__file__).parents[2] / "README.md").read_text().split())
    assert openmmlab.OPENCV_FIX.partition(": ")[2] in readme  # the same fix


def test_importing_both_libraries_prints_nothing():
    code = ("from prior_bench.engine.openmmlab import scope\n"
            "with scope('mmseg'): pass\n"
            "with scope('mmdet'): pass\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")

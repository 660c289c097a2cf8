"""`prior-bench doctor`: it runs where all is well, and names the fix where something is not."""

from __future__ import annotations

import pytest
import typer

from prior_bench.cli import doctor
from prior_bench.engine import openmmlab
from prior_bench.errors import UserError


def test_all_is_well(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("PRIOR_BENCH_DATA", raising=False)
    doctor.doctor(cache=tmp_path)
    text = capsys.readouterr().out
    for part in ("Python 3.", "torch ", "operators: ", "opencv: ", "precision ", "phantom: built in", "no problems"):
        assert part in text
    assert "nih: no data root is set" in text
    assert "fix: put the files under a data root" in text


def test_problems_have_fixes_and_exit_code_2(tmp_path, monkeypatch, capsys):
    def both():
        raise UserError("both families are installed", where="mmcv, onedl-mmcv", fix="pip uninstall")

    monkeypatch.setattr(openmmlab, "describe", both)
    (tmp_path / "file").write_text("")
    with pytest.raises(typer.Exit) as exit_:
        doctor.doctor(cache=tmp_path / "file" / "cache", device="tpu9")
    text = capsys.readouterr().out
    assert exit_.value.exit_code == 2
    assert "PROBLEM both families" in text
    assert "fix: pip uninstall" in text
    assert "PROBLEM unknown device 'tpu9'" in text
    assert "3 problems" in text


def test_a_data_root_that_does_not_exist(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PRIOR_BENCH_DATA", str(tmp_path / "none"))
    with pytest.raises(typer.Exit):
        doctor.doctor(cache=tmp_path)
    text = capsys.readouterr().out
    assert f"PROBLEM the data root does not exist: {tmp_path / 'none'}" in text
    assert "\n1 problem\n" in text


def test_a_data_root_without_data(tmp_path, monkeypatch, capsys):
    root = tmp_path / "root"
    root.mkdir()
    with pytest.raises(typer.Exit) as exit_:
        doctor.doctor(cache=tmp_path, data_root=root)
    text = capsys.readouterr().out
    assert exit_.value.exit_code == 2
    assert f"  nih: the files of nih were not found\n    where: {root}/nih\n    expected: a folder nih/ in the" in text
    assert "    fix: put the files" in text
    assert f"  PROBLEM the data root holds no data set: {root}\n    fix: " in text
    assert "\n1 problem\n" in text
    monkeypatch.setenv("PRIOR_BENCH_DATA", str(root))
    doctor.doctor(cache=tmp_path)
    assert "no problems" in capsys.readouterr().out


def test_a_data_root_with_one_broken_data_set(tmp_path, capsys):
    (tmp_path / "nih").mkdir()
    with pytest.raises(typer.Exit):
        doctor.doctor(cache=tmp_path, data_root=tmp_path)
    text = capsys.readouterr().out
    assert "  PROBLEM nih: " in text
    assert f"\n    where: {tmp_path}/nih" in text
    assert "\n1 problem\n" in text


def test_missing_libgl_is_a_problem(tmp_path, monkeypatch, capsys):
    found = openmmlab.OpenMMLab("onedl", dict.fromkeys(doctor.LIBRARIES, "1"), "torchvision's nms",
                                {"opencv-python": "1"}, ["opencv needs libGL here"])
    monkeypatch.setattr(openmmlab, "describe", lambda: found)
    monkeypatch.setattr(doctor, "_imports", lambda module: module != "cv2")
    with pytest.raises(typer.Exit):
        doctor.doctor(cache=tmp_path)
    assert "PROBLEM opencv needs libGL here" in capsys.readouterr().out

"""`prior-bench run` in processes of their own: kills, Ctrl-C, two at once, exit codes. On the toy plug-ins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prior_bench.results import result_files

PLUGIN = Path(__file__).parents[1] / "plugin" / "toy_plugin.py"
COMMAND = (sys.executable, "-c", "from prior_bench.cli import main; main()", "run", "--method", "toy-method", "--task",
           "toy-task", "--dataset", "toy-data", "--plugin", str(PLUGIN))


def begin(folder: Path, *more: str, **environment: str) -> subprocess.Popen:
    environment = os.environ | {"PRIOR_BENCH_CACHE": str(folder / "cache")} | environment
    # A shell starts background jobs with SIGINT ignored, which a child would inherit.
    return subprocess.Popen([*COMMAND, *more], cwd=folder, env=environment, text=True, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))


def run(folder: Path, *more: str, **environment: str) -> subprocess.CompletedProcess:
    process = begin(folder, *more, **environment)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(COMMAND, process.returncode, out, err)


def results(folder: Path) -> list[Path]:
    output = folder / "results"
    return result_files(output) if output.is_dir() else []  # the process may not have come that far


def wait_for_results(folder: Path, count: int) -> None:
    end = time.monotonic() + 300
    while len(results(folder)) < count:
        assert time.monotonic() < end, "no result in time"
        time.sleep(0.05)


def test_runs_and_then_has_nothing_to_do(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "[5/5]" in done.stdout
    assert "leaderboard: results/LEADERBOARD.md" in done.stdout
    written = {p: p.stat().st_mtime_ns for p in (tmp_path / "results").iterdir()}
    again = run(tmp_path)
    assert again.returncode == 0, again.stderr
    assert "nothing to do: all 5 cells are done" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "results").iterdir()} == written


def test_broken_results_are_made_anew(tmp_path):
    run(tmp_path)
    first, second, *_ = results(tmp_path)
    whole = first.read_text(), second.read_text()
    first.write_text(whole[0][:100])
    second.write_text("[1, 2]")
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "5 cells: 3 done, 2 to run" in done.stdout
    again = first.read_text(), second.read_text()
    assert [json.loads(text)["metrics"] for text in again] == [json.loads(text)["metrics"] for text in whole]


def test_images_that_are_left_out_are_listed(tmp_path):
    done = run(tmp_path, "--max-bad-images", "2", "--dry-run", TOY_BAD="i7,i6")
    assert done.returncode == 0, done.stderr
    assert "left out: 2 unreadable images of toy-data: i6, i7" in done.stdout


def test_kill_loses_the_cell_in_flight_only(tmp_path):
    process = begin(tmp_path, TOY_SLEEP="1")
    wait_for_results(tmp_path, 2)
    process.kill()
    process.communicate()
    kept = results(tmp_path)
    assert 2 <= len(kept) < 5
    for path in kept:
        assert json.loads(path.read_text())["status"] == "done"
    before = [path.stat().st_mtime_ns for path in kept]
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"5 cells: {len(kept)} done" in done.stdout
    assert len(results(tmp_path)) == 5
    assert [path.stat().st_mtime_ns for path in kept] == before


def test_ctrl_c_is_clean(tmp_path):
    process = begin(tmp_path, TOY_SLEEP="1")
    wait_for_results(tmp_path, 1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "interrupted; what was finished is stored" in err
    assert "Traceback" not in out + err
    assert 1 <= len(results(tmp_path)) < 5


def test_two_processes_share_a_folder(tmp_path):
    both = [begin(tmp_path, TOY_SLEEP="0.5") for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    commands = len(results(tmp_path))
    assert commands == 5
    assert "Traceback" not in str(outputs)


def test_a_bug_is_shown_and_the_rest_goes_on(tmp_path):
    done = run(tmp_path, TOY_FAIL="0.01")
    assert done.returncode == 1
    assert done.stderr.count("ZeroDivisionError: a bug in the toy task") == 2
    assert len(results(tmp_path)) == 3
    assert (tmp_path / "results" / "LEADERBOARD.md").is_file()


def test_a_mistake_of_the_user_has_no_traceback(tmp_path):
    done = run(tmp_path, TOY_USER_ERROR="1")
    assert done.returncode == 2
    assert "error: the toy file is broken\n  where: toy.csv\n  fix: mend it" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(results(tmp_path)) == 4


def test_a_dry_run_says_what_there_is_to_do(tmp_path):
    done = run(tmp_path, "--dry-run", "--task", "toy-task,toy-text", "--mode", "linear")
    assert "left out: toy-text has no mode linear; it has zero-shot" in done.stdout
    assert "toy-method (small, seed 0): nothing to train" in done.stdout
    wrong = run(tmp_path, "--dry-run", "--set", "widht=4")
    assert wrong.returncode == 2
    assert "error: unknown setting 'widht'\n  where: --set\n" in wrong.stderr
    assert "fix: did you mean 'width'?" in wrong.stderr


def test_output_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    done = run(tmp_path, "--output", "file/results")
    assert done.returncode == 2
    assert "--output" in done.stderr


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a file system that is read-only for everyone")
def test_read_only_output(tmp_path):
    done = run(tmp_path, "--output", "/sys/kernel/results")
    assert done.returncode == 2
    assert "cannot write" in done.stderr

"""The script for a machine with a GPU, as far as it goes on one without."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts import gpu_check

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.posix
SCRIPT = ROOT / "scripts" / "gpu_check.sh"


def run(*arguments):
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine can run it")
def test_a_machine_without_a_device_is_told_so_in_one_line_and_nothing_runs(tmp_path):
    done = run(tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "gpu_check: torch sees no CUDA device\n")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_folder_for_results_must_be_named():
    done = run()
    assert done.returncode == 2
    assert "required: out" in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_script_is_clean():
    subprocess.run(["shellcheck", SCRIPT], check=True)


def test_what_is_red_or_late_stops_nothing_and_all_is_written(tmp_path, monkeypatch):
    python = sys.executable
    stages = [
        gpu_check.Stage("build", 0, 60, [python, "-c", "raise SystemExit(3)"]),
        gpu_check.Stage("late", 1, 5, [python, "-c", "print('begun', flush=True); import time; time.sleep(60)"]),
        gpu_check.Stage("missing", 1, 60, ["/no/such/program"]),
        gpu_check.Stage("other part", 2, 60, [python, "-c", "raise AssertionError"]),
        gpu_check.Stage("fine", 1, 60, [python, "-c", "print('all is well')"]),
    ]
    monkeypatch.setattr(gpu_check, "stages", lambda *_: stages)
    monkeypatch.setattr(gpu_check, "describe", lambda: {"device": "none", "capability": "90"})
    options = gpu_check.options_of(["--part", "1", str(tmp_path)])
    assert gpu_check.run_all(options) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    states = [(stage["stage"], stage["state"]) for stage in summary["stages"]]
    assert states == [("build", "red"), ("late", "out of time"), ("missing", "red"), ("fine", "green")]
    log = (tmp_path / "log.txt").read_text()
    assert "begun" in log
    assert "all is well" in log


def test_two_calls_of_six_minutes_hold_all_stages_and_a_quick_one_three(tmp_path):
    stages = gpu_check.stages(tmp_path, tmp_path, rehearse=False)
    assert {stage.part for stage in stages} == {0, 1, 2}
    assert gpu_check.options_of(["--part", "2", "x"]).seconds <= 350
    assert gpu_check.options_of(["--quick", "x"]).seconds <= 180
    names = [stage.name for stage in stages]
    assert names.index("steps") < names.index("bench captured") < names.index("tests") < names.index("bench vicreg")


# Compiled for CPUs; on a GPU their callers take other ops.
CPU_ONLY = {"dropout", "probe_train", "window_chain"}


def test_every_benchmark_of_an_op_is_run():
    files = (ROOT / "kernels").glob("*.py")
    ops = {path.stem for path in files if "register_fake" in path.read_text()}
    assert ops - CPU_ONLY <= set(gpu_check.BENCHES)

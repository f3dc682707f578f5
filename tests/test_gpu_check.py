"""The script for a machine with a GPU, as far as it goes on one without."""

import json
import os
import re
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
    (summary,) = (tmp_path / "out").iterdir()
    assert json.loads(summary.read_text())["torch"] == torch.__version__


def test_a_torch_that_cannot_be_imported_is_told_of_in_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "torch.py").write_text("raise OSError('libcudart is missing')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert gpu_check.run_all(gpu_check.options_of([str(tmp_path / "out")])) == 2
    assert capsys.readouterr().out == "gpu_check: OSError: libcudart is missing\n"


def test_the_folder_for_results_must_be_named():
    done = run()
    assert done.returncode == 2
    assert "required: out" in done.stderr


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_script_is_clean():
    subprocess.run(["shellcheck", SCRIPT], check=True)


def test_what_is_red_or_late_stops_nothing_and_all_is_written(tmp_path, monkeypatch):
    python, child = sys.executable, f"{300 + os.getpid() / 1e7:.7f}"
    slow = f"""
import pathlib, subprocess, time
print("begun", flush=True)
subprocess.Popen(["sleep", "{child}"])
try:
    time.sleep(300)
except KeyboardInterrupt:
    pathlib.Path({str(tmp_path / "tests.xml")!r}).write_text("a report of what had passed")
"""
    stages = [
        gpu_check.Stage("build", 0, 60, [python, "-c", "raise SystemExit(3)"]),
        gpu_check.Stage("late", 1, 10, [python, "-c", slow]),
        gpu_check.Stage("missing", 1, 60, ["/no/such/program"]),
        gpu_check.Stage("other part", 2, 60, [python, "-c", "raise AssertionError"]),
        gpu_check.Stage("fine", 1, 60, [python, "-c", "print('all is well')"]),
        gpu_check.Stage("no time", 1, 4, [python, "-c", "print('never')"], log="sanitizer.txt"),
    ]
    monkeypatch.setattr(gpu_check, "stages", lambda *_: stages)
    monkeypatch.setattr(gpu_check, "describe", lambda rehearse: {"device": "none", "capability": "90"})
    options = gpu_check.options_of(["--part", "1", str(tmp_path)])
    assert gpu_check.run_all(options) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    states = [(stage["stage"], stage["state"], stage.get("why", "")) for stage in summary["stages"]]
    assert states == [
        ("build", "red", "exit status 3"),
        ("late", "red", "killed after 10 s"),
        ("missing", "red", "[Errno 2] No such file or directory: '/no/such/program'"),
        ("fine", "green", ""),
        ("no time", "red", "no time left to start it"),
    ]
    log = (tmp_path / "log.txt").read_text()
    assert "begun" in log
    assert "all is well" in log
    # It was given the time to write what it had, as pytest does, and nothing that it started is left.
    assert (tmp_path / "tests.xml").read_text() == "a report of what had passed"
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert f"sleep {child}" not in listed


def test_a_stage_that_is_green_is_green(tmp_path, monkeypatch):
    stage = gpu_check.Stage("fine", 0, 60, [sys.executable, "-c", ""])
    monkeypatch.setattr(gpu_check, "stages", lambda *_: [stage])
    monkeypatch.setattr(gpu_check, "describe", lambda rehearse: {"device": "none", "capability": "90"})
    assert gpu_check.run_all(gpu_check.options_of([str(tmp_path)])) == 0


def test_two_calls_of_six_minutes_hold_all_stages_and_a_quick_one_three(tmp_path):
    stages = gpu_check.stages(tmp_path, tmp_path, rehearse=False)
    assert {stage.part for stage in stages} == {0, 1, 2}
    for arguments, most in ((["--part", "1"], 360), (["--part", "2"], 360), (["--quick"], 180)):
        # An interrupted stage may take its grace.
        assert gpu_check.options_of([*arguments, "x"]).seconds + gpu_check.GRACE_S <= most
    names = [stage.name for stage in stages]
    assert names.index("steps") < names.index("bench captured") < names.index("tests") < names.index("bench vicreg")
    assert names.index("bench rollout") < names.index("memcheck")
    assert [stage.name for stage in stages if stage.is_quick] == ["build", "data", "steps", "bench captured"]
    # What the first part promises ends in time even if all but the last stage take as long as they may.
    assert sum(stage.limit_s for stage in stages if stage.part == 0) + 170 <= 340


def test_results_are_the_eight_files_that_the_script_names(tmp_path):
    named = set(re.findall(r"\b\w+\.(?:jsonl?|txt|xml)\b", gpu_check.__doc__))
    assert len(named) <= 8
    logs = {stage.log for stage in gpu_check.stages(tmp_path, tmp_path, rehearse=True)}
    source = (ROOT / "scripts" / "gpu_check.py").read_text() + (ROOT / "scripts" / "gpu_steps.py").read_text()
    assert logs | set(re.findall(r"out / [\"'](\S+\.\w+)[\"']", source)) == named


def test_a_rehearsal_runs_the_same_stages(tmp_path):
    real = gpu_check.stages(tmp_path, tmp_path, rehearse=False)
    rehearsed = gpu_check.stages(tmp_path, tmp_path, rehearse=True)
    assert [stage.name for stage in rehearsed] == [stage.name for stage in real]
    for stage in rehearsed:
        if stage.name in ("memcheck", "racecheck"):
            assert stage.command[0] == str(tmp_path / "compute-sanitizer")
    check = rehearsed[[stage.name for stage in rehearsed].index("memcheck")].command
    given = check[: check.index(sys.executable)]
    done = subprocess.run([*given, sys.executable, "-c", "raise SystemExit(9)"], capture_output=True, check=False)
    assert done.returncode == 9


# Compiled for CPUs; on a GPU their callers take other ops.
# Elsewhere they are plain PyTorch, which the steps time.
CPU_ONLY = {"dropout", "feature_gate", "gated", "locate", "probe_train", "scene", "window_chain"}


def test_every_benchmark_of_an_op_is_run():
    files = (ROOT / "kernels").glob("*.py")
    ops = {path.stem for path in files if "register_fake" in path.read_text()}
    assert ops - CPU_ONLY <= {*gpu_check.BENCHES, *gpu_check.OTHER_BENCHES}

"""The script for a machine with a GPU, as far as it goes on one without."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "gpu_check.sh"


def run(*arguments):
    environment = os.environ | {"PYTHON": sys.executable}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine can run it")
def test_a_machine_without_a_device_is_told_so_in_one_line_and_nothing_runs(tmp_path):
    done = run(tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "gpu_check: torch sees no CUDA device\n")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["log.txt"]


def test_the_folder_for_results_must_be_named():
    done = run()
    assert (done.returncode, done.stderr) == (2, "usage: scripts/gpu_check.sh OUTDIR\n")


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_the_script_is_clean():
    subprocess.run(["shellcheck", SCRIPT], check=True)


# Compiled for CPUs; on a GPU their callers take other ops.
CPU_ONLY = {"dropout", "probe_train", "window_chain"}


def test_every_benchmark_of_an_op_is_run():
    named = SCRIPT.read_text().split("bench_{", 1)[1].split("}", 1)[0].split(",")
    files = (SCRIPT.parent.parent / "kernels").glob("*.py")
    ops = {path.stem for path in files if "register_fake" in path.read_text()}
    assert ops - CPU_ONLY <= set(named)

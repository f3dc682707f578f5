"""Runs the tests of tests/fake_cuda, each on guard.cpp, a device that does nothing and has to be there before torch."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent / "fake_cuda"
COMPILER = shutil.which("c++") or shutil.which("g++")


# Many tests in one: its own limit comes first and tells which.
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="no C++ compiler, or no LD_PRELOAD")
@pytest.mark.skipif(torch.version.cuda is not None, reason="torch has a device of its own")
def test_steps_on_a_device_that_does_nothing(tmp_path) -> None:
    place = Path(torch.__file__).parent
    guard = tmp_path / "guard.so"
    command = [COMPILER, "-std=c++20", "-O0", "-w", "-shared", "-fPIC", f"-I{place / 'include'}"]
    libraries = [f"-L{place / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{place / 'lib'}"]
    subprocess.run([*command, str(FOLDER / "guard.cpp"), *libraries, "-o", str(guard)], check=True)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--tb=short",
            "--show-capture=no",
            str(FOLDER),
        ],
        env=os.environ | {"LD_PRELOAD": str(guard), "JEPA_FAST_FAKE_CUDA": "1", "OMP_NUM_THREADS": "1"},
        cwd=FOLDER.parent.parent,
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout

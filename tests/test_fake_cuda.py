"""Runs the tests of tests/fake_cuda, each on guard.cpp, a device that does nothing and has to be there before torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fake_cuda import guard

FOLDER = Path(__file__).parent / "fake_cuda"


# In two, which take equally long and can run side by side.
COMPILED = FOLDER / "test_launches.py"
PARTS = {"compiled": [COMPILED], "uncompiled": [path for path in FOLDER.glob("test_*.py") if path != COMPILED]}


# Many tests in one: its own limit comes first and tells which.
@pytest.mark.timeout(900)
@pytest.mark.skipif(guard.why_none() is not None, reason=guard.why_none() or "")
@pytest.mark.parametrize("part", PARTS)
def test_steps_on_a_device_that_does_nothing(part) -> None:
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
            *map(str, PARTS[part]),
        ],
        env=guard.environment(),
        cwd=FOLDER.parent.parent,
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout

"""The package where the system lacks what Windows lacks, hidden here: fcntl, resource, affinity, signal masks, fork."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jepa_fast import platforms
from jepa_fast.platforms import available_cores, lock_folder, open_file_limits

ROOT = Path(__file__).resolve().parent.parent
# What of the standard library is not to be imported or called without a guard, and the one module that guards it.
GUARDED = ("fcntl", "resource", "sched_getaffinity", "pthread_sigmask", "fork")


def elsewhere(system: str, *words: object, cwd: Path) -> str:
    """What a command prints on such a system."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "anywhere.py"), system, *map(str, words)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("system", ["windows", "bare"])
def test_splits_are_packed_on_several_processes(tmp_path: Path, system: str) -> None:
    words = ("jepa_fast.generate", "--out", tmp_path / "data", "--trajectories", 1024, "--workers", 2)
    elsewhere(system, *words, "--splits", "train", cwd=tmp_path)
    assert "already there, 1024 trajectories" in elsewhere(system, *words, "--splits", "train", cwd=tmp_path)
    # What the lock is made of there; the folder itself, on this system.
    assert (tmp_path / "data" / "train" / platforms.LOCK).exists()


def test_a_run_is_trained_resumed_probed_and_reported(tmp_path: Path, two_rooms: Path) -> None:
    run = tmp_path / "run"
    words = ("--data", two_rooms, "--steps", 6, "--data.batch-size", 8, "--checkpoint-minutes", 0)
    commands = (
        ("jepa_fast.train", "--preset", "gated_features", *words, "--out", run),
        ("jepa_fast.train", "--resume", run),
        ("jepa_fast.evaluate", run, "--no-floor"),
        ("jepa_fast.report", run),
        ("jepa_fast.doctor", "--data", two_rooms),
    )
    said = elsewhere("windows", *(word for command in commands for word in (*command, "--then")), cwd=tmp_path)
    assert said.count("done after 6 steps") == 2
    assert "probe_expert/val" in said
    assert (run / "evaluation.json").exists()
    assert "<svg" in (run / "report.html").read_text()
    assert "open files" in said


def test_nothing_of_posix_alone_is_used_without_a_guard() -> None:
    for path in [
        *(ROOT / "jepa_fast").rglob("*.py"),
        *(ROOT / "kernels").rglob("*.py"),
        *(ROOT / "research").glob("*.py"),
    ]:
        if path.name != "platforms.py":
            text = path.read_text()
            assert not [word for word in GUARDED if f"import {word}\n" in text or f".{word}(" in text], path


def test_a_folder_is_held_once(tmp_path: Path) -> None:
    descriptor = lock_folder(tmp_path)
    with pytest.raises(BlockingIOError):
        lock_folder(tmp_path)
    os.close(descriptor)
    os.close(lock_folder(tmp_path))


def test_limits_are_numbers() -> None:
    assert available_cores() >= 1
    soft, hard = open_file_limits()
    assert 0 < soft <= hard

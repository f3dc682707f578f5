"""The package where the system lacks what Windows lacks, hidden here: fcntl, resource, affinity, signal masks, fork."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jepa_fast.platforms import available_cores, open_file_limits, try_lock_file

ROOT = Path(__file__).resolve().parent.parent
# What of the standard library is not to be imported or called without a guard, and the one module that guards it.
GUARDED = ("fcntl", "resource", "sched_getaffinity", "pthread_sigmask", "fork")


FREED_BLOCKS = """
import resource
from jepa_fast.platforms import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        bytearray(2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

given_back = faults()
keep_freed_memory()
faults()
print(given_back, faults())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems have another malloc")
def test_freed_blocks_are_taken_again_without_new_pages():
    done = subprocess.run([sys.executable, "-c", FREED_BLOCKS], capture_output=True, text=True, check=True, cwd=ROOT)
    given_back, kept = map(int, done.stdout.split())
    # Eight times 64 MB in pages of 4 KB or, where pages are huge, of 2 MB.
    assert kept < min(given_back, 64)


def elsewhere(system: str, *words: object, cwd: Path, ends_with: tuple[int, ...] = (0,)) -> str:
    """What a command prints on such a system, ending with one of these statuses."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "anywhere.py"), system, *map(str, words)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in ends_with, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("system", ["windows", "bare"])
def test_splits_are_packed_on_several_processes(tmp_path: Path, system: str) -> None:
    words = ("-m", "jepa_fast.generate", "--out", tmp_path / "data", "--trajectories", 1024, "--workers", 2)
    elsewhere(system, *words, "--splits", "train", cwd=tmp_path)
    assert "already there, 1024 trajectories" in elsewhere(system, *words, "--splits", "train", cwd=tmp_path)


def test_a_run_is_trained_resumed_probed_and_reported(tmp_path: Path, two_rooms: Path) -> None:
    run = tmp_path / "run"
    words = ("--data", two_rooms, "--steps", 6, "--data.batch-size", 8, "--checkpoint-minutes", 0)
    commands = (
        ("-m", "jepa_fast.train", "--preset", "gated_features", *words, "--out", run),
        ("-m", "jepa_fast.train", "--resume", run),
        ("-m", "jepa_fast.evaluate", run, "--no-floor"),
        ("-m", "jepa_fast.report", run),
        ("-m", "jepa_fast.doctor", "--data", two_rooms),
    )
    chain = (word for command in commands for word in (*command, "--then"))
    # The last of them, doctor, ends with 1 where the extension is not built.
    said = elsewhere("windows", *chain, cwd=tmp_path, ends_with=(0, 1))
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


def test_a_file_is_held_once(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT) for _ in range(2))
    assert try_lock_file(first) is True
    assert try_lock_file(second) is False
    os.close(first)
    assert try_lock_file(second) is True
    os.close(second)


def test_limits_are_numbers() -> None:
    assert available_cores() >= 1
    soft, hard = open_file_limits()
    assert 0 < soft <= hard

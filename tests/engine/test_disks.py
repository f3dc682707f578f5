"""A disk that takes no more, a folder that became read-only: one clear line, and the last checkpoint is as it was."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest

from jepa_fast import cli, train
from jepa_fast.config import JEPAConfig, LoopOptions, Recipe, RunConfig
from jepa_fast.engine.checkpoint import checkpoint_folder, load_checkpoint
from jepa_fast.engine.loop import training
from jepa_fast.errors import RunError
from jepa_fast.runs import create_run

pytestmark = pytest.mark.linux
SMALL = JEPAConfig(channels=4, blocks=1, dim=16)


@pytest.fixture
def config(two_rooms):
    return RunConfig(
        preset="test", recipe=Recipe(model=SMALL), seed=3, steps=12, batch_size=8, amp="off", compile=False,
        device="cpu", data=str(two_rooms), loader="host", kernels="reference", sparse=True,
    )  # fmt: skip


@contextlib.contextmanager
def full(folder):
    """No file may grow beyond 20 kB."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def read_only(folder):
    """Nothing in `folder` may be written; root, who ignores permissions, is shown a read-only mount."""
    if os.geteuid() != 0:
        os.chmod(folder, 0o500)
        try:
            yield
        finally:
            os.chmod(folder, 0o700)
        return
    if subprocess.run(["mount", "--bind", folder, folder], capture_output=True, check=False).returncode != 0:
        pytest.skip("root, but not allowed to mount")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", folder], capture_output=True, check=True)
        yield
    finally:
        subprocess.run(["umount", folder], capture_output=True, check=True)


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [(full, "File too large|No space left"), (read_only, "Read-only file system|Permission denied")],
)
def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_the_one_before_stays(tmp_path, config, trouble, reason):
    folder = tmp_path / "run"
    create_run(folder, config)
    steps = training(config, folder, LoopOptions(checkpoint_minutes=0))
    for progress in steps:
        if progress.done == 4:
            break
    with trouble(checkpoint_folder(folder)), pytest.raises(RunError) as stopped:
        next(steps)
    name = re.escape(str(checkpoint_folder(folder) / "step-000000005"))
    assert re.match(rf"{name}\S*: ({reason}); earlier checkpoints are untouched", str(stopped.value))
    assert f"go on with --resume {folder}" in str(stopped.value)
    names = sorted(path.name for path in checkpoint_folder(folder).iterdir())
    assert names == ["step-000000003.pt", "step-000000004.pt"]
    assert load_checkpoint(folder)["step"] == 4
    assert list(training(config, folder, LoopOptions(resume=True)))[-1].done == config.steps


def test_a_disk_that_is_full_ends_the_command_with_one_line(tmp_path, two_rooms, monkeypatch, capsys):
    """A file system of 2 MB, on which one checkpoint of the default model does not fit."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("not allowed to mount a small file system")
    try:
        words = ["--data", two_rooms, "--data.batch-size", 4, "--steps", 2, "--out", disk / "run"]
        monkeypatch.setattr(sys, "argv", ["train", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            cli.run(train.main, train.Arguments, "train")
        assert stopped.value.code == 1
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert "No space left on device; earlier checkpoints are untouched" in line
        assert list(checkpoint_folder(disk / "run").iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], capture_output=True, check=True)


def test_a_run_folder_that_is_read_only_is_named_when_a_run_goes_on(tmp_path, config, monkeypatch, capsys):
    folder = tmp_path / "run"
    create_run(folder, replace(config, steps=2))
    for _ in training(replace(config, steps=2), folder, LoopOptions()):
        pass
    monkeypatch.setattr(sys, "argv", ["train", "--resume", str(folder)])
    with read_only(folder), pytest.raises(SystemExit) as stopped:
        cli.run(train.main, train.Arguments, "train")
    assert stopped.value.code == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert str(folder) in line
    assert load_checkpoint(folder)["step"] == 2

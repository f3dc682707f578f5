"""Commands meet bad input with one line that names what and where, status 2, and nothing lost."""

import json
import mmap
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from jepa_fast import cli, evaluate, generate, train
from jepa_fast.data.manifest import MANIFEST_NAME
from jepa_fast.errors import InputError, RunError

COMMANDS = {
    "train": (train.main, train.Arguments),
    "evaluate": (evaluate.main, evaluate.Arguments),
    "generate": (generate.main, generate.GenerateArguments),
}


def fails(capsys, monkeypatch, command, *flags):
    """Run a command that must fail as bad input; returns its one line."""
    main, arguments = COMMANDS[command]
    monkeypatch.setattr(sys, "argv", [command, *map(str, flags)])
    with pytest.raises(SystemExit) as stopped:
        cli.run(main, arguments, command)
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stopped.value.code == 2
    assert len(error) == 1
    return error[0]


@pytest.fixture
def data(tmp_path, two_rooms):
    """A data folder of its own to damage, with the training split."""
    shutil.copytree(two_rooms / "train", tmp_path / "data" / "train")
    return tmp_path / "data"


def snapshot(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def truncate(split):
    path = split / "agent.pixels-00000.npy"
    os.truncate(path, path.stat().st_size - 1)


def append(split):
    with (split / "actions-00000.npy").open("ab") as file:
        file.write(b"\0")


def flip(split):
    path = split / "wall.pixels-00000.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def other_version(split):
    path = split / MANIFEST_NAME
    path.write_text(path.read_text().replace('"version": 2', '"version": 3'))


def rewrite(split, name, change):
    path = split / name
    array = np.load(path)
    np.save(path, change(array))


def poison(array):
    array[7, 3, 1] = np.nan
    return array


FAULTS = {
    "truncated shard": (truncate, "agent.pixels-00000.npy"),
    "trailing garbage": (append, "actions-00000.npy"),
    "other schema version": (other_version, "manifest.json"),
    "missing shard": (lambda split: (split / "agent.corner-00000.npy").unlink(), "agent.corner-00000.npy"),
    "wrong dtype": (lambda split: rewrite(split, "actions-00000.npy", np.float64), "actions-00000.npy"),
    "wrong shape": (
        lambda split: rewrite(split, "wall.pixels-00000.npy", lambda a: a[..., :-1]),
        "wall.pixels-00000.npy",
    ),
    "manifest cut short": (lambda split: os.truncate(split / MANIFEST_NAME, 100), "manifest.json"),
    "NaN action": (lambda split: rewrite(split, "actions-00000.npy", poison), "trajectory 7, step 3"),
    "flipped byte": (flip, "wall.pixels-00000.npy"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_data_is_named_and_left_as_it_is(tmp_path, data, capsys, monkeypatch, fault):
    damage, named = FAULTS[fault]
    damage(data / "train")
    before = snapshot(data)
    flags = ["--data", data, "--out", tmp_path / "run", "--data.batch-size", 8, "--steps", 6]
    verify = ["--data.verify"] if fault == "flipped byte" else []
    assert named in fails(capsys, monkeypatch, "train", *flags, *verify)
    assert snapshot(data) == before


def test_a_flipped_byte_is_found_before_the_run_folder_is_made(tmp_path, data, capsys, monkeypatch):
    flip(data / "train")
    fails(
        capsys, monkeypatch, "train", "--data", data, "--out", tmp_path / "run", "--data.batch-size", 8,
        "--data.verify",
    )  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "flags", "named"),
    [
        ("train", ["--data", "nowhere"], "nowhere/train/manifest.json"),
        ("train", ["--preset", "best"], "--preset: got 'best'"),
        ("train", ["--resume", "nowhere"], "nowhere/config.json"),
        ("train", ["--device", "cuda"], "--device: got 'cuda'"),
        ("evaluate", ["nowhere"], "nowhere/config.json"),
        pytest.param(
            "generate", ["--out", "/proc/data", "--trajectories", "64"], "/proc/data", marks=pytest.mark.linux
        ),
        ("generate", ["--out", "data", "--splits", "test"], "splits: got 'test'"),
        ("generate", ["--out", "data", "--trajectories", "0"], "trajectories: got 0"),
    ],
)
def test_bad_flags_are_named(tmp_path, two_rooms, capsys, monkeypatch, command, flags, named):
    if flags[-1] == "cuda" and os.path.exists("/dev/nvidia0"):
        flags = ["--preset", "best"]
        named = "--preset"
    monkeypatch.chdir(tmp_path)
    if command == "train" and "--data" not in flags:
        flags = [*flags, "--data", two_rooms]
    assert named in fails(capsys, monkeypatch, command, *flags)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.linux
def test_an_unwritable_run_folder_is_named(tmp_path, two_rooms, capsys, monkeypatch):
    error = fails(capsys, monkeypatch, "train", "--data", two_rooms, "--data.batch-size", 8, "--out", "/proc/run")
    assert "--out: /proc/run cannot be written" in error


@dataclass(frozen=True)
class Nothing:
    pass


@pytest.mark.parametrize(
    ("raised", "status", "line"),
    [
        (InputError("x: got 1,\n expected 2"), 2, "error: x: got 1, expected 2\n"),
        (RunError("step 3"), 1, "error: step 3\n"),
        (OSError(28, "No space left on device", "/data"), 2, "error: No space left on device: /data\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_each_kind_of_failure_has_its_status_and_its_line(capsys, monkeypatch, raised, status, line):
    def main(_):
        raise raised

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as stopped:
        cli.run(main, Nothing, "test")
    assert stopped.value.code == status
    assert capsys.readouterr().err == line


def test_a_bug_keeps_its_traceback(monkeypatch):
    def main(_):
        raise ValueError("a bug of ours")

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(ValueError, match="a bug of ours"):
        cli.run(main, Nothing, "test")


def test_train_without_data_generates_the_default_set_and_says_so(tmp_path, monkeypatch, caplog):
    """The real command, with the set made small; a second run finds it and does not generate again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "DEFAULT_TRAJECTORIES", 64)
    arguments = train.Arguments(steps=1, data=train.DataArguments(batch_size=4))
    with caplog.at_level("INFO"):
        train.main(arguments)
    assert "no --data: using data/two_rooms, 64 generated trajectories" in caplog.text
    manifest = tmp_path / "data" / "two_rooms" / "train" / MANIFEST_NAME
    assert json.loads(manifest.read_text())["trajectories"] == 64
    before = manifest.stat().st_mtime_ns
    train.main(train.Arguments(steps=1, out=tmp_path / "again", data=train.DataArguments(batch_size=4)))
    assert manifest.stat().st_mtime_ns == before


def test_python_m_runs_the_command_and_help_names_every_flag():
    done = subprocess.run(
        [sys.executable, "-m", "jepa_fast.train", "--help"], capture_output=True, text=True, check=True
    )
    for flag in (
        "--preset", "--amp", "--compile", "--device", "--steps", "--epochs", "--out", "--resume", "--data",
        "--data.loader", "--data.batch-size", "--kernels", "--seed", "--encoder.sparse", "--capture",
        "--on-collapse", "--profile", "--profile-window",
    ):  # fmt: skip
        assert flag in done.stdout


@pytest.mark.linux
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left alone")
@pytest.mark.parametrize("started", ["cli.run(main, Arguments, '')", "main(Arguments())"])
def test_a_command_keeps_freed_memory(started):
    """Ten tensors of 64 MB, one after the other: a command needs no fresh pages for them, another process for each."""
    program = f"""
import resource, torch
from dataclasses import dataclass
from jepa_fast import cli

@dataclass(frozen=True)
class Arguments: pass

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def main(arguments):
    for _ in range(3):
        torch.ones(2**24)
    before = faults()
    for _ in range(10):
        torch.ones(2**24)
    print(faults() - before)

{started}
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    is_few = int(done.stdout) < 2**26 // mmap.PAGESIZE // 10
    assert is_few == started.startswith("cli")


def test_auto_says_which_device_it_takes_and_why(monkeypatch):
    assert cli.explain_device("cpu") == "cpu, as asked for"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert cli.explain_device("auto") == "cpu, for torch sees no CUDA device"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert "Apple's GPU is left out: it has no float64" in cli.explain_device("auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cli.explain_device("auto") == "cuda, which torch sees"

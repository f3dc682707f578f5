import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa_fast.data.batches import expand_pixels
from jepa_fast.data.host import gather
from jepa_fast.data.shards import open_split
from jepa_fast.data.two_rooms import SPLITS, render_dots, render_walls, simulate
from jepa_fast.generate import generate
from tests.forked import finished

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return finished("-m", "jepa_fast.generate", *arguments)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_split_is_the_simulators_and_the_same_for_any_number_of_workers(tmp_path):
    many = tmp_path / "many"
    done = run("--out", str(many), "--trajectories", "130", "--seed", "3", "--workers", "2")
    assert done.returncode == 0, done.stderr
    generate(tmp_path / "one", trajectories=130, seed=3, workers=1)
    assert contents(many) == contents(tmp_path / "one")
    for name, kind in SPLITS.items():
        split = open_split(many / name, verify=True)
        assert split.count == 130
        rows = np.array([0, 1, 63, 64, 127, 128, 129])
        batch = gather(split, rows)
        truth = simulate(name, 0, split.count, seed=3)
        np.testing.assert_array_equal(batch.actions, truth.actions[rows])
        np.testing.assert_array_equal(split.targets("locations", rows), truth.locations[rows])
        pixels = expand_pixels(batch, split.spec)
        np.testing.assert_array_equal(pixels[:, :, 0], render_dots(truth.locations[rows]))
        walls = render_walls(truth.wall_x[rows], truth.door_y[rows])
        assert torch.equal(pixels[:, kind.frames - 1, 1], torch.from_numpy(walls))


@pytest.mark.parametrize("encoding", ["static", "dense"])
def test_full_frames_hold_the_same_images_as_windows(tmp_path, encoding):
    generate(tmp_path / "windows", 200, ("probe_wall/val",), workers=1)
    generate(tmp_path / "frames", 200, ("probe_wall/val",), workers=1, encoding=encoding)
    windows, frames = (open_split(tmp_path / name / "probe_wall/val") for name in ("windows", "frames"))
    assert [split.spec.groups[0].window for split in (windows, frames)] == [(10, 10), None]
    assert frames.spec.groups[1].codec == encoding
    a, b = gather(windows, np.arange(200)), gather(frames, np.arange(200))
    assert torch.equal(expand_pixels(a, windows.spec), expand_pixels(b, frames.spec))


def test_running_again_keeps_what_is_there(tmp_path):
    arguments = ("--out", str(tmp_path), "--trajectories", "70", "--splits", "train", "probe_normal/val")
    assert run(*arguments).returncode == 0
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert set(tmp_path.rglob("manifest.json")) == {
        tmp_path / "train/manifest.json",
        tmp_path / "probe_normal/val/manifest.json",
    }
    again = run(*arguments)
    assert again.returncode == 0
    assert again.stderr == "train: already there, 70 trajectories\nprobe_normal/val: already there, 70 trajectories\n"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written
    other = run(*arguments, "--seed", "1")
    assert other.returncode == 2
    assert other.stderr == (
        f"error: {tmp_path}/train/manifest.json: holds another finished split: source.seed: found 0, expected 1; "
        "choose another folder or delete this one\n"
    )


@pytest.mark.linux
def test_an_interruption_is_quiet_and_leaves_no_process(tmp_path):
    command = [sys.executable, "-m", "jepa_fast.generate", "--out", str(tmp_path), "--workers", "2"]
    # What a shell without job control starts in the background ignores Ctrl-C, and hands that on.
    default = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    running = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=default
    )
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children")
    deadline = time.monotonic() + 300
    # The resource tracker and both workers, which are still starting: the moment they are easiest to hurt.
    while len(started := children.read_text().split()) < 3 and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=300)
    assert (running.returncode, errors) == (130, "")
    assert len(started) == 3
    while alive := [child for child in started if Path(f"/proc/{child}").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.01)
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".npy", ".json")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--splits", "train", "nowhere"], "error: splits: got 'nowhere', expected one of train, probe_normal/train, "),
        (["--trajectories", "0"], "error: trajectories: got 0, expected at least 1\n"),
        (["--workers", "0"], "error: workers: got 0, expected at least 1\n"),
        (["--seed", "-1"], "error: seed: got -1, expected an integer in [0, 2^64)\n"),
        (["--out", "{taken}"], "error: Not a directory: {taken}/train\n"),
        pytest.param(
            ["--out", "/proc/nowhere"], "error: No such file or directory: /proc/nowhere", marks=pytest.mark.linux
        ),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(tmp_path, arguments, message):
    taken = tmp_path / "taken"
    taken.write_text("a file")
    filled = [argument.format(taken=taken) for argument in arguments]
    done = run("--out", str(tmp_path / "out"), *filled)
    assert done.returncode == 2
    assert done.stderr.startswith(message.format(taken=taken))
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.rglob("*.npy")) == []


def test_the_command_does_not_need_torch():
    check = "import sys, jepa_fast.generate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


def test_help_tells_every_argument():
    done = run("--help")
    assert done.returncode == 0
    for argument in ("--out", "--trajectories", "--splits", "--seed", "--encoding", "--workers"):
        assert argument in done.stdout

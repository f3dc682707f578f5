"""Two processes train what one trains; a run goes on with another number of them, and ends when one of them dies."""

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import jepa_fast
from jepa_fast.config import JEPAConfig, LoopOptions, Recipe, RunConfig, Stage, VICRegConfig
from jepa_fast.engine.checkpoint import checkpoint_folder, load_checkpoint
from jepa_fast.engine.loop import train
from jepa_fast.engine.record import read_metrics
from jepa_fast.runs import create_run
from tests.forked import Command

ROOT = Path(jepa_fast.__file__).parents[1]
SMALL = JEPAConfig(channels=4, blocks=1, dim=16, dropout=0.3)
STEPS, EARLY = 20, 13
RUNS = {
    "default": {},
    "each, both, ema": {
        "recipe": Recipe(model=SMALL, objective=VICRegConfig(sides="both", steps="each", targets="ema")),
        "kernels": "fused",
    },
    "staged": {
        "recipe": Recipe(
            model=SMALL,
            stages=(
                Stage(1),
                Stage(1, {"variance": 5.0}, ("encoder.agent",)),
            ),
        ),
    },
}
TOLERANCE = 1e-5


def configuration(data, **changes):
    stages = (Stage(1), Stage(1, {"invariance": 30.0}))
    config = RunConfig(
        preset="test", recipe=Recipe(model=SMALL, stages=stages), seed=3, steps=STEPS, batch_size=8, amp="off",
        compile=False, device="cpu", data=str(data), loader="host", kernels="reference", sparse=True,
    )  # fmt: skip
    return replace(config, **changes)


def environment(**names):
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **names}


@pytest.fixture(scope="module")
def folders(two_rooms, tmp_path_factory):
    """Run folders that two processes trained together until step EARLY."""
    folder = tmp_path_factory.mktemp("two processes")
    for name, changes in RUNS.items():
        create_run(folder / name, configuration(two_rooms, **changes))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    program = Path(__file__).with_name("train_rank.py")
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        Command(program, EARLY, *(folder / name for name in RUNS), RANK=str(rank), LOCAL_RANK=str(rank), **meeting)
        for rank in range(2)
    ]
    logs = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(logs)
    return {name: folder / name for name in RUNS}, logs


def distance(ours, theirs):
    """Of weights, relative to their size."""
    ours, theirs = (torch.cat([value.flatten() for value in weights.values()]) for weights in (ours, theirs))
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_then_one_train_the_weights_of_one(two_rooms, folders, tmp_path, name):
    """20 steps over a stage's end and three epochs, dropout on: the last 7 by one process."""
    folder = folders[0][name]
    assert load_checkpoint(folder)["step"] == EARLY
    config = configuration(two_rooms, **RUNS[name])
    assert train(config, folder, LoopOptions(resume=True)) == STEPS
    create_run(tmp_path / "one", config)
    train(config, tmp_path / "one")
    ours, expected = (load_checkpoint(path)["model"] for path in (folder, tmp_path / "one"))
    assert distance(ours, expected) < TOLERANCE
    stages = [{line["step"]: line["stage"] for line in read_metrics(path)} for path in (folder, tmp_path / "one")]
    assert stages[0].items() >= stages[1].items()
    assert read_metrics(folder)[0]["step"] == 10
    total = read_metrics(folder)[0]["total"]
    assert total == pytest.approx(read_metrics(tmp_path / "one")[0]["total"], rel=TOLERANCE)


def test_one_process_logs(folders):
    leader, other = folders[1]
    assert leader.count("2 processes, gradients over gloo") == 1
    assert other == ""


@pytest.mark.linux
def test_a_process_that_dies_ends_the_run_with_a_clear_error_and_one_process_goes_on(tmp_path, two_rooms):
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    flags = ["jepa_fast.train", "--data", str(two_rooms), "--data.batch-size", "4", "--preset", "demo"]
    flags += ["--steps", "100000", "--out", str(folder), "--checkpoint-minutes", "0"]
    job = subprocess.Popen([*words, *flags], cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while not list(checkpoint_folder(folder).glob("step-*.pt")):
        assert time.monotonic() < deadline, "no checkpoint appeared"
        assert job.poll() is None
        time.sleep(0.05)
    victims = [child for child in children(job.pid) if b"RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes()]
    os.kill(victims[0], signal.SIGKILL)
    _, error = job.communicate(timeout=300)
    assert job.returncode != 0
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert "rank 0 of 2: another process of the run is gone" in line
    assert "--resume goes on from the last checkpoint" in line

    step = load_checkpoint(folder)["step"]
    config = replace(RunConfig.load(folder / "config.json"), steps=step + 2)
    assert train(config, folder, LoopOptions(resume=True)) == step + 2


def children(parent):
    return [int(child) for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]

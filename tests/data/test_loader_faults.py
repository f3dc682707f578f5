"""Loaders in trouble: abandoned, run for long, fed with bad data, asked for what is not there."""

import gc
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from jepa_fast.data import loaders
from jepa_fast.data.loaders import choose_loader, open_loader
from jepa_fast.data.packing import pack
from jepa_fast.data.resident import resident_bytes
from jepa_fast.data.sampler import Sampler, evaluation_order
from jepa_fast.data.shards import open_split
from jepa_fast.errors import InputError
from tests.forked import finished

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
WITHOUT = importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None
LOADERS = [
    "host",
    "resident",
    pytest.param("dali", marks=pytest.mark.skipif(WITHOUT, reason="DALI is not installed")),
]


@pytest.fixture
def split(tmp_path, draw_source):
    pack(draw_source(), tmp_path, shard_rows=15)
    return open_split(tmp_path)


def threads_and_files():
    """Threads, open files and child processes of this process."""
    children = sum(len(path.read_text().split()) for path in Path("/proc/self/task").glob("*/children"))
    return len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd")), children


def assert_back_at(before):
    """A thread that was joined is gone for the system an instant later."""
    deadline = time.monotonic() + 300
    while threads_and_files() != before:
        assert time.monotonic() < deadline, (threads_and_files(), before)
        time.sleep(0.001)


@pytest.mark.linux
@pytest.mark.parametrize("name", LOADERS)
def test_an_abandoned_epoch_leaves_no_thread_process_or_file(split, name):
    loader = open_loader(name, split, CPU)
    sampler = Sampler(40, 4, seed=0)
    # The first pipeline loads libraries.
    list(loader.batches(sampler.steps(0, 3)))
    gc.collect()
    before = threads_and_files()
    for consumed in (0, 1, 2, 5):
        batches = loader.batches(sampler.steps(0, 10))
        for _ in range(consumed):
            next(batches)
        batches.close()
        assert_back_at(before)
        for number, _ in enumerate(loader.batches(sampler.steps(0, 10))):
            if number == consumed:
                break
        assert_back_at(before)
    # What was abandoned starts anew, and two may run at once.
    first, second = loader.batches(sampler.steps(0, 10)), loader.batches(sampler.steps(5, 10))
    for number in range(5):
        assert next(first).indices.tolist() == list(sampler.batches(0))[number].tolist()
        assert next(second).indices.tolist() == list(sampler.batches(0))[5 + number].tolist()
    first.close()
    second.close()
    assert_back_at(before)


@pytest.mark.parametrize("name", LOADERS)
def test_batches_that_the_collector_finds_wait_for_nothing(tmp_path, draw_source, name):
    """It runs in any thread and under any lock, one that the loader's thread waits for as well."""
    pack(draw_source(), tmp_path / "train")
    done = finished("-m", "tests.collecting", tmp_path, name, tmp_path)
    assert done.returncode == 0, done.stderr


EPOCHS = """
import gc, sys
from pathlib import Path
import torch
from jepa_fast.data.loaders import open_loader
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import open_split

def kilobytes():
    gc.collect()
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])

split = open_split(Path(sys.argv[1]))
loader, sampler = open_loader(sys.argv[2], split, torch.device("cpu")), Sampler(split.count, 4, seed=0)
for epoch in range(200):
    # Half of the epochs are whole, half are left early.
    for number, _ in enumerate(loader.batches(sampler.batches(epoch))):
        if epoch % 2 and number == 3:
            break
    if epoch == 50:
        before = kilobytes()
print(kilobytes() - before)
"""


@pytest.mark.linux
@pytest.mark.parametrize("name", LOADERS)
def test_two_hundred_epochs_do_not_grow(split, name):
    done = finished("-c", EPOCHS, split.folder, name, check=True)
    # The last 150 of them; one ring's worth of memory leaked in each would be 50 MB.
    assert int(done.stdout) < 2_000


UNCLOSED = """
import sys
from pathlib import Path
import torch
from jepa_fast.data.loaders import open_loader
from jepa_fast.data.sampler import evaluation_order
from jepa_fast.data.shards import open_split
batches = open_loader(sys.argv[2], open_split(Path(sys.argv[1])), torch.device("cpu")).batches(evaluation_order(40, 2))
next(batches)
if sys.argv[3] == "raise":
    raise RuntimeError("the consumer fails")
"""


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("ending", ["return", "raise"])
def test_a_process_ends_although_nobody_closed_the_batches(split, name, ending):
    command = [sys.executable, "-c", UNCLOSED, str(split.folder), name, ending]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == (0 if ending == "return" else 1)
    assert done.stderr.count("Error") == (0 if ending == "return" else 1)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("indices", [[-1, 3], [3, 40], [4, 3]])
def test_indices_out_of_range_or_order_are_refused(split, name, indices):
    with pytest.raises(IndexError, match=r"expected ascending values in \[0, 40\)"):
        list(open_loader(name, split, CPU).batches([np.array(indices)]))


@pytest.mark.parametrize("name", LOADERS)
def test_an_action_that_is_not_finite_is_named(split, name):
    path = split.folder / "actions-00001.npy"
    actions = np.load(path)
    actions[7, 2, 1] = np.nan
    np.save(path, actions)
    spoilt = open_split(split.folder)
    with pytest.raises(InputError, match="trajectory 22, step 2: its action is not finite"):
        list(open_loader(name, spoilt, CPU).batches(evaluation_order(40, 10)))


def test_on_a_cpu_auto_is_host_and_the_log_says_why(split, caplog):
    with caplog.at_level("INFO"):
        open_loader("auto", split, CPU)
    size = resident_bytes(split) / 1e9
    assert caplog.messages == [
        f"loader: host (auto: on a cpu the system's file cache already holds the {size:.2f} GB in memory)"
    ]


@pytest.mark.parametrize(("free", "name"), [(2.0, "resident"), (1.99, "host")])
def test_on_a_gpu_auto_is_resident_where_half_of_the_free_memory_is_enough(split, monkeypatch, free, name):
    needed = resident_bytes(split)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (int(free * needed), 9 * needed))
    choice = choose_loader("auto", split, torch.device("cuda", 0))
    assert choice.name == name
    assert "GB free on cuda:0" in choice.reason


def test_the_size_of_a_resident_split_is_that_of_its_batches(split):
    loader = open_loader("resident", split, CPU)
    assert resident_bytes(split) == sum(tensor.nbytes for tensor in loader.tensors.values())


def test_a_split_that_does_not_fit_is_refused_by_size(split, monkeypatch):
    monkeypatch.setattr(loaders, "_free_bytes", lambda device: 5_000)
    with pytest.raises(InputError, match=r"--data\.loader: got 'resident for 0\.00 GB', expected a split of at most"):
        open_loader("resident", split, CPU)


WITHOUT_DALI = """
import sys
from pathlib import Path
sys.modules["nvidia.dali"] = None
from jepa_fast import cli
from jepa_fast.train import Arguments, main
cli.run(main, Arguments, "")
"""


def test_without_dali_asking_for_it_is_one_line_before_anything_is_written(tmp_path, two_rooms):
    flags = ["--data", two_rooms, "--data.loader", "dali", "--data.batch-size", 8]
    done = finished("-c", WITHOUT_DALI, *flags, "--out", tmp_path / "run")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "error: --data.loader: got 'dali', expected auto, resident or host: DALI does not load"
    )
    assert "pip install --constraint constraints.txt 'jepa_fast[dali]'" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.posix
def test_reading_a_file_that_was_cut_while_it_was_open_is_not_survived_silently(tmp_path, draw_source):
    """Why a finished split is never written in place: the system ends the process."""
    pack(draw_source(), tmp_path)
    code = (
        "import os, sys, numpy as np; from pathlib import Path\n"
        "from jepa_fast.data.host import gather; from jepa_fast.data.shards import open_split\n"
        "split = open_split(Path(sys.argv[1]))\n"
        "os.truncate(Path(sys.argv[1]) / 'wall.pixels-00000.npy', 128)\n"
        "gather(split, np.arange(40))\n"
    )
    done = finished("-c", code, tmp_path)
    assert done.returncode == -signal.SIGBUS


FULL_DISK = """
import os, sys
from pathlib import Path
from jepa_fast.data import packing, writing
from jepa_fast.data.two_rooms.source import TwoRoomsSource
from jepa_fast import cli
from jepa_fast.verify import Arguments
writing.SPARE_BYTES = 0
folder = Path(sys.argv[1])

class Filler(TwoRoomsSource):
    def chunk(self, start, stop):
        if start >= 1024 and not (folder / "neighbour").exists():
            # Somebody else fills the disk after the packer has looked how much is free.
            with (folder / "neighbour").open("wb", buffering=0) as file:
                while True:
                    try:
                        file.write(bytes(4096))
                    except OSError:
                        break
        return super().chunk(start, stop)

def main(_):
    packing.pack(Filler("train", 2048, 0), folder / "train", shard_rows=512)

cli.run(main, Arguments, "")
"""


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with 16 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.linux
def test_a_disk_that_runs_full_is_one_line_and_finished_shards_are_kept(small_disk):
    done = finished("-c", FULL_DISK, small_disk)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith(f"error: No space left on device: {small_disk}/train/")
    names = {path.name for path in (small_disk / "train").iterdir()}
    assert {"shard-00000.json", "shard-00001.json"} <= names
    assert not any(name.endswith(".tmp") for name in names)
    assert "manifest.json" not in names
    with pytest.raises(InputError, match="packing did not finish"):
        open_split(small_disk / "train")

    (small_disk / "neighbour").unlink()
    kept = {name: (small_disk / "train" / name).stat().st_mtime_ns for name in names if "0000.npy" in name}
    code = FULL_DISK.replace("start >= 1024", "False")
    done = finished("-c", code, small_disk)
    assert done.returncode == 0, done.stderr
    assert {name: (small_disk / "train" / name).stat().st_mtime_ns for name in kept} == kept
    assert open_split(small_disk / "train", verify=True).count == 2048

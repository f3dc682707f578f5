"""Loaders to compare, each in a process of its own: the usual PyTorch way over one .npy file, and ours over shards.

    python -m bench.loader_contenders FOLDER CANDIDATE ENCODING

answers each line on standard input, a number of batches, with the seconds that they took, and the empty line with what
memory it has come to hold. A process of its own makes that memory, and the allocator's settings, the candidate's alone.
"""

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from jepa_fast.data.host import HostLoader
from jepa_fast.data.loaders import open_loader
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import open_split

BATCH = 128
CPU = torch.device("cpu")
# glibc gives blocks beyond a threshold back to the system at once, and takes them from it anew, page by page.
TUNED_MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**28)}


class Items(Dataset):
    """One trajectory at a time: its frames as float, its actions."""

    def __init__(self, folder: Path, kind: str):
        # Mapped copy-on-write, which costs a reader nothing and spares torch's warning about memory it may not write.
        self.states = np.load(folder / f"states-{kind}.npy", mmap_mode="c")
        self.actions = np.load(folder / "actions.npy", mmap_mode="c")

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        states = torch.from_numpy(self.states[index])
        # Bytes stay bytes: whoever stores them converts them on the device.
        states = states if states.dtype == torch.uint8 else states.float()
        return states, torch.from_numpy(self.actions[index]).float()


def peers(folder: Path, kind: str, workers: int) -> Iterator[Any]:
    """Batches of torch's DataLoader without end; an iterator of each epoch, workers kept."""
    loader = DataLoader(
        Items(folder, kind),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def ours(folder: Path, name: str, encoding: str) -> Iterator[Any]:
    """Batches of one of our loaders without end."""
    split = open_split(folder / encoding)
    sampler = Sampler(split.count, BATCH, seed=0)
    yield from open_loader(name, split, CPU).batches(sampler.steps(0, 2**60))


def copy(folder: Path, encoding: str) -> Iterator[Any]:
    """What one thread can copy: whole batches, block after block out of the same memory, into as many slots as ours."""
    split = open_split(folder / encoding)
    batch = next(HostLoader(split).batches([np.arange(BATCH)]))
    size = sum(field.nbytes for field in batch if field is not None)
    source = np.concatenate([np.asarray(array).reshape(-1).view(np.uint8) for array in split.arrays["wall"]])
    blocks = [source[low : low + size] for low in range(0, len(source) - size + 1, size)]
    slots = [np.empty(size, np.uint8) for _ in range(4)]
    for number in count():
        np.copyto(slots[number % 4], blocks[number % len(blocks)])
        yield slots[number % 4]


def memory_mb() -> dict[str, float]:
    """Memory of this process and its workers: private (no file's, nobody else's) and resident (mapped files, too)."""
    workers = [word for path in Path("/proc/self/task").glob("*/children") for word in path.read_text().split()]
    memory = {"private": 0.0, "resident": 0.0}
    for process in ["self", *workers]:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        memory["private"] += int(fields["RssAnon"].split()[0]) / 1024
        memory["resident"] += int(fields["VmRSS"].split()[0]) / 1024
    return memory


class Peak(threading.Thread):
    """The most memory that was seen, looked at every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = memory_mb()

    def run(self) -> None:
        while True:
            self.look()
            time.sleep(0.02)

    def look(self) -> None:
        for name, value in memory_mb().items():
            self.most[name] = max(self.most[name], value)


CANDIDATES: dict[str, Callable[[Path, str], Iterator[Any]]] = {
    "DataLoader, float32": lambda folder, _: peers(folder, "float32", 0),
    "DataLoader, float32, 2 workers": lambda folder, _: peers(folder, "float32", 2),
    "DataLoader, float32, tuned malloc": lambda folder, _: peers(folder, "float32", 0),
    "DataLoader, uint8": lambda folder, _: peers(folder, "uint8", 0),
    "DataLoader, uint8, 2 workers": lambda folder, _: peers(folder, "uint8", 2),
    "DataLoader, uint8, tuned malloc": lambda folder, _: peers(folder, "uint8", 0),
    "ours, host": lambda folder, encoding: ours(folder, "host", encoding),
    "ours, resident": lambda folder, encoding: ours(folder, "resident", encoding),
    "ours, dali": lambda folder, encoding: ours(folder, "dali", encoding),
    "memcpy": copy,
}


def serve(folder: Path, candidate: str, encoding: str) -> None:
    before = memory_mb()
    batches = CANDIDATES[candidate](folder, encoding)
    first = next(batches)
    tensors = [first] if isinstance(first, np.ndarray) else [field for field in first if field is not None]
    print(json.dumps({"batch_bytes": sum(field.nbytes for field in tensors)}), flush=True)
    for line in sys.stdin:
        if not line.strip():
            break
        start = time.perf_counter()
        for _ in range(int(line)):
            next(batches)
        print(time.perf_counter() - start, flush=True)
    peak = Peak()
    peak.start()
    for _ in range(16):
        next(batches)
    peak.look()
    print(json.dumps({f"{name}_mb": round(most - before[name]) for name, most in peak.most.items()}), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), sys.argv[2], sys.argv[3])

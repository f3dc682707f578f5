"""A window set of a million trajectories: how long it takes to open, and what memory it takes to stream.

    python -m research.stream_million --out DIR

writes 6.2 GB to DIR, unless they are there, and prints one line of JSON. Real files, each of its own: 40,000
trajectories are simulated and packed, and their shards copied under the names of later ones; the contents repeat.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from jepa_fast import cli
from jepa_fast.config import require
from jepa_fast.data.manifest import MANIFEST_NAME, Manifest, Shard
from jepa_fast.data.packing import pack
from jepa_fast.data.two_rooms.source import TwoRoomsSource
from jepa_fast.data.writing import write_text
from jepa_fast.platforms import available_cores

SIMULATED = 40_000
BATCH = 128


@dataclass(frozen=True)
class Arguments:
    """Write a large set, then open and stream it in another process."""

    out: Path
    """Folder of the set; delete it afterwards."""
    copies: int = 25
    """Of the 40,000 simulated trajectories."""
    batches: int = 20_000
    """To stream, of 128 trajectories; an epoch of a million has 7,812."""
    loader: str = "host"
    """Which one streams."""


def write(folder: Path, copies: int) -> None:
    """The set of `copies` times SIMULATED trajectories."""
    first = folder / "simulated"
    pack(TwoRoomsSource("train", SIMULATED, seed=0), first, workers=available_cores(), shard_rows=SIMULATED)
    manifest = Manifest.parse((first / MANIFEST_NAME).read_bytes(), first / MANIFEST_NAME)
    shards: list[Shard] = []
    for copy in range(copies):
        files = {
            field: replace(file, name=f"{field}-{copy:05d}.npy") for field, file in manifest.shards[0].files.items()
        }
        for field, file in manifest.shards[0].files.items():
            shutil.copyfile(first / file.name, folder / files[field].name)
        shards.append(Shard(copy * SIMULATED, SIMULATED, files))
    large = replace(manifest, trajectories=copies * SIMULATED, shards=tuple(shards))
    write_text(folder / MANIFEST_NAME, large.to_json())
    shutil.rmtree(first)
    # Pages that still have to be written would count as the reader's private memory.
    os.sync()


STREAM = """
import json, sys, time
from itertools import islice
from pathlib import Path
import torch
from jepa_fast.data.loaders import open_loader
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import open_split

def memory_mb():
    fields = dict(line.split(":", 1) for line in open("/proc/self/smaps_rollup").read().splitlines()[1:])
    private = int(fields["Private_Dirty"].split()[0]) / 1024
    fields = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
    return {"private_dirty": private, "anonymous": int(fields["RssAnon"].split()[0]) / 1024,
            "resident": int(fields["VmRSS"].split()[0]) / 1024}

libraries = memory_mb()
start = time.perf_counter()
split = open_split(Path(sys.argv[1]))
open_s = time.perf_counter() - start
sampler = Sampler(split.count, 128, seed=0)
batches = open_loader(sys.argv[3], split, torch.device("cpu")).batches(sampler.steps(0, int(sys.argv[2])))
next(batches)
most = memory_mb()
seconds = 0.0
while True:
    start = time.perf_counter()
    done = sum(1 for _ in islice(batches, 1000))
    seconds += time.perf_counter() - start
    if done == 0:
        break
    most = {name: max(most[name], value) for name, value in memory_mb().items()}
print(json.dumps({
    "trajectories": split.count, "open_s": round(open_s, 3),
    "trajectories_per_s": round((int(sys.argv[2]) - 1) * 128 / seconds),
    **{f"{name}_mb": round(value) for name, value in most.items()},
    **{f"of_libraries_{name}_mb": round(value) for name, value in libraries.items()},
}))
"""


def main(arguments: Arguments) -> None:
    """Write, stream, print."""
    require(arguments.copies >= 1, "--copies", arguments.copies, "at least 1")
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not (arguments.out / MANIFEST_NAME).exists():
        began = time.perf_counter()
        write(arguments.out, arguments.copies)
        print(f"written in {time.perf_counter() - began:.0f} s", file=sys.stderr)
    command = [sys.executable, "-c", STREAM, str(arguments.out), str(arguments.batches), arguments.loader]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    cli.run(main, Arguments, "A million trajectories: opened and streamed.")

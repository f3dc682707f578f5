"""The three loaders behind one interface, and which of them a run takes.

All deliver the same Batches, bit for bit; they differ in where the rows wait and in who copies them.
"""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import torch

from jepa_fast.config import require
from jepa_fast.data.batches import Batch
from jepa_fast.data.dali import DaliLoader, require_dali
from jepa_fast.data.host import HostLoader
from jepa_fast.data.resident import ResidentLoader, resident_bytes
from jepa_fast.data.sampler import Indices
from jepa_fast.data.shards import Split

LoaderName = Literal["resident", "dali", "host"]
LoaderFlag = Literal["auto", "resident", "dali", "host"]

# auto leaves the rest of the device's free memory to the model.
AUTO_SHARE = 0.5
# Asked for by name, a resident split may take this much of what is free.
MOST_SHARE = 0.9

logger = logging.getLogger(__name__)


class Batches(Iterator[Batch], Protocol):
    """Batches in turn, until they are closed."""

    def close(self) -> None:
        """Free threads and buffers, at any batch; they have ended when it returns.

        Abandoned batches free them too, but nothing waits for that: the garbage collector may run in any thread and
        under any lock.
        """


class Loader(Protocol):
    """Turns index arrays into Batches on its device. See `Batch` for how long one is valid."""

    def batches(self, orders: Iterable[Indices]) -> Batches:
        """The batch of each of `orders` (int64, ascending), in turn; several may run at once.

        `orders` may be read ahead of the batches, in another thread.
        """


class Choice(NamedTuple):
    """A loader and why it is taken."""

    name: LoaderName
    reason: str


def choose_loader(flag: LoaderFlag, split: Split, device: torch.device) -> Choice:
    """The loader that `--data.loader` means for `split` on `device`.

    Raises:
        InputError: the one asked for by name cannot work here.
    """
    needed, free = resident_bytes(split), _free_bytes(device)
    size = f"{needed / 1e9:.2f} GB"
    if flag == "resident":
        fits = free is None or needed <= MOST_SHARE * free
        expected = "auto, dali or host" if free is None else f"a split of at most {MOST_SHARE * free / 1e9:.2f} GB"
        require(fits, "--data.loader", f"resident for {size}", f"{expected}: more is not free on {device}")
        return Choice("resident", f"asked for, {size}")
    if flag == "dali":
        require_dali()
        return Choice("dali", "asked for")
    if flag == "host":
        return Choice("host", "asked for")
    if device.type != "cuda":
        return Choice("host", f"auto: on a {device.type} the system's file cache already holds the {size} in memory")
    assert free is not None
    if needed <= AUTO_SHARE * free:
        return Choice("resident", f"auto: {size} fit into the {free / 1e9:.2f} GB free on {device}")
    return Choice("host", f"auto: {size} are more than half of the {free / 1e9:.2f} GB free on {device}")


def open_loader(flag: LoaderFlag, split: Split, device: torch.device) -> Loader:
    """The loader for `split` on `device`, as `choose_loader` says; the log tells which and why.

    Raises:
        InputError: the one asked for by name cannot work here.
    """
    name, reason = choose_loader(flag, split, device)
    logger.info("loader: %s (%s)", name, reason)
    if name == "resident":
        return ResidentLoader(split, device)
    if name == "dali":
        return DaliLoader(split, device)
    return HostLoader(split, device)


def _free_bytes(device: torch.device) -> int | None:
    """Memory that is free on `device`, or None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)

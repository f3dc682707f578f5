"""The one sampler: which trajectories form batch i of epoch e, the same for every loader and any number of ranks.

The order of an epoch is a pure function of (seed, epoch), so a run resumes in the middle of an epoch from two numbers.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa_fast.config import require
from jepa_fast.errors import InputError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Sampler:
    """Batches of one rank: equal counts on all ranks, disjoint, each trajectory at most once an epoch.

    Attributes:
        count: N, trajectories in the split, or clips of them.
        batch_size: B, trajectories per batch and rank.
        seed: of the order.
        ranks: W.
        rank: this process, in [0, W).
    """

    count: int
    batch_size: int
    seed: int
    ranks: int = 1
    rank: int = 0

    def __post_init__(self) -> None:
        require(self.batch_size >= 1, "batch size", self.batch_size, "at least 1")
        require(0 <= self.seed < 2**64, "seed", self.seed, "an integer in [0, 2^64)")
        require(0 <= self.rank < self.ranks, "rank", self.rank, f"an integer in [0, {self.ranks})")
        require(
            self.global_batch <= self.count,
            "batch size",
            self.batch_size,
            f"at most {self.count // self.ranks}: {self.count} trajectories on {self.ranks} ranks",
        )

    @property
    def global_batch(self) -> int:
        """B * W, trajectories per step over all ranks."""
        return self.batch_size * self.ranks

    @property
    def batches_per_epoch(self) -> int:
        """Batches of each rank; up to B * W - 1 trajectories, others in each epoch, are left out."""
        return self.count // self.global_batch

    def order(self, epoch: int) -> Indices:
        """Permutation int64 [N] of the trajectories: the stable order of Philox words keyed by (seed, epoch)."""
        key = np.array([self.seed, epoch], np.uint64)
        return np.argsort(np.random.Philox(key=key).random_raw(self.count), kind="stable")

    def order_hash(self, epoch: int) -> str:
        """sha256 of the epoch's order: tells whether another machine draws the same batches."""
        return hashlib.sha256(self.order(epoch).astype("<i8").tobytes()).hexdigest()

    def batches(self, epoch: int, start: int = 0) -> Iterator[Indices]:
        """Ascending indices int64 [B] of this rank's batches `start` and later of an epoch."""
        order = self.order(epoch)
        first = self.rank * self.batch_size
        for batch in range(start, self.batches_per_epoch):
            # Sorted over all ranks, then cut: row r of the global batch is the same for any number of ranks.
            rows = np.sort(order[batch * self.global_batch : (batch + 1) * self.global_batch])
            yield rows[first : first + self.batch_size]

    def steps(self, first: int, stop: int) -> Iterator[Indices]:
        """Indices of this rank's batches for steps `first` to `stop - 1`, counted over all epochs."""
        while first < stop:
            epoch, start = divmod(first, self.batches_per_epoch)
            for indices in islice(self.batches(epoch, start), stop - first):
                yield indices
                first += 1


def evaluation_order(count: int, batch_size: int) -> Iterator[Indices]:
    """All indices 0 to N - 1 in order, in batches of `batch_size`; the last one may be smaller."""
    require(batch_size >= 1, "batch size", batch_size, "at least 1")
    for first in range(0, count, batch_size):
        yield np.arange(first, min(first + batch_size, count), dtype=np.int64)


@dataclass(frozen=True)
class Position:
    """Where training stands in the data, counted in consumed batches.

    Attributes:
        epoch: of the next batch.
        batch: next global batch in that epoch: all ranks take their part of it.
        seed: of the order.
        count: N.
        global_batch: B * W; the number of ranks alone does not matter.
        fingerprint: of the split (sha256 of its manifest).
    """

    epoch: int
    batch: int
    seed: int
    count: int
    global_batch: int
    fingerprint: str

    @staticmethod
    def of(sampler: Sampler, fingerprint: str, epoch: int, batch: int) -> "Position":
        """The position before global batch `batch` of `epoch`."""
        return Position(epoch, batch, sampler.seed, sampler.count, sampler.global_batch, fingerprint)

    def check(self, sampler: Sampler, fingerprint: str) -> None:
        """Make sure that going on from here with `sampler` gives the batches an uninterrupted run would have had.

        Raises:
            InputError: naming the first field that differs.
        """
        now = Position.of(sampler, fingerprint, self.epoch, self.batch)
        for field in ("seed", "count", "global_batch", "fingerprint"):
            found, expected = getattr(now, field), getattr(self, field)
            if found != expected:
                raise InputError(f"resume: {field}: found {found!r}, expected {expected!r} as in the interrupted run")
        if not 0 <= self.batch <= sampler.batches_per_epoch or self.epoch < 0:
            raise InputError(
                f"resume: found epoch {self.epoch}, batch {self.batch}, "
                f"expected a batch in [0, {sampler.batches_per_epoch}]"
            )

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @staticmethod
    def from_json(record: dict[str, Any]) -> "Position":
        """The position that `to_json` gave.

        Raises:
            InputError: a field is missing, unknown or of another type.
        """
        fields = Position.__annotations__
        if set(record) != set(fields):
            raise InputError(f"position: found fields {sorted(record)}, expected {sorted(fields)}")
        for name, kind in fields.items():
            if type(record[name]) is not kind:
                raise InputError(f"position: {name}: found {record[name]!r}, expected a value of type {kind.__name__}")
        return Position(**record)

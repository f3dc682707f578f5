"""Command: simulate the two-room world and write it as shards.

    python -m jepa_fast.generate --out DIR

writes DIR/train and the six probing splits. Run again after an interruption, it keeps what is finished.
"""

from dataclasses import dataclass
from pathlib import Path

from jepa_fast import cli
from jepa_fast.config import require
from jepa_fast.data.manifest import Encoding
from jepa_fast.data.packing import pack
from jepa_fast.data.two_rooms import SPLITS
from jepa_fast.data.two_rooms.source import TwoRoomsSource
from jepa_fast.platforms import available_cores


@dataclass(frozen=True)
class GenerateArguments:
    """Arguments of the command.

    Attributes:
        out: folder for the splits, one folder each.
        trajectories: trajectories of the train split, and the most of every other split; by default the standard sizes.
        splits: which splits to write.
        seed: of all random streams.
        encoding: the strongest codec: windows, or whole frames with what is static once, or every frame in full.
        workers: processes; by default one for each core.
    """

    out: Path
    trajectories: cli.Chosen[int] = None
    splits: tuple[str, ...] = tuple(SPLITS)
    seed: int = 0
    encoding: Encoding = "window"
    workers: cli.Chosen[int] = None


def generate(
    out: Path,
    trajectories: int | None = None,
    splits: tuple[str, ...] = tuple(SPLITS),
    seed: int = 0,
    encoding: Encoding = "window",
    workers: int | None = None,
) -> None:
    """Write two-room splits as shards under `out`; arguments as in `GenerateArguments`. Finished ones are kept.

    Raises:
        InputError: an argument out of range, a folder that holds other data, too little disk space.
        OSError: the folder cannot be written.
    """
    require(trajectories is None or trajectories >= 1, "trajectories", trajectories, "at least 1")
    require(workers is None or workers >= 1, "workers", workers, "at least 1")
    require(0 <= seed < 2**64, "seed", seed, "an integer in [0, 2^64)")
    require(len(splits) > 0, "splits", splits, "at least one")
    for split in splits:
        require(split in SPLITS, "splits", split, f"one of {', '.join(SPLITS)}")
    for split in splits:
        count = SPLITS[split].size
        if trajectories is not None:
            count = trajectories if split == "train" else min(count, trajectories)
        source = TwoRoomsSource(split, count, seed)
        pack(source, out / split, encoding, workers or available_cores(), label=split)


def main(arguments: GenerateArguments) -> None:
    """Run the command."""
    generate(**vars(arguments))


if __name__ == "__main__":
    cli.run(main, GenerateArguments, "Simulate the two-room world and write it as shards.")

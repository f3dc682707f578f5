"""Command: pack trajectories in the course layout as shards.

    python -m jepa_fast.convert --states states.npy --actions actions.npy --locations locations.npy --out DIR/train

Run again after an interruption, it keeps what is finished. Afterwards every frame on disk is compared with its source.
"""

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from jepa_fast import cli
from jepa_fast.config import require
from jepa_fast.data.course import check_round_trip, open_course
from jepa_fast.data.manifest import Encoding, Manifest
from jepa_fast.data.packing import pack
from jepa_fast.data.shards import open_split

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConvertArguments:
    """Pack states.npy [N, T, 2, H, W] and its companions as one split.

    Attributes:
        states: frames, channel 0 the agent and channel 1 the walls; any float, or uint8.
        actions: float [N, T - 1, 2].
        out: folder of the split, such as DIR/train.
        locations: float [N, T, 2]; probing needs them, training does not.
        scale: value of one uint8 step; by default 1 for uint8 states, the largest value / 255 for floats.
        encoding: what to store: dot windows, full dot frames with the wall once, or every frame in full.
        workers: processes; by default one for each core.
    """

    states: Path
    actions: Path
    out: Path
    locations: Path | None = None
    scale: float | None = None
    encoding: Encoding = "window"
    workers: int | None = None


def convert(
    states: Path,
    actions: Path,
    out: Path,
    locations: Path | None = None,
    scale: float | None = None,
    encoding: Encoding = "window",
    workers: int | None = None,
) -> Manifest:
    """Pack the three files as the split `out`, and compare it with them; arguments as in `ConvertArguments`.

    Raises:
        InputError: a file is not of the layout, a value is not finite, negative or beyond the scale, or the disk lacks
            space.
        OSError: a file cannot be read or written.
    """
    require(workers is None or workers >= 1, "workers", workers, "at least 1")
    require(scale is None or 0 < scale < float("inf"), "--scale", scale, "a positive number")
    workers = workers or len(os.sched_getaffinity(0))
    source = open_course(states, actions, locations, scale, workers)
    manifest = pack(source, out, encoding, workers)
    check_round_trip(source, open_split(out))
    logger.info(
        "%s: every frame, action and location on disk compared with its source: equal after rounding to steps of %g, "
        "which moves a pixel by at most %g",
        out,
        source.scale,
        source.error,
    )
    return manifest


def main(arguments: ConvertArguments) -> None:
    """Run the command."""
    convert(**vars(arguments))


if __name__ == "__main__":
    cli.run(main, ConvertArguments, "Pack trajectories in the course layout as shards.")

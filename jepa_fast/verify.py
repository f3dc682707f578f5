"""Command: hash every file of packed data: `python -m jepa_fast.verify DIR`."""

import logging
from dataclasses import dataclass
from pathlib import Path

import tyro

from jepa_fast import cli
from jepa_fast.data.manifest import MANIFEST_NAME
from jepa_fast.data.shards import open_split
from jepa_fast.errors import InputError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arguments:
    """Hash every file of a split, or of all splits in a folder, and look for numbers that are not finite."""

    folder: tyro.conf.Positional[Path]
    """A split, or a folder that holds some."""


def main(arguments: Arguments) -> None:
    """Verify; one line for each split that is whole, and the first fault ends it.

    Raises:
        InputError: there is no split, or a file is not what its manifest says.
    """
    folders = sorted(path.parent for path in arguments.folder.rglob(MANIFEST_NAME))
    if not folders:
        raise InputError(f"{arguments.folder}: found no {MANIFEST_NAME}, expected a split or a folder of splits")
    for folder in folders:
        split = open_split(folder, verify=True)
        files = [file for shard in split.manifest.shards for file in shard.files.values()]
        size = sum(file.bytes for file in files)
        logger.info("%s: %d trajectories, %d files, %.2f GB: whole", folder, split.count, len(files), size / 1e9)


if __name__ == "__main__":
    cli.run(main, Arguments, "Hash every file of packed data.")

"""Readers: the files that people have, as episodes of named columns. One module per format, each an optional extra."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from jepa_fast.errors import InputError

Rows = Mapping[str, NDArray[Any]]


class Column(NamedTuple):
    """What a column holds: the type and shape of a row, and how many rows each of N episodes has.

    It is plain where rows lie in the file as they are, neither compressed nor encoded.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    rows: NDArray[np.int64]
    is_plain: bool = False


class Reader(Protocol):
    """N episodes of some files. Pickled into worker processes: holds paths, not arrays or open files."""

    @property
    def columns(self) -> Mapping[str, Column]:
        """What can be asked for, by name."""

    @property
    def description(self) -> dict[str, Any]:
        """The format and the names of the files, for the manifest; nothing that depends on where they lie."""

    def label(self, column: str) -> str:
        """What the manifest calls a column."""

    def where(self, column: str) -> str:
        """A column and its file, for people."""

    def read(self, names: Sequence[str], episodes: NDArray[np.int64]) -> Rows:
        """Some columns of some episodes, which ascend: by name arrays [rows, ...], episodes end to end."""


def open_reader(path: Path) -> Reader:
    """The reader for a file or a folder, by what it is called and what lies in it.

    Raises:
        InputError: nothing is there, it is of no known format, or the library that reads it is missing.
    """
    from jepa_fast.data.readers.arrays import ZippedArrays

    if not path.exists():
        raise InputError(f"{path}: not found, expected a file or a folder of episodes")
    if path.suffix == ".npz":
        return ZippedArrays(path)
    if path.suffix in (".h5", ".hdf5"):
        from jepa_fast.data.readers.hdf5 import HDF5Episodes

        return HDF5Episodes(path)
    if (path / "meta" / "info.json").is_file():
        from jepa_fast.data.readers.lerobot import LeRobotEpisodes

        return LeRobotEpisodes(path)
    if (path / "data" / "metadata.json").is_file():
        from jepa_fast.data.readers.minari import MinariEpisodes

        return MinariEpisodes(path)
    known = ".npz, .h5, .hdf5, a LeRobot folder (meta/info.json) or a Minari folder (data/metadata.json)"
    raise InputError(f"{path}: of no known format, expected {known}")


def library(name: str, extra: str, what: str) -> Any:
    """The module `name` of an optional extra.

    Raises:
        InputError: it is not installed: how to get it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise InputError(
            f"{what}: needs {name.partition('.')[0]} ({error}): pip install 'jepa_fast[{extra}]'"
        ) from None


def in_a_row(episodes: NDArray[np.int64]) -> bool:
    """Whether episodes follow each other without a gap."""
    return len(episodes) == int(episodes[-1]) - int(episodes[0]) + 1

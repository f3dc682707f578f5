"""NumPy files as episodes: .npy files of one column each, or one .npz file of all, mapped and not read into memory."""

import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.readers import Column, Rows, in_a_row
from jepa_fast.errors import InputError

# Of an .npz file: frames of each episode, and its first row where episodes do not follow each other.
LENGTHS, OFFSETS = "ep_len", "ep_offset"


@dataclass(frozen=True)
class ArrayFiles:
    """One .npy file per column: [N, T, ...], or all episodes end to end where `lengths` int64 [N] are given."""

    files: Mapping[str, Path]
    lengths: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    mapped: ClassVar[bool] = True

    @property
    def columns(self) -> Mapping[str, Column]:
        """What the files hold."""
        return {name: _column(self._array(name), self.where(name), self.lengths.get(name)) for name in self.files}

    @property
    def description(self) -> dict[str, Any]:
        """Nothing but the columns' own names, which are those of files."""
        return {}

    def label(self, column: str) -> str:
        """The file's name."""
        return self.files[column].name

    def where(self, column: str) -> str:
        """The file."""
        return str(self.files[column])

    def read(self, names: Sequence[str], episodes: NDArray[np.int64]) -> Rows:
        """Rows of the mapped files; views where episodes follow each other."""
        return {name: _rows(self._array(name), episodes, self.lengths.get(name)) for name in names}

    def _array(self, name: str) -> NDArray[Any]:
        path = self.files[name]
        try:
            array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        except FileNotFoundError:
            raise InputError(f"{path}: not found, expected a .npy file") from None
        except (ValueError, EOFError, AttributeError) as error:
            raise InputError(
                f"{path}: not an array that can be mapped ({error}), expected a whole .npy file of numbers; episodes "
                "of different length come from HDF5 or jepa_fast.pack"
            ) from None
        return array


@dataclass(frozen=True)
class ZippedArrays:
    """One .npz file, as np.savez writes it: columns [N, T, ...], or end to end with `ep_len` int [N]."""

    path: Path
    mapped: ClassVar[bool] = True

    @cached_property
    def columns(self) -> Mapping[str, Column]:
        """What the file holds, lengths apart."""
        lengths = self._lengths
        names = [name for name in self._members if name not in (LENGTHS, OFFSETS)]
        return {name: _column(self._array(name), self.where(name), lengths) for name in names}

    @property
    def description(self) -> dict[str, Any]:
        """The file's name."""
        return {"format": "npz", "file": self.path.name}

    def label(self, column: str) -> str:
        """Its name."""
        return column

    def where(self, column: str) -> str:
        """The file and its array."""
        return f"{self.path}: {column}"

    def read(self, names: Sequence[str], episodes: NDArray[np.int64]) -> Rows:
        """Rows of the mapped file; views where episodes follow each other."""
        return {name: _rows(self._array(name), episodes, self._lengths) for name in names}

    @cached_property
    def _members(self) -> dict[str, int]:
        """Where each array's .npy file begins in this one."""
        try:
            with zipfile.ZipFile(self.path) as archive, self.path.open("rb") as stream:
                members = {}
                for member in archive.infolist():
                    if member.compress_type != zipfile.ZIP_STORED:
                        raise InputError(f"{self.path}: compressed, expected np.savez, whose arrays can be mapped")
                    stream.seek(member.header_offset)
                    name_bytes, extra_bytes = struct.unpack("<26xHH", stream.read(30))
                    members[member.filename.removesuffix(".npy")] = stream.tell() + name_bytes + extra_bytes
                return members
        except (zipfile.BadZipFile, struct.error) as error:
            raise InputError(f"{self.path}: not a whole .npz file ({error})") from None

    @cached_property
    def _lengths(self) -> NDArray[np.int64] | None:
        if LENGTHS not in self._members:
            return None
        lengths = self._array(LENGTHS).astype(np.int64)
        if OFFSETS in self._members and not np.array_equal(self._array(OFFSETS), np.cumsum(lengths) - lengths):
            raise InputError(f"{self.path}: {OFFSETS}: expected episodes that follow each other")
        return lengths

    def _array(self, name: str) -> NDArray[Any]:
        with self.path.open("rb") as stream:
            stream.seek(self._members[name])
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
            if dtype.hasobject:
                raise InputError(
                    f"{self.where(name)}: found objects, expected numbers; episodes of different length are "
                    f"stored end to end, with {LENGTHS}"
                )
            order = "F" if fortran else "C"
            return np.memmap(self.path, dtype, "r", stream.tell(), shape, order).view(np.ndarray)  # type: ignore[call-overload,no-any-return]


def _column(array: NDArray[Any], where: str, lengths: NDArray[np.int64] | None) -> Column:
    if lengths is not None:
        if array.ndim < 1 or len(array) != lengths.sum():
            raise InputError(
                f"{where}: found {list(array.shape)}, expected {lengths.sum()} rows in {len(lengths)} episodes"
            )
        return Column(array.dtype, array.shape[1:], lengths)
    if array.ndim < 2:
        raise InputError(f"{where}: found {array.dtype} {list(array.shape)}, expected [N, T, ...]")
    return Column(array.dtype, array.shape[2:], np.full(len(array), array.shape[1]))


def _rows(array: NDArray[Any], episodes: NDArray[np.int64], lengths: NDArray[np.int64] | None) -> NDArray[Any]:
    """Rows of ascending episodes, end to end."""
    low, high = int(episodes[0]), int(episodes[-1]) + 1
    if lengths is None:
        rows: NDArray[Any] = array[low:high] if in_a_row(episodes) else array[episodes]
        return rows.reshape(-1, *array.shape[2:])
    ends = np.cumsum(lengths)
    if in_a_row(episodes):
        return array[ends[low] - lengths[low] : ends[high - 1]]
    return np.concatenate([array[ends[episode] - lengths[episode] : ends[episode]] for episode in episodes])

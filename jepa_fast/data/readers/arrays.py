"""NumPy files as episodes: .npy files of one column each, or one .npz file of all, mapped and not read into memory."""

import logging
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa_fast.data.readers import Column, Rows, in_a_row
from jepa_fast.data.writing import require_space
from jepa_fast.errors import InputError
from jepa_fast.progress import Progress

# Of an .npz file: frames of each episode, and its first row where episodes do not follow each other.
LENGTHS, OFFSETS = "ep_len", "ep_offset"
# Unpacked at a time.
PIECE_BYTES = 1 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArrayFiles:
    """One .npy file per column: [N, T, ...], or all episodes end to end where `lengths` int64 [N] are given."""

    files: Mapping[str, Path]
    lengths: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

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
    """One .npz file, as np.savez writes it: columns [N, T, ...], or end to end with `ep_len` int [N].

    One of np.savez_compressed has to be `unpacked` first.

    Attributes:
        path: the file.
        unpacked_path: the same, with arrays that can be mapped.
    """

    path: Path
    unpacked_path: Path | None = None

    @cached_property
    def is_compressed(self) -> bool:
        """Whether there is an array that cannot be mapped."""
        with self._zip() as archive:
            return any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist())

    def unpacked(self, folder: Path) -> "ZippedArrays":
        """The same arrays, mapped from a file in `folder` that is not compressed; memory does not grow with them.

        Raises:
            InputError: a file that is damaged, or too little disk space.
        """
        unpacked_path = folder / self.path.name
        with self._zip() as archive, zipfile.ZipFile(unpacked_path, "w", zipfile.ZIP_STORED) as copy:
            total = sum(member.file_size for member in archive.infolist())
            log.info("%s: compressed: unpacked into %s first, %.2f GB", self.path, folder, total / 1e9)
            require_space(folder, total)
            with Progress(f"unpacking {self.path.name}", total // PIECE_BYTES, "MiB") as progress:
                for member in archive.infolist():
                    with (
                        archive.open(member) as stream,
                        copy.open(member.filename, "w", force_zip64=True) as target,
                    ):
                        while piece := stream.read(PIECE_BYTES):
                            target.write(piece)
                            progress.update(len(piece) // PIECE_BYTES)
        return ZippedArrays(self.path, unpacked_path)

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
        members = {}
        with self._zip() as archive, self._mapped_path.open("rb") as stream:
            for member in archive.infolist():
                stream.seek(member.header_offset)
                name_bytes, extra_bytes = struct.unpack("<26xHH", stream.read(30))
                members[member.filename.removesuffix(".npy")] = stream.tell() + name_bytes + extra_bytes
        return members

    @property
    def _mapped_path(self) -> Path:
        return self.unpacked_path or self.path

    @contextmanager
    def _zip(self) -> Iterator[zipfile.ZipFile]:
        """The file, open; what is wrong with it is said in one line."""
        try:
            with zipfile.ZipFile(self._mapped_path) as archive:
                yield archive
        except (zipfile.BadZipFile, struct.error, zlib.error, EOFError, RuntimeError) as error:
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
        with self._mapped_path.open("rb") as stream:
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
            return np.memmap(self._mapped_path, dtype, "r", stream.tell(), shape, order).view(np.ndarray)  # type: ignore[call-overload,no-any-return]


def _column(array: NDArray[Any], where: str, lengths: NDArray[np.int64] | None) -> Column:
    if lengths is not None:
        if array.ndim < 1 or len(array) != lengths.sum():
            raise InputError(
                f"{where}: found {list(array.shape)}, expected {lengths.sum()} rows in {len(lengths)} episodes"
            )
        return Column(array.dtype, array.shape[1:], lengths, is_plain=True)
    if array.ndim < 2:
        raise InputError(f"{where}: found {array.dtype} {list(array.shape)}, expected [N, T, ...]")
    return Column(array.dtype, array.shape[2:], np.full(len(array), array.shape[1]), is_plain=True)


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
